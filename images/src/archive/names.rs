//! What the images of an archive are called.

use oci_spec::image::Digest;
use windlass_reference::Reference;

/// One name of an image. An image may have several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Which image it is, counted from 0.
    pub image: usize,
    /// The digest that can stand for the name.
    pub id: String,
    /// The name as it is written in the archive.
    pub text: Option<String>,
    /// The same, if it is more than a tag.
    pub full: Option<Reference>,
}

impl Named {
    /// The names in `texts`, of which the first whole one counts; `redis` is a tag, and `redis:7` a whole name.
    pub fn new(image: usize, id: impl Into<String>, texts: &[Option<&str>]) -> Self {
        let whole = |text: &&str| text.contains([':', '/']);
        let full = texts.iter().flatten().copied().filter(whole).find_map(|text| Reference::parse(text).ok());
        // The last one is the shortest one that there is.
        let text = texts.iter().flatten().next_back().map(|text| (*text).to_owned());
        Self { image, id: id.into(), text, full }
    }

    /// The name to record the image under: its own one, or one made of `base` and the image's tag.
    pub fn recorded(&self, base: &str) -> String {
        if let Some(full) = &self.full {
            return full.to_string();
        }
        let named = repository(base);
        let tag = self.text.as_deref().unwrap_or_default();
        let tag = tag.replace(|c: char| !c.is_ascii_alphanumeric() && !"_.-".contains(c), "_");
        // A tag that still is none, such as one that starts with a dash, says as little as one that is missing.
        named.clone().with_tag(&tag).unwrap_or(named).to_string()
    }

    /// Whether it is what a text means: the name as it is written, the whole name, or the digest.
    pub fn is_exactly(&self, text: &str) -> bool {
        self.id == text
            || self.text.as_deref() == Some(text)
            || self.full.is_some() && self.full == Reference::parse(text).ok()
    }

    /// Whether the image has this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        match &self.full {
            Some(full) => full.tag() == Some(tag),
            None => self.text.as_deref() == Some(tag),
        }
    }

    /// How a message calls it.
    pub fn shown(&self) -> String {
        match (&self.full, &self.text) {
            (Some(full), _) => full.familiar(),
            (None, Some(text)) => text.clone(),
            (None, None) => self.id.clone(),
        }
    }
}

/// The names that are wanted: for each text those that are exactly it, or else have it as their tag. All without texts,
/// but an image that has a name is not also there without one.
///
/// # Errors
///
/// The text that nothing is called.
pub fn choose_names<'a, 'b>(names: &'a [Named], wanted: &'b [String]) -> Result<Vec<&'a Named>, &'b str> {
    let mut chosen: Vec<&Named> = Vec::new();
    for text in wanted {
        let before = chosen.len();
        chosen.extend(names.iter().filter(|name| name.is_exactly(text)));
        if chosen.len() == before {
            chosen.extend(names.iter().filter(|name| name.has_tag(text)));
        }
        if chosen.len() == before {
            return Err(text);
        }
    }
    if wanted.is_empty() {
        chosen.extend(names);
    }
    let mut unique: Vec<&Named> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let named: std::collections::HashSet<_> =
        chosen.iter().filter(|name| name.text.is_some()).map(|name| name.image).collect();
    for name in chosen {
        let is_repeated = name.text.is_none() && named.contains(&name.image);
        if !is_repeated && seen.insert((name.image, name.text.clone(), name.full.clone())) {
            unique.push(name);
        }
    }
    Ok(unique)
}

/// What each of the chosen names is recorded as, given what it stands for. `base` is the name of the archive's file, or
/// whatever images should be called that have only a tag.
///
/// An image that has no name at all is called after `base`, too, if there is one: by its digest, if it is not the only
/// one of its kind. Otherwise it has none.
pub fn recorded_names(chosen: &[(&Named, &Digest)], base: Option<&str>) -> Vec<Option<String>> {
    let nameless = chosen.iter().filter(|(name, _)| name.text.is_none()).count();
    chosen
        .iter()
        .map(|(name, target)| match (&name.text, base) {
            (None, None) => None,
            (None, Some(base)) if nameless > 1 => Some(pinned(base, target)),
            (_, base) => Some(name.recorded(base.unwrap_or("import"))),
        })
        .collect()
}

