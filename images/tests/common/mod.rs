//! A folder with a content store and an image list, and images to put into it.
#![allow(dead_code, unreachable_pub, reason = "each test uses what it needs")]

use std::sync::Arc;

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};
use tempfile::TempDir;
use windlass_content::{
    Durability, Ingest, Ingester, LocalStore, Options, Provider, WriterExt, hash::sha256,
};
use windlass_images::{Lease, Resource, Store, gc::Gc};

pub struct Root {
    pub dir: TempDir,
    pub content: LocalStore,
    pub store: Store,
}

impl Root {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let (content, store) = open(dir.path());
        Self { dir, content, store }
    }

    pub fn gc(&self) -> Gc {
        Gc::new(self.store.clone(), Arc::new(self.content.clone()))
    }

    pub async fn add(&self, blob: &Blob) -> Descriptor {
        ingest(&self.content, blob).await;
        blob.descriptor.clone()
    }

    /// Adds all blobs of an image, and gives its manifest.
    pub async fn add_image(&self, image: &[Blob]) -> Descriptor {
        for blob in image {
            self.add(blob).await;
        }
        image[0].descriptor.clone()
    }

    pub async fn has(&self, blob: &Blob) -> bool {
        self.content.open(&blob.descriptor).await.is_ok()
    }
}

pub fn open(path: &std::path::Path) -> (LocalStore, Store) {
    let options = Options::default().durability(Durability::Fast);
    let content = LocalStore::open(path.join("content"), options).expect("it opens");
    (content, Store::open(path.join("images.db")).expect("it opens"))
}

/// Bytes with their descriptor.
#[derive(Clone, Debug)]
pub struct Blob {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
}

impl Blob {
    pub fn new(media_type: MediaType, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { descriptor: Descriptor::new(media_type, bytes.len() as u64, sha256(&bytes)), bytes }
    }

    pub fn json(media_type: MediaType, value: &Value) -> Self {
        Self::new(media_type, value.to_string())
    }

    pub fn digest(&self) -> Digest {
        self.descriptor.digest().clone()
    }
}

pub fn layer(text: &str) -> Blob {
    Blob::new(MediaType::ImageLayer, text.to_owned())
}

/// A manifest, its config and its layers, in this order. The DiffIDs are the layers' digests.
pub fn image(name: &str, layers: &[Blob]) -> Vec<Blob> {
    image_with(name, layers, json!({}))
}

/// As [`image`], with further fields of the manifest.
pub fn image_with(name: &str, layers: &[Blob], more: Value) -> Vec<Blob> {
    let diff_ids: Vec<_> = layers.iter().map(Blob::digest).collect();
    let config =
        json!({"os": "linux", "architecture": "amd64", "author": name, "rootfs": {"diff_ids": diff_ids}});
    let config = Blob::json(MediaType::ImageConfig, &config);
    let descriptors: Vec<_> = layers.iter().map(|it| &it.descriptor).collect();
    let mut manifest = json!({"schemaVersion": 2, "config": config.descriptor, "layers": descriptors});
    let fields = manifest.as_object_mut().expect("it is an object");
    fields.extend(more.as_object().expect("it is an object").clone());
    let manifest = Blob::json(MediaType::ImageManifest, &manifest);
    [vec![manifest, config], layers.to_vec()].concat()
}

pub fn index(manifests: &[&Descriptor]) -> Blob {
    Blob::json(MediaType::ImageIndex, &json!({"schemaVersion": 2, "manifests": manifests}))
}

pub async fn ingest(content: &LocalStore, blob: &Blob) {
    match content.ingest(blob.descriptor.digest().as_ref(), &blob.descriptor).await.expect("it opens") {
        Ingest::Present => {}
        Ingest::Open(mut writer) => {
            if writer.offset() == 0 {
                writer.write(blob.bytes.clone()).await.expect("it is written");
            }
            writer.commit(windlass_content::Labels::new()).await.expect("it is right");
        }
    }
}

/// Takes a blob in as a pull does: holds it before looking.
pub async fn pull(lease: &Lease, content: &LocalStore, blob: &Blob) {
    lease.hold(&Resource::Blob(blob.digest())).await.expect("it holds");
    ingest(content, blob).await;
}
