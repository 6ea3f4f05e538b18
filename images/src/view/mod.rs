//! Lenient views of fetched JSON.
//!
//! They take what registries really serve (`null` for an empty list, unknown fields), keep only what windlass uses, and
//! are never written back.

mod config;
mod index;
mod links;
mod manifest;

use std::fmt;

use oci_spec::image::Descriptor;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

pub use config::{Config, ContainerConfig};
pub use index::Index;
pub use links::Links;
pub use manifest::Manifest;

use crate::{Error, Result, media_type};

/// Reads JSON of which the descriptor says what it is.
fn parse<T: DeserializeOwned>(what: &'static str, descriptor: &Descriptor, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| malformed(what, descriptor, error))
}

/// As [`parse`], for manifests and indexes, whose kind must be beyond doubt (CVE-2021-41190).
fn parse_unambiguous<T: DeserializeOwned>(
    what: &'static str,
    descriptor: &Descriptor,
    bytes: &[u8],
    foreign: &[&str],
) -> Result<T> {
    let document: Value = parse(what, descriptor, bytes)?;
    let inside = document.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    if document.get("schemaVersion").and_then(Value::as_u64) == Some(1)
        || media_type::DOCKER_SCHEMA_1.contains(&inside)
    {
        let reason = "it is a Docker schema 1 manifest, which is not supported; push the image again with a current tool";
        return Err(malformed(what, descriptor, reason));
    }
    if let Some(field) =
        foreign.iter().find(|field| document.get(**field).is_some_and(|value| !value.is_null()))
    {
        return Err(malformed(
            what,
            descriptor,
            format_args!("it has {field:?}, which belongs to another kind"),
        ));
    }
    let outside = descriptor.media_type().as_ref();
    if !inside.is_empty() && inside != outside {
        return Err(malformed(
            what,
            descriptor,
            format_args!("it says to be {inside}, and was announced as {outside}"),
        ));
    }
    serde_json::from_value(document).map_err(|error| malformed(what, descriptor, error))
}

fn malformed(what: &'static str, descriptor: &Descriptor, reason: impl fmt::Display) -> Error {
    Error::Malformed { what, digest: descriptor.digest().clone(), reason: reason.to_string() }
}

/// `null` is what it would be if it was left out.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    use super::*;

    fn descriptor(media_type: MediaType, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, bytes.len() as u64, windlass_content::hash::sha256(bytes))
    }

    #[test]
    fn null_lists_are_empty_and_unknown_fields_are_no_matter() {
        let bytes = br#"{"schemaVersion":2,"manifests":null,"new":{"field":1}}"#;
        let index = Index::parse(&descriptor(MediaType::ImageIndex, bytes), bytes).expect("it is lenient");
        assert!(index.manifests.is_empty());

        let bytes =
            br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["a"],"Healthcheck":{}},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = Config::parse(&descriptor(MediaType::ImageConfig, bytes), bytes).expect("it is lenient");
        assert_eq!(config.config.cmd, ["a"]);
        assert!(config.config.env.is_empty());
    }

    #[test]
    fn what_is_not_clearly_a_manifest_is_refused() {
        for (bytes, why) in [
            (&b"<html>"[..], "expected value"),
            (br#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, "\"manifests\""),
            (br#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "announced as"),
            (br#"{"schemaVersion":2,"layers":[]}"#, "missing field `config`"),
            (
                br#"{"config":{"mediaType":"a","size":-1,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}"#,
                "-1",
            ),
            (br#"{"config":{"mediaType":"a","size":1,"digest":"../../etc"}}"#, "digest"),
        ] {
            let err = Manifest::parse(&descriptor(MediaType::ImageManifest, bytes), bytes).expect_err(why);
            assert!(err.to_string().contains(why), "{why}: {err}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_view_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&descriptor(MediaType::ImageManifest, &bytes), &bytes);
            let _ = Index::parse(&descriptor(MediaType::ImageIndex, &bytes), &bytes);
            let _ = Config::parse(&descriptor(MediaType::ImageConfig, &bytes), &bytes);
        }
    }
}
