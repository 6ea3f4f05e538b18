use oci_spec::image::Descriptor;
use serde::Deserialize;

use crate::Result;

/// The manifest of one image or artifact (image-spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// The image's config.
    pub config: Descriptor,
    /// Its layers, lowest first.
    #[serde(default, deserialize_with = "super::or_default")]
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// Reads the bytes of a manifest.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none, could as well be something else, or is Docker's schema 1.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        super::parse_unambiguous("manifest", descriptor, bytes, &["manifests", "fsLayers"])
    }
}
