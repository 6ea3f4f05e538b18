//! Which of the images in a local file is wanted.

use std::path::Path;

use oci_spec::image::Digest;
use windlass_images::archive::{Named, choose_names, recorded_names};
use windlass_reference::Reference;

use crate::{Error, Result};

/// Which image of a local file is wanted.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// The only one.
    Only,
    /// The one of this tag, name or digest.
    Text(String),
    /// The one of this name.
    Reference(Reference),
}

impl Wanted {
    pub(super) fn text(text: Option<&str>) -> Self {
        text.map_or(Self::Only, |text| Self::Text(text.into()))
    }
}

/// The image that is wanted, and the name to record it under. `path` is the file.
pub(super) fn choose<'a>(path: &Path, names: &'a [Named], wanted: &Wanted) -> Result<(&'a Named, String)> {
    let all = |is_wanted: &dyn Fn(&Named) -> bool| names.iter().filter(|name| is_wanted(name)).collect();
    let or = |first: Vec<_>, second: &dyn Fn(&Named) -> bool| match first.is_empty() {
        true => all(second),
        false => first,
    };
    let found = match wanted {
        Wanted::Only => all(&|_| true),
        Wanted::Text(text) => or(all(&|name| name.is_exactly(text)), &|name| name.has_tag(text)),
        Wanted::Reference(reference) => match (reference.digest(), reference.tag()) {
            (Some(digest), _) => all(&|name| name.id == digest.as_ref()),
            (None, Some(tag)) => or(all(&|name| name.full.as_ref() == Some(reference)), &|name| {
                name.full.is_none() && name.has_tag(tag)
            }),
            (None, None) => unreachable!("a reference has a tag or a digest"),
        },
    };
    let Some((first, rest)) = found.split_first() else {
        return Err(not_found(path, names, wanted));
    };
    if rest.iter().any(|name| name.image != first.image) {
        return Err(Error::Ambiguous { path: path.into(), available: list(&found) });
    }
    let recorded = match wanted {
        Wanted::Reference(reference) => reference.to_string(),
        Wanted::Only | Wanted::Text(_) => first.recorded(&base(path)),
    };
    Ok((first, recorded))
}

/// All names that are wanted.
pub(super) fn choose_all<'a>(path: &Path, names: &'a [Named], wanted: &[String]) -> Result<Vec<&'a Named>> {
    if names.is_empty() {
        return Err(not_found(path, names, &Wanted::Only));
    }
    choose_names(names, wanted).map_err(|text| not_found(path, names, &Wanted::Text(text.into())))
}

/// What each of the chosen names, which stand for these digests, is recorded as.
pub(super) fn recorded_all(path: &Path, chosen: &[(&Named, &Digest)]) -> Vec<String> {
    let names = recorded_names(chosen, Some(&base(path)));
    names.into_iter().map(|name| name.expect("with a base, everything has a name")).collect()
}

/// What images that have only a tag are called after.
fn base(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn not_found(path: &Path, names: &[Named], wanted: &Wanted) -> Error {
    let name = match wanted {
        Wanted::Only => "an image".to_owned(),
        Wanted::Text(text) => text.clone(),
        Wanted::Reference(reference) => reference.to_string(),
    };
    let url = match names.is_empty() {
        true => path.display().to_string(),
        false => format!("{}, which has {}", path.display(), list(&names.iter().collect::<Vec<_>>())),
    };
    Error::NotFound { name, url }
}

/// The most names in a message.
const SHOWN: usize = 20;

fn list(names: &[&Named]) -> String {
    let mut shown: Vec<_> = names.iter().take(SHOWN).map(|name| name.shown()).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// One image with a tag only, one with two names, and one with none.
    fn names() -> Vec<Named> {
        vec![
            Named::new(0, "sha256:0", &[Some("v1")]),
            Named::new(1, "sha256:1", &[Some("docker.io/library/redis:7"), Some("7")]),
            Named::new(1, "sha256:1", &[Some("r.example/redis:latest")]),
            Named::new(2, ID, &[]),
        ]
    }

    fn chosen(names: &[Named], wanted: &Wanted) -> Result<(usize, String), String> {
        let path = Path::new("/data/My images.tar");
        let (named, name) = choose(path, names, wanted).map_err(|error| error.to_string())?;
        Ok((named.image, name))
    }

    #[test]
    fn an_image_is_found_by_its_tag_name_or_digest() {
        for (text, image, recorded) in [
            ("v1", 0, "localhost/my-images:v1"),
            ("7", 1, "docker.io/library/redis:7"),
            ("redis:7", 1, "docker.io/library/redis:7"),
            ("docker.io/library/redis:7", 1, "docker.io/library/redis:7"),
            ("r.example/redis", 1, "r.example/redis:latest"),
            ("latest", 1, "r.example/redis:latest"),
            (ID, 2, "localhost/my-images:latest"),
        ] {
            let wanted = Wanted::text(Some(text));
            assert_eq!(chosen(&names(), &wanted), Ok((image, recorded.into())), "{text}");
        }
    }

    #[test]
    fn a_reference_means_its_whole_name_or_a_bare_tag() {
        for (text, image) in [
            ("redis:7", Some(1)),
            ("anything.example/app:v1", Some(0)),
            (&format!("app@{ID}"), Some(2)),
            ("other:7", None),
            ("other", None),
        ] {
            let reference = Reference::parse(text).expect(text);
            let want = image.map(|image| (image, reference.to_string()));
            assert_eq!(chosen(&names(), &Wanted::Reference(reference)).ok(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_chosen_says_what_there_is() {
        let listed = format!("v1, redis:7, r.example/redis:latest, {ID}");
        for (names, text, why) in [
            (names(), None, format!("/data/My images.tar has several images; choose one of {listed}")),
            (names(), Some("v2"), format!("v2 not found in /data/My images.tar, which has {listed}")),
            (vec![], None, "an image not found in /data/My images.tar".into()),
        ] {
            assert_eq!(chosen(&names, &Wanted::text(text)), Err(why));
        }
    }

    #[test]
    fn the_names_of_one_image_are_no_reason_to_ask_which() {
        assert_eq!(
            chosen(&names()[1..3], &Wanted::Only),
            Ok((1, "docker.io/library/redis:7".into())),
            "the first one counts"
        );
    }
}
