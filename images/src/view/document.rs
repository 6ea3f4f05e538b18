//! What manifests and indexes have in common, and what tells them apart.

use oci_spec::image::{Descriptor, MediaType};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{Error, Result, media_type};

/// Every field that a manifest or an index may have and that counts here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    #[serde(default, deserialize_with = "present")]
    pub(super) manifests: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) layers: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) artifact_type: Option<String>,
    pub(super) subject: Option<Descriptor>,
    // Only schema 1 has these.
    fs_layers: Option<IgnoredAny>,
    signatures: Option<IgnoredAny>,
}

impl Document {
    /// Reads a document that the descriptor announces as `kind`.
    pub(super) fn parse(kind: &str, descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        let document: Self = serde_json::from_slice(bytes).map_err(|error| malformed(kind, descriptor, error))?;
        let refuse = |reason: &str| Err(malformed(kind, descriptor, reason));
        if document.schema_version == Some(1) || document.fs_layers.is_some() || document.signatures.is_some() {
            return refuse("it has Docker's old schema 1, which is not supported; push the image again with a current tool");
        }
        if let Some(version) = document.schema_version.filter(|version| *version != 2) {
            return refuse(&format!("its schemaVersion is {version}, but 2 is the only one that is known"));
        }
        if document.manifests.is_some() && (document.layers.is_some() || document.config.is_some()) {
            return refuse("it is both an index and a manifest, which may hide what it really is");
        }
        // Docker's and OCI's documents have the same fields, so only the kind has to agree with the descriptor.
        if let Some(own) = document.media_type.as_deref().filter(|own| !own.is_empty()) {
            let own_type = MediaType::from(own);
            let agrees = match kind {
                "index" => media_type::is_index(&own_type),
                _ => media_type::is_manifest(&own_type),
            };
            if !agrees {
                return refuse(&format!("it says that it is {own}, but its descriptor says {}", descriptor.media_type()));
            }
        }
        Ok(document)
    }
}

pub(super) fn malformed(kind: &str, descriptor: &Descriptor, reason: impl ToString) -> Error {
    Error::Malformed { what: format!("{kind} {}", descriptor.digest()), reason: reason.to_string() }
}

/// A list that is there, and is empty if it is `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Descriptor>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?.unwrap_or_default()))
}
