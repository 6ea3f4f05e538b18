//! What is promised of images that are read from a store: children, order, and what is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::{Descriptor, MediaType};
use proptest::prelude::*;
use serde_json::json;
use windlass_content::{Blob, Error, Provider, Result, hash};
use windlass_images::{
    BoxError, ChildrenHandler, Filter, Handler, Image, Next, Platform, Store, check, manifests, media_type,
    walk,
};

/// Blobs in memory.
#[derive(Debug, Default)]
struct Memory(Mutex<HashMap<String, Bytes>>);

impl Memory {
    fn add(&self, media_type: MediaType, text: impl ToString) -> Descriptor {
        let bytes = Bytes::from(text.to_string());
        let descriptor = Descriptor::new(media_type, bytes.len() as u64, hash::sha256(&bytes));
        self.0.lock().expect("nobody panics").insert(descriptor.digest().to_string(), bytes);
        descriptor
    }

    /// A manifest with these layers, whose config has this many DiffIDs.
    fn image(&self, layers: &[&Descriptor], diff_ids: usize) -> Descriptor {
        let diff_ids = vec![hash::sha256(b"diff"); diff_ids];
        let config = json!({"os": "linux", "architecture": "s390x", "rootfs": {"diff_ids": diff_ids}});
        let config = self.add(MediaType::ImageConfig, config);
        self.add(MediaType::ImageManifest, json!({"schemaVersion": 2, "config": config, "layers": layers}))
    }

    fn index(&self, manifests: &[&Descriptor]) -> Descriptor {
        self.add(MediaType::ImageIndex, json!({"schemaVersion": 2, "manifests": manifests}))
    }
}

#[async_trait]
impl Provider for Memory {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        let bytes = self.0.lock().expect("nobody panics").get(descriptor.digest().as_ref()).cloned();
        let bytes = bytes.ok_or_else(|| Error::NotFound { digest: descriptor.digest().clone() })?;
        let size = bytes.len() as u64;
        Ok(Blob::new(Arc::new(bytes), size))
    }
}

fn descriptor(media_type: MediaType) -> Descriptor {
    Descriptor::new(media_type, 2, hash::sha256(b"{}"))
}

fn s390x(mut manifest: Descriptor) -> Descriptor {
    let platform = json!({"os": "linux", "architecture": "s390x"});
    manifest.set_platform(Some(serde_json::from_value(platform).expect("it is a platform")));
    manifest
}

#[tokio::test]
async fn children_are_the_platforms_manifest_then_config_and_layers() {
    let store = Arc::new(Memory::default());
    let layer = store.add(MediaType::ImageLayer, "layer");
    let manifest = s390x(store.image(&[&layer], 1));
    let index = store.index(&[&manifest]);
    let handler = ChildrenHandler::new(store).platform("linux/s390x".parse().expect("a platform"));

    let Next::Visit(manifests) = handler.handle(&index).await.expect("it is there") else {
        panic!("skipped")
    };
    let Next::Visit(below) = handler.handle(&manifest).await.expect("it is there") else { panic!("skipped") };

    assert_eq!(manifests, [manifest]);
    assert_eq!((below.len(), &below[1]), (2, &layer));
    assert!(media_type::is_config(below[0].media_type()));
    assert_eq!(handler.handle(&layer).await.expect("nothing is read"), Next::Visit(vec![]));
}

#[tokio::test]
async fn a_missing_platform_and_a_large_manifest_say_so() {
    let store = Arc::new(Memory::default());
    let index = store.index(&[&s390x(store.image(&[], 0))]);
    let handler = ChildrenHandler::new(store).platform("linux/mips".parse().expect("a platform"));

    let none = handler.handle(&index).await.expect_err("it is not offered").to_string();
    let large = handler.max_manifest(1).handle(&index).await.expect_err("it is larger").to_string();

    assert!(none.contains("linux/mips") && none.contains("linux/s390x"), "{none}");
    assert!(large.contains("more than the limit of 1"), "{large}");
}

#[tokio::test]
async fn a_list_that_is_too_long_is_refused() {
    let store = Arc::new(Memory::default());
    let layers = ["a", "b"].map(|text| store.add(MediaType::ImageLayer, text));
    let image = store.image(&[&layers[0], &layers[1]], 2);
    let index = store.index(&[&image, &image]);
    for node in [&image, &index] {
        let handler = ChildrenHandler::new(store.clone());

        assert!(handler.clone().max_entries(2).handle(node).await.is_ok());
        let err = handler.max_entries(1).handle(node).await.expect_err("it is too long").to_string();

        assert_eq!(err, format!("{} lists 2 entries, more than the limit of 1", node.digest()));
    }
}