/// `localhost/BASE@DIGEST`.
fn pinned(base: &str, target: &Digest) -> String {
    format!("{}@{target}", repository(base).locator())
}

/// A repository on `localhost`, of any text.
fn repository(base: &str) -> Reference {
    let base = base.to_lowercase();
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let name: String = base.strip_suffix(".tar").unwrap_or(&base).chars().take(100).collect();
    let name = name.replace(|c| !allowed(c), "-");
    let name = match name.trim_matches('-') {
        "" => "image",
        name => name,
    };
    Reference::parse(&format!("localhost/{name}"))
        .expect("letters, digits and dashes between them are a repository")
}

#[cfg(test)]
mod tests {
    use windlass_content::hash::sha256;

    use super::*;

    #[test]
    fn a_name_is_made_of_any_base_and_tag() {
        for (base, tag, name) in [
            ("layout", Some("v1"), "localhost/layout:v1"),
            ("App_1.2.tar", Some("1.0+x"), "localhost/app-1-2:1.0_x"),
            ("ünicode", Some("-"), "localhost/nicode:latest"),
            ("", None, "localhost/image:latest"),
            ("...", Some(""), "localhost/image:latest"),
        ] {
            let recorded = Named::new(0, "", &[tag]).recorded(base);
            assert_eq!(recorded, name, "{base}");
            assert_eq!(Reference::parse(&recorded).expect(base).to_string(), name, "it is canonical");
        }
    }

    #[test]
    fn what_has_no_name_is_called_after_the_archive_if_that_is_enough() {
        let digest = sha256(b"x");
        let nameless = [Named::new(0, "", &[]), Named::new(1, "", &[])];
        let tagged = Named::new(2, "", &[Some("v1")]);
        let chosen = [(&nameless[0], &digest), (&nameless[1], &digest), (&tagged, &digest)];
        let pinned = format!("localhost/app@{digest}");
        for (chosen, base, names) in [
            (&chosen[..], Some("app.tar"), vec![Some(&*pinned), Some(&pinned), Some("localhost/app:v1")]),
            (&chosen[1..], Some("app.tar"), vec![Some("localhost/app:latest"), Some("localhost/app:v1")]),
            (&chosen[1..], None, vec![None, Some("localhost/import:v1")]),
        ] {
            let recorded = recorded_names(chosen, base);
            assert_eq!(recorded.iter().map(Option::as_deref).collect::<Vec<_>>(), names);
        }
        assert_eq!(Reference::parse(&pinned).expect("it is one").to_string(), pinned, "it is canonical");
    }

    #[test]
    fn all_names_are_chosen_or_those_that_are_wanted() {
        let names = [
            Named::new(0, "sha256:0", &[Some("docker.io/library/redis:7"), Some("7")]),
            Named::new(0, "sha256:0", &[]),
            Named::new(0, "sha256:0", &[Some("docker.io/library/redis:7")]),
            Named::new(1, "sha256:1", &[Some("7")]),
        ];
        for (wanted, images) in [
            (&[][..], Ok(vec![0, 0, 1])),
            (&["redis:7", "7"], Ok(vec![0, 0, 1])),
            (&["sha256:1"], Ok(vec![1])),
            (&["7", "8"], Err("8")),
        ] {
            let wanted: Vec<_> = wanted.iter().map(ToString::to_string).collect();
            let chosen = choose_names(&names, &wanted);
            let chosen = chosen.map(|chosen| chosen.iter().map(|name| name.image).collect::<Vec<_>>());
            assert_eq!(chosen, images, "{wanted:?}");
        }
    }
}
