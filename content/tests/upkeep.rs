//! The folder stays tidy by itself, and other tools find their way in it.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use serde_json::json;
use tempfile::TempDir;
use windlass_content::{
    Error, Ingest, Ingester, Labels, LocalStore, Options, Store, WriterExt,
    hash::sha256,
    testsuite::{descriptor, put, writer},
};
use windlass_testkit::require;

#[tokio::test]
async fn what_nobody_goes_on_with_expires() {
    let (folder, store) = store();
    for key in ["old", "held", "young"] {
        let mut writer = writer(&store, key, &descriptor(b"content")).await;
        writer.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
        writer.commit(Labels::new()).await.expect_err("four bytes are missing");
    }
    let held = writer(&store, "held", &descriptor(b"content")).await;
    age(folder.path(), &["old", "held"], Duration::from_secs(25 * 60 * 60));

    let expired = store.expire().await.expect("the folder can be written");

    assert_eq!((expired.ingests, expired.bytes), (1, 3));
    assert_eq!(keys(&store).await, ["held", "young"]);
    let expired = store.expire_idle(Duration::ZERO).await.expect("the folder can be written");
    assert_eq!((expired.ingests, expired.bytes), (1, 3));
    assert_eq!(keys(&store).await, ["held"]);
    drop(held);
}

#[tokio::test]
async fn a_writer_of_another_process_is_spared() {
    let (folder, store) = store();
    let other = LocalStore::open(folder.path(), Options::default()).expect("it is there");
    let mut writer = writer(&other, "key", &descriptor(b"content")).await;

    store.expire_idle(Duration::ZERO).await.expect("the folder can be written");

    writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("its ingest is still there");
}