#[tokio::test]
async fn an_image_is_opened_through_nested_indexes_and_its_parts_must_agree() {
    let store = Memory::default();
    let layer = store.add(MediaType::ImageLayer, "layer");
    let good = s390x(store.image(&[&layer], 1));
    let nested = store.index(&[&store.index(&[&good])]);
    let platform: Platform = "linux/s390x".parse().expect("a platform");

    let image = Image::open(&store, &nested, &platform).await.expect("all is there");
    let short = Image::open(&store, &store.image(&[&layer], 0), &platform).await.expect_err("one is missing");

    assert_eq!(image.descriptor(), &good);
    assert_eq!(image.chain_id().expect("one layer").as_ref(), hash::sha256(b"diff").as_ref());
    assert!(short.to_string().contains("1 layers, and its config has 0"), "{short}");
}

#[tokio::test]
async fn a_check_says_what_is_missing_for_each_platform() {
    let store = Memory::default();
    let [layer, other] = ["layer", "other"].map(|text| store.add(MediaType::ImageLayer, text));
    let whole = s390x(store.image(&[&layer, &layer], 2));
    let partial = store.image(&[&layer, &other], 2);
    let mut unfetched = s390x(store.add(MediaType::ImageManifest, "unfetched"));
    unfetched.set_platform(None);
    let nested = store.index(&[&partial]);
    let index = store.index(&[&whole, &nested, &unfetched, &nested]);
    store.0.lock().expect("nobody panics").remove(other.digest().as_ref());
    // What is damaged is as good as missing.
    store.0.lock().expect("nobody panics").insert(unfetched.digest().to_string(), "UNFETCHED".into());
    let platform: Platform = "linux/s390x".parse().expect("a platform");

    let one = check(&store, &index, Some(&platform)).await.expect("it can be read");
    let all = check(&store, &index, None).await.expect("it can be read");
    let image = Image::open(&store, &index, &platform).await.expect("it is there");
    let manifests = manifests(&store, &index).await.expect("it can be read");

    assert_eq!((one.len(), &one[0].descriptor, one[0].is_complete()), (1, &whole, true));
    assert_eq!((one[0].platform.as_ref(), one[0].size), (Some(&platform), image.size()));
    let missing: Vec<_> = all.iter().map(|it| &it.missing[..]).collect();
    assert_eq!(missing, [&[][..], &[other], &[unfetched.clone()]]);
    assert_eq!(manifests, [whole, partial, unfetched]);
}

#[tokio::test]
async fn a_walk_visits_parents_first_and_each_digest_once() {
    let store = Memory::default();
    let [root, a, b, c] = ["root", "a", "b", "c"].map(|text| store.add(MediaType::ImageLayer, text));
    let order = Mutex::new(Vec::new());
    let handler = |node: Descriptor| {
        let children = match &node {
            it if *it == root => vec![a.clone(), c.clone(), b.clone()],
            it if *it == a => vec![b.clone(), root.clone()],
            _ => vec![],
        };
        order.lock().expect("nobody panics").push(node);
        async move { Ok::<_, BoxError>(Next::Visit(children)) }
    };

    walk(&handler, root.clone()).await.expect("no node fails");

    assert_eq!(*order.lock().expect("nobody panics"), [root.clone(), a.clone(), b.clone(), c.clone()]);
}

#[test]
fn a_new_list_may_be_opened_and_written_by_many_at_once() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("images.db");

    std::thread::scope(|scope| {
        for writer in 0..8 {
            let path = &path;
            scope.spawn(move || {
                let store = Store::open(path).expect("others open it, too");
                store
                    .put(&writer.to_string(), &descriptor(MediaType::ImageManifest))
                    .expect("it is recorded");
            });
        }
    });

    assert_eq!(Store::open(&path).expect("it is there").list(&Filter::all()).expect("it lists").len(), 8);
}

proptest! {
    #[test]
    fn arbitrary_text_is_a_platform_or_an_error(text in "[a-z0-9/._ -]{0,24}") {
        if let Ok(platform) = text.parse::<Platform>() {
            prop_assert_eq!(platform.to_string().parse::<Platform>().ok(), Some(platform));
        }
    }
}
