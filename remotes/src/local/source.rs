use std::{fmt, path::PathBuf, str::FromStr};

use windlass_content::hash::Hasher;
use windlass_reference::Reference;

use super::{DockerArchive, OciArchive, OciLayout, blocking};
use crate::{Error, Resolved, Resolver, Result};

/// Where an image is, as people write it on a command line: in a registry, or in a local file.
///
/// | text | means |
/// |---|---|
/// | `oci:PATH[:IMAGE]` | an [`OciLayout`] |
/// | `oci-archive:PATH[:IMAGE]` | an [`OciArchive`] |
/// | `docker-archive:PATH[:IMAGE]` | a [`DockerArchive`] |
/// | anything else | the [`Reference`] of an image in a registry |
///
/// These are the words of skopeo and podman. Docker Hub's image `oci` is written `docker.io/library/oci:TAG`.
///
/// ```
/// use windlass_remotes::local::Source;
///
/// let source: Source = "oci-archive:app.tar:v1".parse()?;
/// assert!(matches!(source, Source::OciArchive(_)));
/// let source: Source = "redis".parse()?;
/// assert_eq!(source.to_string(), "docker.io/library/redis:latest");
/// # Ok::<(), windlass_remotes::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// A folder that is an OCI image layout.
    Oci(Location),
    /// A tar archive of an OCI image layout.
    OciArchive(Location),
    /// An archive of `docker save`.
    DockerArchive(Location),
    /// An image in a registry.
    Registry(Reference),
}

impl Source {
    /// Finds out which content is meant: in the local file, or with `registry`.
    ///
    /// # Errors
    ///
    /// Those of `registry`, or of opening the local file and of its `resolve_tag`.
    pub async fn resolve(&self, registry: &dyn Resolver) -> Result<Resolved> {
        match self {
            Self::Oci(location) => {
                let (opened, image) = location.open(OciLayout::open).await?;
                opened.resolve_tag(image.as_deref()).await
            }
            Self::OciArchive(location) => {
                let (opened, image) = location.open(OciArchive::open).await?;
                opened.resolve_tag(image.as_deref()).await
            }
            Self::DockerArchive(location) => {
                let (opened, image) = location.open(DockerArchive::open).await?;
                opened.resolve_tag(image.as_deref()).await
            }
            Self::Registry(reference) => registry.resolve(reference).await,
        }
    }

    /// As [`resolve`](Self::resolve), but gives all images of a local file, or those of `wanted` tags, names or digests if
    /// there are any. If the text names one of them, only that one.
    ///
    /// # Errors
    ///
    /// Those of `registry`, or of opening the local file and of its `resolve_all`.
    pub async fn resolve_all(&self, registry: &dyn Resolver, wanted: &[String]) -> Result<Vec<Resolved>> {
        let chosen = |image: Option<String>| image.map_or_else(|| wanted.to_vec(), |image| vec![image]);
        match self {
            Self::Oci(location) => {
                let (opened, image) = location.open(OciLayout::open).await?;
                opened.resolve_all(&chosen(image)).await
            }
            Self::OciArchive(location) => {
                let (opened, image) = location.open(OciArchive::open).await?;
                opened.resolve_all(&chosen(image)).await
            }
            Self::DockerArchive(location) => {
                let (opened, image) = location.open(DockerArchive::open).await?;
                opened.resolve_all(&chosen(image)).await
            }
            Self::Registry(reference) => Ok(vec![registry.resolve(reference).await?]),
        }
    }
}

/// Looks at the text only.
impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let location = |rest: &str| match rest.is_empty() {
            true => {
                let reason = "a path is missing after the colon".into();
                Err(Error::File { path: text.into(), line: None, reason })
            }
            false => Ok(Location(rest.into())),
        };
        match text.split_once(':') {
            Some(("oci", rest)) => Ok(Self::Oci(location(rest)?)),
            Some(("oci-archive", rest)) => Ok(Self::OciArchive(location(rest)?)),
            Some(("docker-archive", rest)) => Ok(Self::DockerArchive(location(rest)?)),
            _ => Ok(Self::Registry(text.parse()?)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oci(Location(text)) => write!(f, "oci:{text}"),
            Self::OciArchive(Location(text)) => write!(f, "oci-archive:{text}"),
            Self::DockerArchive(Location(text)) => write!(f, "docker-archive:{text}"),
            Self::Registry(reference) => reference.fmt(f),
        }
    }
}

