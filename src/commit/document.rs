//! JSON objects of which a field is changed, and all else stays as it was, in its order and in its own words.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};

/// An object's fields.
#[derive(Debug, Default)]
pub(super) struct Object(Vec<(String, Box<RawValue>)>);

/// What an array holds. `null`, or nothing, is an empty one.
pub(super) type List = Vec<Box<RawValue>>;

impl Object {
    /// Reads an object; `null` has no fields.
    pub(super) fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }

    /// A field that is an object. One that is not there has no fields.
    pub(super) fn object(&self, name: &str) -> serde_json::Result<Self> {
        self.get(name).map_or_else(|| Ok(Self::default()), |raw| serde_json::from_str(raw.get()))
    }

    /// A field that is an array.
    pub(super) fn list(&self, name: &str) -> serde_json::Result<List> {
        let list: Option<Option<List>> =
            self.get(name).map(|raw| serde_json::from_str(raw.get())).transpose()?;
        Ok(list.flatten().unwrap_or_default())
    }

    /// Whether a field is `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|raw| raw.get() == "true")
    }

    /// The text of a field, if it is one.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?.get()).ok()
    }

    /// Sets a field, in its place if it is there, else at the end.
    pub(super) fn set(&mut self, name: &str, value: &impl Serialize) -> serde_json::Result<()> {
        let raw = to_raw_value(value)?;
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => *old = raw,
            None => self.0.push((name.to_owned(), raw)),
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, raw)| &**raw)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> Result<Object, E> {
                Ok(Object::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_any(Fields)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, raw)| (key, raw)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_stays_as_it_was() {
        let text = br#"{"z":1.0,"a":{"b":null, "x":[ ]},"list":null,"unknown":"\u0041"}"#;
        let mut object = Object::parse(text).expect("it is one");
        let mut inner = object.object("a").expect("it is one");
        inner.set("b", &[1]).expect("a number is JSON");

        object.set("a", &inner).expect("it is JSON");
        object.set("new", &"text").expect("it is JSON");

        let new = serde_json::to_string(&object).expect("it is JSON");
        assert_eq!(new, r#"{"z":1.0,"a":{"b":[1],"x":[ ]},"list":null,"unknown":"\u0041","new":"text"}"#);
        assert!(object.list("list").expect("null is empty").is_empty());
        assert!(object.list("missing").expect("what is missing is empty").is_empty());
        assert!(object.list("unknown").is_err());
        assert_eq!(object.text("unknown").as_deref(), Some("A"));
    }
}
