use std::{fmt, str::FromStr};

use oci_spec::image::Digest;

use crate::{
    Error, Result,
    grammar::{REPOSITORY_MAX, is_host, is_repository, is_tag},
};

const DEFAULT_HOST: &str = "docker.io";
/// An old name of [`DEFAULT_HOST`] that is still written.
const LEGACY_HOST: &str = "index.docker.io";
/// Where Docker Hub keeps the images that have no owner in their name.
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// The normalised name of an image: a host, a repository, and a tag or a digest or both.
///
/// Its text (`Display`) is the canonical form, with nothing left out, and parses to the same value.
///
/// ```
/// use windlass_reference::Reference;
///
/// let reference: Reference = "redis".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/redis:latest");
/// # Ok::<(), windlass_reference::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host and repository, with a slash between them.
    locator: String,
    /// How many bytes of `locator` are the host.
    host_len: usize,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a name as people write it, and normalises it as Docker does.
    ///
    /// The first component is a host if it has a `.`, a `:` or an upper-case letter, or is `localhost`; else
    /// the host is `docker.io`. The tag is `latest` if there is neither a tag nor a digest.
    ///
    /// # Errors
    ///
    /// The variant of [`Error`] for the first part that is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(parse_digest(digest)?)),
            None => (text, None),
        };
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match name[last..].split_once(':') {
            Some((end, tag)) => (&name[..last + end.len()], Some(checked_tag(tag)?)),
            None if digest.is_none() => (name, Some(DEFAULT_TAG.to_owned())),
            None => (name, None),
        };
        if name.is_empty() {
            return Err(Error::Empty);
        }
        if name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::Identifier { name: name.into() });
        }
        let (host, repository) = split_host(name);
        if !is_host(host) {
            return Err(Error::Host { host: host.into() });
        }
        let official = host == DEFAULT_HOST && !repository.contains('/') && !repository.is_empty();
        let repository = if official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() };
        check_repository(&repository)?;
        Ok(Self { locator: format!("{host}/{repository}"), host_len: host.len(), tag, digest })
    }

    /// The registry: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.locator[..self.host_len]
    }

    /// The path of the image on its host: `library/redis`.
    pub fn repository(&self) -> &str {
        &self.locator[self.host_len + 1..]
    }

    /// Host and repository: `docker.io/library/redis`.
    pub fn locator(&self) -> &str {
        &self.locator
    }

    /// The tag. `None` only if there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name was pinned to content.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    ///
    /// A tag beside a digest is a remark for people: it may stand for other content by now.
    pub fn object(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_ref(),
            (None, Some(tag)) => tag,
            (None, None) => unreachable!("a reference has a tag or a digest"),
        }
    }

    /// The short form that people know: without `docker.io/` and `library/`, where leaving them out changes nothing.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(rest) = full.strip_prefix("docker.io/") else { return full };
        let official =
            rest.strip_prefix(OFFICIAL).filter(|_| !self.repository()[OFFICIAL.len()..].contains('/'));
        // A short form that means something else, such as a first component that looks like a host, helps nobody.
        [official, Some(rest)]
            .into_iter()
            .flatten()
            .find(|short| Self::parse(short).as_ref() == Ok(self))
            .map_or(full.clone(), str::to_owned)
    }

    /// The same name, pinned to content. A tag stays, as a remark.
    pub fn with_digest(self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self }
    }

    /// The same repository with this tag, and no digest.
    ///
    /// # Errors
    ///
    /// [`Error::Tag`] if the tag is malformed.
    pub fn with_tag(self, tag: &str) -> Result<Self> {
        Ok(Self { tag: Some(checked_tag(tag)?), digest: None, ..self })
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.locator)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The host that a name starts with, or the default one, and what follows it.
fn split_host(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_HOST, rest)) => (DEFAULT_HOST, rest),
        Some((first, rest))
            if first == "localhost" || first.contains(|c: char| ".:".contains(c) || c.is_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    }
}

fn parse_digest(digest: &str) -> Result<Digest> {
    digest.parse().map_err(|_| Error::Digest { digest: digest.into() })
}

fn checked_tag(tag: &str) -> Result<String> {
    match is_tag(tag) {
        true => Ok(tag.into()),
        false => Err(Error::Tag { tag: tag.into() }),
    }
}

