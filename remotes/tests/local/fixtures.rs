//! Layouts and archives, and what becomes of them.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc};

use bytes::Bytes;
use oci_spec::image::Descriptor;
use serde_json::{Value, json};
use tempfile::TempDir;
use windlass_content::{LocalStore, Options, ProviderExt};
use windlass_images::{ChildrenHandler, HandlerExt, dispatch};
use windlass_remotes::{
    FetchHandler, Resolved, Resolver, Result,
    local::{OciArchive, OciLayout},
};
use windlass_testkit::{Image, ImageBuilder, Layer};

/// Names and bytes of files, in the order of an archive.
pub(crate) type Files = Vec<(String, Bytes)>;

/// An image of two layers, one of which is larger than any buffer.
pub(crate) fn app() -> Image {
    let large: Vec<u8> = (0..1_500_000_u32).map(|it| (it % 251) as u8).collect();
    ImageBuilder::new()
        .layer(Layer::new().file("large", 0o644, &large).plain())
        .layer(Layer::new().file("small", 0o644, b"small"))
        .build()
}

/// Another small one.
pub(crate) fn other() -> Image {
    ImageBuilder::new().layer(Layer::new().file("other", 0o644, b"other")).build()
}

/// An image layout of these images, each with its annotations.
pub(crate) fn layout(images: &[(&Image, Value)]) -> Files {
    let mut files = vec![("oci-layout".to_owned(), Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#))];
    let mut manifests = Vec::new();
    for (image, annotations) in images {
        let mut entry = serde_json::to_value(&image.root).expect("a descriptor is JSON");
        entry["annotations"] = annotations.clone();
        manifests.push(entry);
        files.extend(image.blobs.iter().map(|(digest, (_, bytes))| (blob_name(digest), bytes.clone())));
    }
    files.push((
        "index.json".to_owned(),
        json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into(),
    ));
    files
}

/// The annotation for a tag.
pub(crate) fn tag(tag: &str) -> Value {
    json!({ "org.opencontainers.image.ref.name": tag })
}

/// Where a layout has a blob.
pub(crate) fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// Writes files below a folder.
pub(crate) fn write(files: &Files, folder: &Path) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("it is below the folder")).expect("there is room");
        fs::write(path, bytes).expect("there is room");
    }
}

/// Files as a tar archive.
pub(crate) fn tar(files: &Files) -> Bytes {
    files.iter().fold(Layer::new(), |tar, (name, bytes)| tar.file(name, 0o644, bytes)).tar()
}

/// The same layout as a folder and as an archive, each named after `layout`.
pub(crate) struct Both {
    pub(crate) folder: OciLayout,
    pub(crate) archive: OciArchive,
    pub(crate) temporary: TempDir,
}

impl Both {
    pub(crate) fn of(files: &Files) -> Self {
        let temporary = tempfile::tempdir().expect("there is room");
        let (folder, archive) = (temporary.path().join("layout"), temporary.path().join("layout.tar"));
        write(files, &folder);
        fs::write(&archive, tar(files)).expect("there is room");
        Self {
            folder: OciLayout::open(&folder).expect("it is a layout"),
            archive: OciArchive::open(&archive).expect("it is a layout"),
            temporary,
        }
    }

    pub(crate) fn resolvers(&self) -> [&dyn Resolver; 2] {
        [&self.folder, &self.archive]
    }

    pub(crate) async fn resolve_tag(&self, tag: Option<&str>) -> [Result<Resolved>; 2] {
        [self.folder.resolve_tag(tag).await, self.archive.resolve_tag(tag).await]
    }
}

/// Fetches all of an image into a store, which verifies it, and gives the manifest, config and layers.
pub(crate) async fn pulled(resolved: &Resolved) -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("there is room");
    let store = LocalStore::open(folder.path(), Options::default()).expect("the folder is empty");
    let shared = Arc::new(store.clone());
    let fetch = FetchHandler::new(resolved.fetcher.clone(), shared.clone());
    let two = NonZeroUsize::new(2).expect("two is not zero");
    let done = dispatch(fetch.then(ChildrenHandler::new(shared)), resolved.descriptor.clone(), two).await;
    done.expect("all of the image can be fetched, and has the right digests");
    (folder, store)
}

/// The JSON document of a descriptor.
pub(crate) async fn document(store: &LocalStore, node: &Descriptor) -> Value {
    let bytes = store.read(node, 4 << 20).await.expect("it was fetched");
    serde_json::from_slice(&bytes).expect("it is JSON")
}

/// Asserts that a store has all of an image.
pub(crate) async fn assert_has(store: &LocalStore, image: &Image) {
    for (digest, (media_type, bytes)) in &image.blobs {
        let digest: oci_spec::image::Digest = digest.parse().expect("it is a digest");
        let node = Descriptor::new((&**media_type).into(), bytes.len() as u64, digest.clone());
        assert_eq!(store.read(&node, 4 << 20).await.expect("it was fetched"), bytes, "{digest}");
    }
}
