//! Which images to list, and how SQLite finds them without looking at the others.

use oci_spec::image::Digest;
use rusqlite::types::Value;

/// Which images to list, and how many of them. The default is all.
///
/// An image is listed if it fits everything that is set. A page costs the same in a list of ten and of a hundred
/// thousand images, if only one of name, labels and digest is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    name: Option<Name>,
    labels: Vec<(String, Option<String>)>,
    digest: Option<Digest>,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Exact(String),
    Prefix(String),
}

impl Filter {
    /// All images.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only the image of this name. Replaces [`prefix`](Self::prefix).
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: Some(Name::Exact(name.into())), ..self }
    }

    /// Only images whose name starts with this. Replaces [`name`](Self::name).
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        Self { name: Some(Name::Prefix(prefix.into())), ..self }
    }

    /// Only images that have a label of this key, whatever its value. May be called again: then all must be there.
    pub fn label(mut self, key: impl Into<String>) -> Self {
        self.labels.push((key.into(), None));
        self
    }

    /// Only images that have this label with this value. May be called again: then all must be there.
    pub fn label_is(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), Some(value.into())));
        self
    }

    /// Only images whose target is this.
    pub fn digest(self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self }
    }

    /// Goes on behind this name: the last one of the page before. The name itself need not be there any more.
    pub fn after(self, name: impl Into<String>) -> Self {
        Self { after: Some(name.into()), ..self }
    }

    /// The most images to list. No limit if not set.
    pub fn limit(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    /// The question to SQLite: what selects the images as `i`, in the order of their names, and its parameters.
    ///
    /// The most selective index is chosen here: SQLite has no statistics, and would guess.
    pub(super) fn query(&self, columns: &str) -> (String, Vec<Value>) {
        let mut conditions = Conditions::default();
        let (mut labels, exact) = (&self.labels[..], matches!(self.name, Some(Name::Exact(_))));
        let (from, name) = match (labels.split_first(), &self.digest) {
            _ if exact => ("images i".to_owned(), "i.name"),
            (_, Some(_)) => ("images i INDEXED BY images_by_digest".to_owned(), "i.name"),
            (Some(((key, value), rest)), None) => {
                labels = rest;
                conditions.add("l.key = ?", key);
                let index = match value {
                    Some(value) => {
                        conditions.add("l.value = ?", value);
                        "labels_by_value"
                    }
                    None => "labels_by_key",
                };
                let join = format!("labels l INDEXED BY {index} CROSS JOIN images i ON i.name = l.image");
                (join, "l.image")
            }
            (None, None) => ("images i".to_owned(), "i.name"),
        };
        if let Some(digest) = &self.digest {
            conditions.add("i.digest = ?", digest.as_ref());
        }
        match &self.name {
            Some(Name::Exact(exact)) => conditions.add(&format!("{name} = ?"), exact),
            Some(Name::Prefix(prefix)) => conditions.add_prefix(name, prefix, self.after.as_deref()),
            None => {}
        }
        for (key, value) in labels {
            let exists = "EXISTS (SELECT 1 FROM labels x WHERE x.image = i.name AND x.key = ?";
            match value {
                None => conditions.add(&format!("{exists})"), key),
                Some(value) => {
                    conditions.add(&format!("{exists} AND x.value = ?)"), key);
                    conditions.values.push(Value::Text(value.clone()));
                }
            }
        }
        // Only one lower bound: SQLite would start at the first one, and look at all up to the other.
        if let Some(after) = &self.after
            && !matches!(&self.name, Some(Name::Prefix(prefix)) if prefix > after)
        {
            conditions.add(&format!("{name} > ?"), after);
        }
        let limit = self.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
        let wanted =
            if conditions.texts.is_empty() { "1".to_owned() } else { conditions.texts.join(" AND ") };
        let query = format!("SELECT {columns} FROM {from} WHERE {wanted} ORDER BY {name} LIMIT {limit}");
        (query, conditions.values)
    }
}

/// What must hold of an image, with the values of its question marks.
#[derive(Default)]
struct Conditions {
    texts: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, text: &str, value: &str) {
        self.texts.push(text.to_owned());
        self.values.push(Value::Text(value.to_owned()));
    }

    /// What is behind `after` is bounded by that already, if the prefix is before it.
    fn add_prefix(&mut self, column: &str, prefix: &str, after: Option<&str>) {
        if after.is_none_or(|after| prefix > after) {
            self.add(&format!("{column} >= ?"), prefix);
        }
        if let Some(end) = successor(prefix) {
            self.add(&format!("{column} < ?"), &end);
        }
    }
}

/// The least text that is greater than all that start with `prefix`; `None` if there is none.
pub(super) fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // The range passes over the surrogates, which are no characters.
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use windlass_content::hash::sha256;

    use super::*;
    use crate::{Store, store::record::COLUMNS};

    /// No filter of one kind looks at images that it does not list, or sorts them.
    #[test]
    fn a_page_is_read_from_an_index() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let store = Store::open(dir.path().join("images.db")).expect("it opens");
        for filter in [
            Filter::all(),
            Filter::all().name("a"),
            Filter::all().prefix("a"),
            Filter::all().label("a"),
            Filter::all().label_is("a", "b"),
            Filter::all().digest(sha256(b"a")),
        ] {
            let (query, values) = filter.clone().after("0").limit(10).query(COLUMNS);
            let plan: Vec<String> = store
                .run("explain", |it| {
                    it.prepare(&format!("EXPLAIN QUERY PLAN {query}"))?
                        .query_map(rusqlite::params_from_iter(values), |row| row.get(3))?
                        .collect()
                })
                .expect("it explains");
            assert!(
                plan.iter().all(|it| !it.contains("SCAN") && !it.contains("B-TREE")),
                "{filter:?}: {plan:?}"
            );
        }
    }

    #[test]
    fn a_prefix_ends_where_its_successor_begins() {
        for (prefix, end) in [
            ("a", Some("b")),
            ("docker.io/", Some("docker.io0")),
            ("a\u{d7ff}", Some("a\u{e000}")),
            ("a\u{10ffff}", Some("b")),
            ("\u{10ffff}", None),
            ("", None),
        ] {
            assert_eq!(successor(prefix).as_deref(), end, "{prefix:?}");
        }
    }
}
