//! What `docker save` writes: files, and a `manifest.json` that names them (Docker's image spec, versions 1.1 and 1.2).
//!
//! It has no manifest in the registries' sense, so one is made: an OCI manifest, because only OCI has media types for
//! layers that are not compressed, or are with zstd. The same files always give the same manifest.

use bytes::Bytes;
use oci_spec::image::{Descriptor, MediaType};
use serde::{Deserialize, Serialize};

use super::Named;

/// The name of the file that lists the images.
pub const MANIFEST: &str = "manifest.json";

/// The most images in one archive: each has a config to be read.
pub const MAX_IMAGES: usize = 1024;

/// One image of `manifest.json`, as files of the archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    /// The file of the config.
    pub config: String,
    /// The image's names.
    pub repo_tags: Option<Vec<String>>,
    /// The files of the layers, lowest first.
    pub layers: Option<Vec<String>>,
}

impl Saved {
    /// The names of the image, of which there is one that says nothing if it has none.
    pub fn names(&self, image: usize) -> Vec<Named> {
        let named = |tag| Named::new(image, self.id(), &[tag]);
        match self.repo_tags.as_deref() {
            None | Some([]) => vec![named(None)],
            Some(tags) => tags.iter().map(|tag| named(Some(tag))).collect(),
        }
    }

    /// The files of the layers, lowest first.
    pub fn layers(&self) -> &[String] {
        self.layers.as_deref().unwrap_or_default()
    }

    /// The image's ID, if the config is named after it: `HEX.json`, or `blobs/sha256/HEX`.
    fn id(&self) -> String {
        let hex = self.config.strip_prefix("blobs/sha256/").or_else(|| self.config.strip_suffix(".json"));
        hex.map_or_else(|| self.config.clone(), |hex| format!("sha256:{hex}"))
    }
}

/// What a layer is by its first bytes.
pub fn layer_type(start: &[u8]) -> MediaType {
    match start {
        [0x1f, 0x8b, ..] => MediaType::ImageLayerGzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => MediaType::ImageLayerZstd,
        _ => MediaType::ImageLayer,
    }
}

/// The bytes of the manifest of an image. They depend on nothing but what is in it.
pub fn make_manifest(config: &Descriptor, layers: &[Descriptor]) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest<'a> {
        schema_version: u8,
        media_type: &'a str,
        config: Node<'a>,
        layers: Vec<Node<'a>>,
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: MediaType::ImageManifest.as_ref(),
        config: config.into(),
        layers: layers.iter().map(Node::from).collect(),
    };
    serde_json::to_vec(&manifest).expect("strings and numbers are JSON").into()
}

/// A descriptor whose fields are always written in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Node<'a> {
    media_type: &'a str,
    digest: &'a str,
    size: u64,
}

impl<'a> From<&'a Descriptor> for Node<'a> {
    fn from(node: &'a Descriptor) -> Self {
        Self { media_type: node.media_type().as_ref(), digest: node.digest().as_ref(), size: node.size() }
    }
}
