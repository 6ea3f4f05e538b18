//! Stores, images, and archives of them.

use std::{
    io::{self, Cursor, Write},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest};
use tempfile::TempDir;
use windlass_content::{Durability, Ingest, Ingester, LocalStore, Options, Provider, ProviderExt, WriterExt};
use windlass_images::{
    Result,
    export::{ExportOptions, export},
    import::{ImportOptions, Imported, import},
};
use windlass_testkit::{Artifact, Image, ImageBuilder, Index, Layer};

/// An empty store.
pub(crate) fn store() -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("there is room");
    let store = LocalStore::open(folder.path(), Options::default().durability(Durability::Fast));
    (folder, store.expect("the folder is empty"))
}

/// A store with all blobs of these images.
pub(crate) async fn store_with<'a>(images: impl IntoIterator<Item = &'a Image>) -> (TempDir, LocalStore) {
    let (folder, store) = store();
    for image in images {
        for (digest, (_, bytes)) in &image.blobs {
            put(&store, digest, bytes).await;
        }
    }
    (folder, store)
}

async fn put(store: &LocalStore, digest: &str, bytes: &Bytes) {
    let digest: Digest = digest.parse().expect("it is a digest");
    let node = Descriptor::new("x/y".into(), bytes.len() as u64, digest);
    if let Ingest::Open(mut writer) =
        store.ingest(node.digest().as_ref(), &node).await.expect("there is room")
    {
        writer.write(bytes.clone()).await.expect("there is room");
        writer.commit(windlass_content::Labels::new()).await.expect("its digest is right");
    }
}

/// Asserts that a store has all blobs of an image, to the last byte.
pub(crate) async fn assert_has(store: &LocalStore, image: &Image) {
    for (digest, (_, bytes)) in &image.blobs {
        let digest: Digest = digest.parse().expect("it is a digest");
        let node = Descriptor::new("x/y".into(), bytes.len() as u64, digest.clone());
        assert_eq!(store.read(&node, 64 << 20).await.expect("it was imported"), bytes, "{digest}");
    }
}

/// A writer whose bytes can be looked at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("nobody panics").clone()
    }
}

impl Write for Buffer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names, and what they stand for.
pub(crate) fn named(images: &[(&str, &Image)]) -> Vec<(String, Descriptor)> {
    images.iter().map(|(name, image)| ((*name).to_owned(), image.root.clone())).collect()
}

/// An archive of images, with the default options.
pub(crate) async fn exported(provider: &dyn Provider, images: &[(&str, &Image)]) -> Vec<u8> {
    let buffer = Buffer::default();
    let done = export(provider, &named(images), &ExportOptions::default(), buffer.clone()).await;
    done.expect("all is there");
    buffer.bytes()
}

/// Imports an archive into a new store.
pub(crate) async fn imported(
    archive: impl Into<Vec<u8>>,
    options: ImportOptions,
) -> (Result<Vec<Imported>>, LocalStore, TempDir) {
    let (folder, store) = store();
    let imported = import(&store, Cursor::new(archive.into()), &options).await;
    (imported, store, folder)
}

/// Two layers, of which the second is larger than any buffer.
pub(crate) fn app() -> Image {
    let large: Vec<u8> = (0..1_500_000_u32).map(|it| (it % 251) as u8).collect();
    ImageBuilder::new()
        .layer(base())
        .layer(Layer::new().file("large", 0o644, &large).plain())
        .entrypoint(&["/app"])
        .build()
}

/// A layer that several images share.
pub(crate) fn base() -> Layer {
    Layer::new().dir("etc", 0o755).file("etc/base", 0o644, b"base")
}

/// Docker's types.
pub(crate) fn docker() -> Image {
    ImageBuilder::new().docker().layer(base()).layer(Layer::new().file("docker", 0o644, b"docker")).build()
}

/// A zstd layer.
pub(crate) fn zstd() -> Image {
    ImageBuilder::new().layer(base()).layer(Layer::new().file("zstd", 0o644, &[9; 5000]).zstd()).build()
}

/// An image for one platform.
pub(crate) fn of(platform: &str) -> Image {
    let layer = Layer::new().file("platform", 0o644, platform.as_bytes());
    ImageBuilder::new().platform(platform).layer(base()).layer(layer).build()
}

/// An index of two platforms.
pub(crate) fn index() -> Image {
    Index::of(&[of("linux/amd64"), of("linux/arm64")])
}

/// Something that is no image.
pub(crate) fn artifact() -> Image {
    Artifact::new("application/vnd.example.sbom").blob("text/plain", "content").build()
}