fn check_repository(repository: &str) -> Result<()> {
    if repository.len() > REPOSITORY_MAX {
        return Err(Error::TooLong { length: repository.len() });
    }
    if is_repository(repository) {
        return Ok(());
    }
    let repository = repository.to_owned();
    match is_repository(&repository.to_lowercase()) {
        true => Err(Error::Uppercase { repository }),
        false => Err(Error::Repository { repository }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (text, canonical, familiar) in [
            ("redis", "docker.io/library/redis:latest", "redis:latest"),
            ("redis:7", "docker.io/library/redis:7", "redis:7"),
            ("docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
            ("index.docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
            ("library/redis", "docker.io/library/redis:latest", "redis:latest"),
            ("owner/app", "docker.io/owner/app:latest", "owner/app:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("[fe80::1]/app", "[fe80::1]/app:latest", "[fe80::1]/app:latest"),
            ("Host/app", "Host/app:latest", "Host/app:latest"),
            ("a__b/c---d/e.f:_x", "docker.io/a__b/c---d/e.f:_x", "a__b/c---d/e.f:_x"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/localhost/app", "docker.io/localhost/app:latest", "docker.io/localhost/app:latest"),
        ] {
            let reference = Reference::parse(text).expect(text);

            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
    }

    #[test]
    fn a_digest_is_the_object_and_asks_for_no_default_tag() {
        let pinned: Reference = format!("redis@sha256:{HASH}").parse().expect("well-formed");
        let both: Reference = format!("host:1/app:2@sha256:{HASH}").parse().expect("well-formed");

        assert_eq!((pinned.tag(), pinned.object()), (None, &*format!("sha256:{HASH}")));
        assert_eq!((both.tag(), both.object()), (Some("2"), &*format!("sha256:{HASH}")));
        assert_eq!((both.host(), both.repository(), both.locator()), ("host:1", "app", "host:1/app"));
        assert_eq!(both.to_string(), format!("host:1/app:2@sha256:{HASH}"));
    }

    #[test]
    fn a_name_can_be_pinned_and_unpinned() {
        let digest: Digest = format!("sha256:{HASH}").parse().expect("well-formed");
        let reference = Reference::parse("redis:7").expect("well-formed");

        let pinned = reference.clone().with_digest(digest.clone());
        let unpinned = pinned.clone().with_tag("8").expect("well-formed");

        assert_eq!((pinned.tag(), pinned.digest()), (Some("7"), Some(&digest)));
        assert_eq!((unpinned.object(), unpinned.digest()), ("8", None));
        assert_eq!(reference.with_tag(".8"), Err(Error::Tag { tag: ".8".into() }));
    }

    #[test]
    fn what_does_not_parse_says_why() {
        let long = format!("host.example/{}", "a".repeat(256));
        let tag = format!("a:{}", "t".repeat(129));
        for (text, why) in [
            ("", "the name of the image is missing"),
            (":tag", "the name of the image is missing"),
            ("app@sha256:0", "digest \"sha256:0\" is malformed"),
            ("app@", "digest \"\" is malformed"),
            (HASH, "looks like an image's identifier"),
            ("ho_st.example/app", "host \"ho_st.example\" is malformed"),
            ("host:99999/app", "host \"host:99999\" is malformed"),
            ("host:+1/app", "host \"host:+1\" is malformed"),
            ("[::1/app", "host \"[::1\" is malformed"),
            ("[::1]5000/app", "host \"[::1]5000\" is malformed"),
            ("https://host.example/app", "host \"https:\" is malformed"),
            ("-host.example/app", "host \"-host.example\" is malformed"),
            ("host.example/App", "repository \"App\" has upper-case letters"),
            ("Redis", "repository \"library/Redis\" has upper-case letters"),
            ("host.example/", "repository \"\" is malformed"),
            ("a//b", "repository \"a//b\" is malformed"),
            ("a/../b", "repository \"a/../b\" is malformed"),
            ("a___b", "repository \"library/a___b\" is malformed"),
            ("a._b", "repository \"library/a._b\" is malformed"),
            ("a-", "repository \"library/a-\" is malformed"),
            ("app:", "tag \"\" is malformed"),
            ("app:-x", "tag \"-x\" is malformed"),
            ("app:a:b", "tag \"a:b\" is malformed"),
            (&tag, "at most 128"),
            (&long, "the repository has 256 characters; 255 is the limit"),
        ] {
            let err = text.parse::<Reference>().expect_err(text);
            assert!(err.to_string().contains(why), "{text}: {err}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic_and_what_parses_round_trips(text in ".{0,80}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()), Ok(reference));
            }
        }

        #[test]
        fn names_round_trip_in_both_forms(
            text in "((localhost|[a-z]{1,3}\\.[A-Za-z]{1,3}|\\[::1\\])(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,4}(/[a-z]{1,3}([._-][a-z0-9]{1,3}){0,2}){0,3}(:[A-Za-z_][a-z.-]{0,5})?",
        ) {
            let reference = Reference::parse(&text).expect("made by the grammar");
            prop_assert_eq!(&Reference::parse(&reference.to_string()), &Ok(reference.clone()));
            prop_assert_eq!(&Reference::parse(&reference.familiar()), &Ok(reference));
        }
    }
}
