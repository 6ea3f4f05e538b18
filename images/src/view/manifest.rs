use oci_spec::image::{Descriptor, MediaType};

use super::document::{Document, malformed};
use crate::Result;

/// The manifest of one image, or of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What its descriptor says that it is.
    pub media_type: MediaType,
    /// The config.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
    /// What kind of artifact it is, if it is one that says so.
    pub artifact_type: Option<MediaType>,
    /// What it is attached to, if anything.
    pub subject: Option<Descriptor>,
}

impl Manifest {
    /// Reads a manifest from the bytes that the descriptor names.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none, has schema 1, or is an index as well.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        let document = Document::parse("manifest", descriptor, bytes)?;
        if document.manifests.is_some() {
            return Err(malformed("manifest", descriptor, "it is an index, although its descriptor says otherwise"));
        }
        let config = document.config.ok_or_else(|| malformed("manifest", descriptor, "it has no config"))?;
        Ok(Self {
            media_type: descriptor.media_type().clone(),
            config,
            layers: document.layers.unwrap_or_default(),
            artifact_type: document.artifact_type.as_deref().map(MediaType::from),
            subject: document.subject,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{HEX, descriptor};

    fn config() -> String {
        format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{HEX}","size":2}}"#)
    }

    #[test]
    fn null_layers_are_no_layers_and_unknown_fields_are_passed_over() {
        let json = format!(r#"{{"schemaVersion":2,"config":{},"layers":null,"annotations":null,"x":[1]}}"#, config());

        let manifest = Manifest::parse(&descriptor(MediaType::ImageManifest), json.as_bytes()).expect("it is lenient");

        assert_eq!(manifest.layers, []);
        assert_eq!(manifest.config.digest().digest(), HEX);
    }

    #[test]
    fn what_is_refused_says_why() {
        let config = config();
        for (json, why) in [
            ("<html>".to_owned(), "expected value"),
            ("[]".to_owned(), "expected"),
            ("{}".to_owned(), "it has no config"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "old schema 1"),
            (r#"{"schemaVersion":2,"signatures":[]}"#.to_owned(), "old schema 1"),
            (r#"{"schemaVersion":3}"#.to_owned(), "schemaVersion is 3"),
            (format!(r#"{{"config":{config},"layers":[],"manifests":[]}}"#), "both an index and a manifest"),
            (r#"{"manifests":[]}"#.to_owned(), "it is an index"),
            (
                format!(r#"{{"mediaType":"application/vnd.oci.image.index.v1+json","config":{config}}}"#),
                "it says that it is application/vnd.oci.image.index.v1+json",
            ),
            (format!(r#"{{"config":{}}}"#, config.replace(":2}", ":-2}")), "-2"),
            (format!(r#"{{"config":{}}}"#, config.replace(HEX, "../x")), "digest"),
        ] {
            let err = Manifest::parse(&descriptor(MediaType::ImageManifest), json.as_bytes()).expect_err(&json);

            let err = err.to_string();
            assert!(err.contains(why) && err.starts_with("malformed manifest sha256:"), "{json}: {err}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Manifest::parse(&descriptor(MediaType::ImageManifest), &bytes);
        }
    }
}
