//! What the tests of several modules need: content in memory, and descriptors of it.

use std::{collections::HashMap, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::{Blob, Error, Provider, Result, hash};

pub(crate) const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

/// A descriptor of nothing in particular.
pub(crate) fn descriptor(media_type: MediaType) -> Descriptor {
    Descriptor::new(media_type, 2, format!("sha256:{HEX}").parse::<Digest>().expect("well-formed"))
}

/// Blobs in memory.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<HashMap<String, Bytes>>);

impl Memory {
    pub(crate) fn add(&self, media_type: impl Into<MediaType>, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::new(media_type.into(), bytes.len() as u64, hash::sha256(&bytes));
        self.0.lock().expect("no panic").insert(descriptor.digest().to_string(), bytes);
        descriptor
    }

    /// Adds a manifest with these layers, whose config has these DiffIDs.
    pub(crate) fn add_image(&self, layers: &[&Descriptor], diff_ids: &[Digest]) -> Descriptor {
        let config = serde_json::json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
        let config = self.add(MediaType::ImageConfig, config.to_string());
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.add(MediaType::ImageManifest, manifest.to_string())
    }

    pub(crate) fn add_index(&self, manifests: &[Descriptor]) -> Descriptor {
        let index = serde_json::json!({"schemaVersion": 2, "manifests": manifests});
        self.add(MediaType::ImageIndex, index.to_string())
    }
}

#[async_trait]
impl Provider for Memory {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        let bytes = self.0.lock().expect("no panic").get(descriptor.digest().as_ref()).cloned();
        let bytes = bytes.ok_or_else(|| Error::NotFound { digest: descriptor.digest().clone() })?;
        let size = bytes.len() as u64;
        Ok(Blob::new(std::sync::Arc::new(bytes), size))
    }
}

/// The descriptor, said to be for a platform: `os/architecture` or `os/architecture/variant`.
pub(crate) fn on(mut descriptor: Descriptor, platform: &str) -> Descriptor {
    let mut parts = platform.split('/').map(str::to_owned);
    let mut platform = oci_spec::image::Platform::default();
    platform.set_os(parts.next().expect("an os").as_str().into());
    platform.set_architecture(parts.next().expect("an architecture").as_str().into());
    platform.set_variant(parts.next());
    descriptor.set_platform(Some(platform));
    descriptor
}
