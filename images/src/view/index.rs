use oci_spec::image::Descriptor;
use serde::Deserialize;

use crate::Result;

/// An image index, or Docker's manifest list (image-spec, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Index {
    /// Manifests, most of them with a platform, in the order of preference.
    #[serde(default, deserialize_with = "super::or_default")]
    pub manifests: Vec<Descriptor>,
}

impl Index {
    /// Reads the bytes of an index.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none, or could as well be something else.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        super::parse_unambiguous("index", descriptor, bytes, &["config", "layers", "fsLayers"])
    }
}
