//! What is unpacked: an image of a layout, or one that is made up.

use std::{fs, path::Path};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::Value;
use windlass_content::{Durability, Ingest, Ingester, Labels, LocalStore, Options, WriterExt};
use windlass_testkit::{ImageBuilder, Layer};

/// The layers of a real Python image, in entries and bytes.
const SHAPE: [(usize, usize); 6] = [
    (7533, 161_068_796),
    (567, 9_850_015),
    (3644, 62_198_344),
    (4942, 119_738_713),
    (9790, 114_732_737),
    (8884, 8_201_261),
];
/// How much smaller the one that is made up is.
const PART: usize = 2;

/// Takes an image into a store in `folder`, and gives its manifest.
pub(crate) async fn load(folder: &Path, layout: Option<&str>) -> (LocalStore, Descriptor) {
    let options = Options::default().durability(Durability::Fast);
    let store = LocalStore::open(folder.join("content"), options).expect("there is room");
    let manifest = match layout {
        Some(layout) => {
            let (folder, tag) = layout.rsplit_once(':').expect("it is PATH:TAG");
            from_layout(&store, Path::new(folder), tag).await
        }
        None => made_up(&store).await,
    };
    (store, manifest)
}

async fn put(store: &LocalStore, descriptor: &Descriptor, bytes: bytes::Bytes) {
    match store.ingest(descriptor.digest().as_ref(), descriptor).await.expect("there is room") {
        Ingest::Present => {}
        Ingest::Open(mut writer) => {
            writer.write(bytes).await.expect("there is room");
            writer.commit(Labels::new()).await.expect("the bytes are right");
        }
    }
}

async fn from_layout(store: &LocalStore, folder: &Path, tag: &str) -> Descriptor {
    let blob = |descriptor: &Descriptor| {
        let path = folder.join("blobs").join(descriptor.digest().as_ref().replace(':', "/"));
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let descriptor =
        |value: &Value| -> Descriptor { serde_json::from_value(value.clone()).expect("it is a descriptor") };
    let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).expect("it is a layout"))
        .expect("the index is JSON");
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifests = index["manifests"].as_array().expect("it lists manifests");
    let manifest = descriptor(manifests.iter().find(named).expect("the tag is there"));
    let bytes = blob(&manifest);
    let parsed: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
    put(store, &manifest, bytes.into()).await;
    for part in parsed["layers"].as_array().expect("it is an image").iter().chain([&parsed["config"]]) {
        let part = descriptor(part);
        put(store, &part, blob(&part).into()).await;
    }
    Descriptor::new(MediaType::ImageManifest, manifest.size(), manifest.digest().clone())
}

async fn made_up(store: &LocalStore) -> Descriptor {
    let layers = SHAPE.into_iter().enumerate().map(|(number, (entries, bytes))| {
        let (entries, size) = (entries / PART, bytes / entries);
        let text = text(2 * size + 4096, number as u32);
        (0..entries).fold(Layer::new().dir("usr", 0o755), |layer, entry| match entry % 12 {
            0 => layer.dir(format!("usr/{number}-{}", entry / 12), 0o755),
            _ => {
                let start = entry * 7 % 4096;
                // Few are large, most are small.
                let length = match entry % 12 {
                    1 => size * 3,
                    2..5 => size * 2,
                    _ => size / 2,
                };
                let content = &text[start..(start + length).min(text.len())];
                layer.file(format!("usr/{number}-{}/{entry}", entry / 12), 0o644, content)
            }
        })
    });
    let image = layers.fold(ImageBuilder::new(), ImageBuilder::layer).build();
    for descriptor in [vec![image.root.clone(), image.config()], image.layers()].concat() {
        put(store, &descriptor, image.blob(descriptor.digest())).await;
    }
    image.root.clone()
}

/// Bytes that compress about as well as programs do.
fn text(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let words: Vec<Vec<u8>> = (0..512).map(|_| (0..2 + next() % 9).map(|_| next() as u8).collect()).collect();
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        text.extend(&words[next() as usize % words.len()]);
    }
    text
}