/// A path, and perhaps an image in it: `PATH`, `PATH:IMAGE` or `PATH@DIGEST`.
///
/// Paths may have colons, and so may the names of images. The path is the shortest one that is there. If none is, it ends
/// at the first colon, which is skopeo's rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location(String);

impl Location {
    /// The path, and what follows it. Looks on the disk, and may block for a moment.
    pub fn split(&self) -> (PathBuf, Option<String>) {
        let text = &*self.0;
        let whole = (PathBuf::from(text), None);
        let cuts = text.match_indices([':', '@']).filter_map(|(at, mark)| {
            let (path, image) = (&text[..at], &text[at + 1..]);
            (mark == ":" || is_digest(image))
                .then(|| (PathBuf::from(path), Some(image.to_owned()).filter(|image| !image.is_empty())))
        });
        let mut candidates = cuts.chain([whole]);
        let first = candidates.clone().next().expect("the whole text is the last candidate");
        candidates.find(|(path, _)| path.exists()).unwrap_or(first)
    }

    async fn open<T: Send + 'static>(
        &self,
        open: impl FnOnce(PathBuf) -> Result<T> + Send + 'static,
    ) -> Result<(T, Option<String>)> {
        let this = self.clone();
        blocking(move || {
            let (path, image) = this.split();
            Ok((open(path)?, image))
        })
        .await
    }
}

/// Whether it is a digest that content can have, and not a name with a colon.
fn is_digest(text: &str) -> bool {
    text.parse().is_ok_and(|digest| Hasher::new(&digest).is_ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_word_before_the_first_colon_says_what_it_is() {
        for (text, canonical) in [
            ("oci:app", "oci:app"),
            ("oci:/a/b:v1", "oci:/a/b:v1"),
            ("oci-archive:a.tar:r.example/app:v1", "oci-archive:a.tar:r.example/app:v1"),
            ("docker-archive:a.tar", "docker-archive:a.tar"),
            ("redis:7", "docker.io/library/redis:7"),
            ("oci/app:v1", "docker.io/oci/app:v1"),
            ("docker.io/library/oci:v1", "docker.io/library/oci:v1"),
        ] {
            let source: Source = text.parse().expect(text);
            assert_eq!(source.to_string(), canonical, "{text}");
            assert_eq!(source.to_string().parse::<Source>().expect(text), source);
        }
    }

    #[test]
    fn what_does_not_parse_says_why() {
        for (text, why) in [
            ("oci:", "cannot use oci:: a path is missing after the colon"),
            ("Redis", "repository \"library/Redis\" has upper-case letters"),
        ] {
            let error = text.parse::<Source>().expect_err(text);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_path_is_the_shortest_that_is_there() {
        let folder = tempfile::tempdir().expect("there is room");
        for name in ["app.tar", "12:30", "12:30/img", "a@b"] {
            fs::create_dir(folder.path().join(name)).expect("there is room");
        }
        for (text, path, image) in [
            ("app.tar", "app.tar", None),
            ("app.tar:", "app.tar", None),
            ("app.tar:v1", "app.tar", Some("v1")),
            ("app.tar:docker.io/library/redis:7", "app.tar", Some("docker.io/library/redis:7")),
            (&format!("app.tar@{DIGEST}"), "app.tar", Some(DIGEST)),
            ("12:30/img", "12:30/img", None),
            ("12:30/img:v1", "12:30/img", Some("v1")),
            ("a@b:v1", "a@b", Some("v1")),
            ("missing:r.example/app:v1", "missing", Some("r.example/app:v1")),
            ("missing", "missing", None),
        ] {
            let location = Location(folder.path().join(text).display().to_string());
            let want = (folder.path().join(path), image.map(str::to_owned));
            assert_eq!(location.split(), want, "{text}");
        }
    }
}
