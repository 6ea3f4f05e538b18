use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;
use serde_json::Value;

/// Where a manifest or index of any kind points to. More lenient than the other views: whoever asks what must not be
/// deleted wants all that can be read, of documents also that nobody should run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Links {
    /// The config, if it has one.
    pub config: Option<Descriptor>,
    /// Everything else below it: layers, blobs and manifests.
    pub below: Vec<Descriptor>,
    /// What it is about: it is a referrer then (image-spec, manifest.md, `subject`).
    pub subject: Option<Digest>,
}

impl Links {
    /// Reads the bytes of a manifest or index. `None` if they are no JSON object. What is no descriptor is passed over.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(bytes).ok().filter(Value::is_object)?;
        let descriptor = |value: &Value| Descriptor::deserialize(value).ok();
        let below = ["layers", "manifests", "blobs"]
            .iter()
            .filter_map(|field| document.get(field)?.as_array())
            .flatten()
            .filter_map(descriptor)
            .collect();
        let config = document.get("config").and_then(descriptor);
        let subject = document.get("subject").and_then(descriptor).map(|it| it.digest().clone());
        Some(Self { config, below, subject })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_can_be_read_counts() {
        let digest = |n: u8| format!("sha256:{}", n.to_string().repeat(64));
        let json = |n: u8| format!(r#"{{"mediaType":"a","size":1,"digest":"{}"}}"#, digest(n));
        let bytes = format!(
            r#"{{"config":{},"layers":[{},{{"size":1}}],"manifests":null,"blobs":[{}],"subject":{}}}"#,
            json(1),
            json(2),
            json(3),
            json(4)
        );
        let links = Links::parse(bytes.as_bytes()).expect("it is an object");
        let below: Vec<_> = links.below.iter().map(|it| it.digest().to_string()).collect();
        assert_eq!(links.config.expect("it has one").digest().to_string(), digest(1));
        assert_eq!(below, [digest(2), digest(3)]);
        assert_eq!(links.subject.expect("it has one").to_string(), digest(4));
        assert_eq!(Links::parse(b"[]"), None);
        assert_eq!(Links::parse(b"\x1f\x8b"), None);
    }
}