#[tokio::test]
async fn opening_the_store_lets_ingests_expire_in_the_background() {
    let (folder, store) = store();
    for at in 0..300 {
        let key = format!("key {at}");
        let name = sha256(key.as_bytes());
        fs::create_dir(folder.path().join("ingest").join(name.digest())).expect("the folder can be written");
        age(folder.path(), &[&key], Duration::from_secs(2));
    }
    drop(store);

    let begun = SystemTime::now();
    let again = LocalStore::open(folder.path(), Options::default().ingest_expiry(Duration::from_secs(1)));

    let _store = again.expect("it is there");
    let count = || fs::read_dir(folder.path().join("ingest")).expect("it is there").count();
    while count() > 0 {
        assert!(begun.elapsed().is_ok_and(|since| since < Duration::from_secs(20)), "{} are left", count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn labels_without_a_blob_are_swept_and_others_stay() {
    let (folder, store) = store();
    let labels = Labels::from([("key".to_owned(), "value".to_owned())]);
    let (kept, lost) = (put(&store, b"kept").await, put(&store, b"lost").await);
    for blob in [&kept, &lost] {
        store.update(blob.digest(), labels.clone()).await.expect("it is there");
    }
    // As a crash between the two steps of a deletion leaves it.
    fs::remove_file(store.path(lost.digest())).expect("it is there");
    let sidecars = || fs::read_dir(folder.path().join("labels/sha256")).expect("it is there").count();
    assert_eq!(sidecars(), 2);

    store.expire().await.expect("the folder can be written");

    assert_eq!(sidecars(), 1);
    assert_eq!(store.info(kept.digest()).await.expect("it is there").labels, labels);
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_of_several_processes_never_mix() {
    let (folder, store) = store();
    let blob = put(&store, b"content").await;
    let set = |name: &str| -> Labels { (0..20).map(|at| (format!("key {at}"), name.to_owned())).collect() };
    store.update(blob.digest(), set("first")).await.expect("it is there");
    let updaters: Vec<_> = (0..4)
        .map(|at| {
            let other = LocalStore::open(folder.path(), Options::default()).expect("it is there");
            let (digest, labels) = (blob.digest().clone(), set(&format!("updater {at}")));
            tokio::spawn(async move {
                for _ in 0..25 {
                    let info = other.update(&digest, labels.clone()).await.expect("it is there");
                    assert_eq!(info.labels, labels);
                }
            })
        })
        .collect();

    while !updaters.iter().all(tokio::task::JoinHandle::is_finished) {
        let labels = store.info(blob.digest()).await.expect("it is there").labels;
        assert_eq!(labels, set(&labels["key 0"]), "they are of one updater");
    }

    for updater in updaters {
        updater.await.expect("no updater panics");
    }
}

#[tokio::test]
async fn a_blob_without_labels_has_no_other_file() {
    let (folder, store) = store();
    let blob = put(&store, b"content").await;
    assert!(!folder.path().join("labels").exists());
    let labels = Labels::from([("key".to_owned(), "value".to_owned())]);
    store.update(blob.digest(), labels).await.expect("it is there");
    let sidecar = folder.path().join("labels/sha256").join(blob.digest().digest());
    assert_eq!(fs::read_to_string(&sidecar).expect("it is there"), r#"{"key":"value"}"#);

    store.update(blob.digest(), Labels::new()).await.expect("it is there");

    assert_eq!(fs::read_dir(sidecar.parent().expect("a folder")).expect("it is there").count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_to_look_writes_the_index_and_readers_see_it_whole() {
    let (folder, _) = store();
    let path = folder.path().join("index.json");
    let root = Descriptor::new(MediaType::ImageManifest, 1, sha256(b"x"));
    // What the image list of a real program would be.
    let names = std::sync::Arc::new(std::sync::Mutex::new(vec![]));
    let writers: Vec<_> = (0..8)
        .map(|at| {
            let store = LocalStore::open(folder.path(), Options::default()).expect("it is there");
            let (names, root) = (names.clone(), root.clone());
            tokio::spawn(async move {
                for round in 0..20 {
                    names.lock().expect("nobody panics").push(format!("app:{at}.{round}"));
                    let names = names.clone();
                    let root = root.clone();
                    let list = move || {
                        let names = names.lock().expect("nobody panics").clone();
                        Ok::<_, Error>(names.into_iter().map(|name| (name, root.clone())).collect())
                    };
                    store.write_index(list).await.expect("the folder can be written");
                }
            })
        })
        .collect();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        ImageIndex::from_file(&path).expect("it is whole at any time");
        tokio::task::yield_now().await;
    }
    for writer in writers {
        writer.await.expect("no writer panics");
    }

    let index = ImageIndex::from_file(&path).expect("it is whole");

    assert_eq!(index.manifests().len(), 160, "no update was lost");
    assert_eq!(fs::read_dir(folder.path()).expect("it is there").count(), 4, "nothing else is left");
}

#[tokio::test]
async fn an_image_list_that_fails_leaves_the_index_as_it_was() {
    let (folder, store) = store();
    let before = fs::read(folder.path().join("index.json")).expect("it is there");

    let digest = sha256(b"x");
    let err = store.write_index(move || Err(Error::NotFound { digest })).await.expect_err("the list fails");

    assert!(matches!(err, Error::NotFound { .. }), "{err:?}");
    assert_eq!(fs::read(folder.path().join("index.json")).expect("it is there"), before);
}

#[tokio::test]
async fn skopeo_finds_images_by_name() {
    let skopeo = require("skopeo", "skopeo");
    let (folder, store) = store();
    let mut images = Vec::new();
    for name in ["docker.io/library/redis:latest", "localhost:5000/team/app:1.0", "quay.io/a/b:c-d_e"] {
        let config = json!({
            "architecture": "amd64", "os": "linux", "author": name,
            "config": {}, "rootfs": { "type": "layers", "diff_ids": [] }
        });
        let config = put_json(&store, MediaType::ImageConfig, &config).await;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config, "layers": []
        });
        images.push((name.to_owned(), put_json(&store, MediaType::ImageManifest, &manifest).await));
    }
    let list = images.clone();
    store.write_index(move || Ok::<_, Error>(list)).await.expect("the folder can be written");

    for (name, root) in images {
        let output = Command::new(&skopeo)
            .args(["inspect", "--format", "{{.Digest}}"])
            .arg(format!("oci:{}:{name}", folder.path().display()))
            .output()
            .expect("skopeo starts");

        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), root.digest().as_ref(), "{name}");
    }
}

async fn put_json(store: &LocalStore, kind: MediaType, value: &serde_json::Value) -> Descriptor {
    let bytes = Bytes::from(value.to_string());
    let want = Descriptor::new(kind, bytes.len() as u64, sha256(&bytes));
    if let Ingest::Open(mut writer) = store.ingest("json", &want).await.expect("it can be opened") {
        writer.write(bytes).await.expect("the bytes fit");
        writer.commit(Labels::new()).await.expect("the bytes are right");
    }
    want
}

async fn keys(store: &LocalStore) -> Vec<String> {
    let mut keys: Vec<_> = store.active().await.expect("active").into_iter().map(|it| it.key).collect();
    keys.sort();
    keys
}

/// Lets ingests look as if nothing had happened for so long.
fn age(root: &Path, keys: &[&str], age: Duration) {
    for key in keys {
        let folder = root.join("ingest").join(sha256(key.as_bytes()).digest());
        for path in [folder.join("data"), folder] {
            if let Ok(file) = File::open(path) {
                file.set_modified(SystemTime::now() - age).expect("it is ours");
            }
        }
    }
}

fn store() -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = LocalStore::open(folder.path(), Options::default()).expect("an empty folder");
    (folder, store)
}
