//! JSON objects that can be changed in one place and written back, all else as it was.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// Why a text is not what it should be. Never quotes the text, which may hold secrets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// Counted from 1, if it is known.
    pub(super) line: Option<usize>,
    pub(super) reason: String,
}

/// An object's fields, in the text's order and in its own words. Of fields of the same name the last one counts.
#[derive(Default)]
pub(super) struct Object<'a>(pub(super) Vec<(String, Node<'a>)>);

/// A field's value.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Node<'a> {
    /// As the text has it.
    Old(&'a RawValue),
    /// To be written anew.
    New(Object<'a>),
    /// To be written anew.
    Text(String),
}

impl<'a> Object<'a> {
    /// Reads a whole file. One that is empty, or `null`, has no fields.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let text = str::from_utf8(bytes).map_err(|error| {
            let line = line_of(bytes, error.valid_up_to());
            Malformed { line: Some(line), reason: "it is not UTF-8".into() }
        })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map_err(|error| {
            let reason = match error.classify() {
                serde_json::error::Category::Data => "it is not a JSON object".into(),
                serde_json::error::Category::Eof => "it ends before the JSON is complete".into(),
                _ => format!("it is not JSON at column {}", error.column()),
            };
            Malformed { line: Some(error.line()), reason }
        })
    }

    /// A field of the file, whatever its case: Docker reads them so. `None` if it is not there, or `null`.
    pub(super) fn field(&self, name: &str) -> Option<&Node<'a>> {
        let (_, node) = self.0.iter().rev().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        match node {
            Node::Old(raw) if raw.get() == "null" => None,
            node => Some(node),
        }
    }
}

impl<'a> Node<'a> {
    /// What is inside, if it is an object; `null` has no fields.
    pub(super) fn object(&self) -> Option<Object<'a>> {
        match self {
            Self::Old(raw) => serde_json::from_str(raw.get()).ok(),
            Self::New(_) | Self::Text(_) => None,
        }
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Old(raw) => serde_json::from_str(raw.get()).ok(),
            Self::Text(text) => Some(text.clone()),
            Self::New(_) => None,
        }
    }

    /// Says what is wrong with the value, and on which line of the file it begins.
    pub(super) fn malformed(&self, file: &[u8], reason: impl Into<String>) -> Malformed {
        let line = match self {
            Self::Old(raw) => {
                raw.get().as_ptr().addr().checked_sub(file.as_ptr().addr()).map(|at| line_of(file, at))
            }
            Self::New(_) | Self::Text(_) => None,
        };
        Malformed { line, reason: reason.into() }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Object<'de>, E> {
                Ok(Object::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some((key, raw)) = map.next_entry::<String, &RawValue>()? {
                    fields.push((key, Node::Old(raw)));
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_any(Fields)
    }
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, node)| (key, node)))
    }
}

/// The line of a byte, counted from 1.
fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count()
}
