//! Archives that somebody made to do harm, or that are damaged.

use bytes::Bytes;
use serde_json::json;
use windlass_content::Store;
use windlass_images::{Error, import::ImportOptions};
use windlass_testkit::Layer;

use crate::{
    fixtures::{app, exported, imported, store_with},
    foreign::{blobs, list, marker},
};

async fn error_of(archive: impl Into<Vec<u8>>) -> Error {
    let (imported, _store, _folder) = imported(archive, ImportOptions::default()).await;
    imported.expect_err("it cannot be used")
}

#[tokio::test]
async fn an_archive_that_is_cut_off_anywhere_is_refused() {
    let app = app();
    let (_folder, store) = store_with([&app]).await;
    let archive = exported(&store, &[("r.example/app:v1", &app)]).await;
    // The last entries are manifest.json and oci-layout, without which it is whole, too.
    let content = archive.len() - 1024;
    let whole = content - 4 * 512;
    for length in
        (0..content).step_by(100_003).chain((whole - 5000..content).step_by(97)).chain([whole, content])
    {
        let cut = archive[..length].to_vec();
        let (imported, _store, _folder) = imported(cut, ImportOptions::default()).await;
        match imported {
            Ok(imported) => {
                assert!(length >= whole && imported[0].target == app.root, "after {length} bytes")
            }
            Err(Error::Archive { .. } | Error::Incomplete { .. }) => {}
            Err(error) => panic!("after {length} bytes: {error:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_no_archive_of_images_says_why() {
    let config = app().blob(app().config().digest());
    let docker = |manifest: serde_json::Value| {
        Layer::new()
            .file("config.json", 0o644, &config)
            .file("layer", 0o644, b"layer")
            .file("manifest.json", 0o644, manifest.to_string().as_bytes())
            .symlink("circle", "circle")
            .tar()
    };
    let entry =
        |config: &str, layers: &[&str]| json!([{ "Config": config, "RepoTags": null, "Layers": layers }]);
    for (archive, why) in [
        (Bytes::new(), "it has neither oci-layout nor manifest.json"),
        (Bytes::from_static(&[b'x'; 2000]), "the checksum of a header is wrong"),
        (Layer::new().file("file", 0o644, b"x").blob(), "it is compressed with gzip"),
        (Layer::new().file("file", 0o644, b"x").pax("comment", &vec![b'x'; 2 << 20]).tar(), "1048576 bytes"),
        (Layer::new().file("index.json", 0o644, b"{}").tar(), "oci-layout is missing"),
        (marker(Layer::new()).tar(), "index.json is missing"),
        (marker(Layer::new()).file("index.json", 0o644, b"[").tar(), "index.json: EOF"),
        (list(marker(Layer::new()), &[]).tar(), "it has no images"),
        (
            list(Layer::new().file("oci-layout", 0o644, br#"{"imageLayoutVersion":"2.0"}"#), &[]).tar(),
            "version \"2.0\"; 1.0.0 is supported",
        ),
        (
            marker(Layer::new()).file("index.json", 0o644, &vec![b' '; 5 << 20]).tar(),
            "more than 4194304 bytes",
        ),
        (docker(json!([])), "it has neither oci-layout nor manifest.json"),
        (docker(json!({})), "manifest.json: "),
        (docker(json!(vec![entry("a", &[])[0].clone(); 2000])), "lists more than 1024 images"),
        (docker(entry("missing", &[])), "missing: manifest.json names it, but it is missing"),
        (docker(entry("../config.json", &[])), "../config.json: manifest.json names it, but it is missing"),
        (docker(entry("circle", &[])), "circle: more than 8 links"),
        (docker(entry("layer", &[])), "layer: "),
        (docker(entry("config.json", &["layer"])), "it has 2 DiffIDs, and manifest.json has 1 layers"),
        (docker(entry("config.json", &["layer", "layer"])), "layer: its digest is sha256:"),
        (docker(entry("config.json", &["layer", "/etc/passwd"])), "layer: its digest is sha256:"),
    ] {
        let error = error_of(archive).await;
        assert!(error.to_string().contains(why), "{why}: {error}");
        assert!(matches!(error, Error::Archive { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_blob_is_what_its_name_says_or_refused() {
    let app = app();
    let layer = app.layers()[1].digest().to_string();
    let name = format!("blobs/{}", layer.replace(':', "/"));
    let mut without = app.clone();
    without.blobs.remove(&layer);
    let tar = list(marker(blobs(Layer::new(), &without)), &[(&app, json!(null))]);

    let missing = error_of(tar.tar()).await;
    let wrong = error_of(tar.clone().file(&*name, 0o644, &[1; 1000]).tar()).await;
    let linked = error_of(tar.clone().symlink(&*name, "/etc/passwd").tar()).await;
    let outside =
        error_of(tar.file(format!("../{name}"), 0o644, &app.blob(app.layers()[1].digest())).tar()).await;

    for error in [missing, linked, outside] {
        assert!(matches!(&error, Error::Incomplete { digest, .. } if digest.as_ref() == layer), "{error:?}");
    }
    let Error::Content(windlass_content::Error::DigestMismatch { expected, .. }) = wrong else {
        panic!("{wrong:?}")
    };
    assert_eq!(expected.as_ref(), layer);
}

#[tokio::test]
async fn a_wrong_blob_is_not_in_the_way_of_the_right_one() {
    let app = app();
    let layer = app.layers()[1].digest().to_string();
    let mut wrong = app.clone();
    let (media_type, bytes) = wrong.blobs[&layer].clone();
    wrong.blobs.insert(layer, (media_type, vec![0; bytes.len()].into()));
    let archive = |image| list(marker(blobs(Layer::new(), image)), &[(&app, json!(null))]).tar();
    let (_folder, store) = crate::fixtures::store();
    let options = ImportOptions::default();

    for (image, is_right) in [(&wrong, false), (&app, true)] {
        let archive = std::io::Cursor::new(archive(image));
        let imported = windlass_images::import::import(&store, archive, &options).await;
        assert_eq!(imported.is_ok(), is_right, "{imported:?}");
    }
    assert_eq!(store.active().await.expect("it can be read"), []);
}

#[tokio::test]
async fn entries_and_names_are_limited() {
    let many = || (0..100_000).fold(Layer::new(), |tar, it| tar.file(format!("{it}"), 0o644, b""));
    let long =
        (0..300).fold(Layer::new(), |tar, it| tar.file("x".repeat(40_000) + &it.to_string(), 0o644, b""));
    for (archive, why) in
        [(many().tar(), "it has more than 65536 entries"), (long.tar(), "have more than 8388608 bytes")]
    {
        let error = error_of(archive).await.to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test]
async fn nothing_outside_the_store_is_touched() {
    let folder = tempfile::tempdir().expect("there is room");
    let target = folder.path().join("target");
    std::fs::write(&target, "kept").expect("there is room");
    let app = app();
    let path = target.to_str().expect("it is UTF-8");
    let archive = list(marker(blobs(Layer::new(), &app)), &[(&app, json!(null))])
        .file(path, 0o644, b"overwritten")
        .file(format!("../../../../../../../../..{path}"), 0o644, b"overwritten")
        .symlink("link", path)
        .file("link", 0o644, b"overwritten")
        .tar();

    let (imported, store, _folder) =
        imported(archive, ImportOptions::default().temporary(folder.path())).await;

    imported.expect("what is not asked for is no matter");
    assert_eq!(std::fs::read_to_string(&target).expect("it is there"), "kept");
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("it is there").count(),
        1,
        "no temporary file is left"
    );
    let count = futures::StreamExt::count(store.walk(windlass_content::Filter::default())).await;
    assert_eq!(count, app.blobs.len(), "only blobs are taken in");
}

#[tokio::test]
async fn an_index_that_lists_itself_is_read_once() {
    // Nobody can make such a digest, but an index can list one manifest often, and indexes can be deep.
    let app = app();
    let mut deep = windlass_testkit::Index::listing(&vec![app.root.clone(); 1000]);
    deep.blobs.extend(app.blobs.clone());
    let (_folder, store) = store_with([&deep]).await;
    let archive = exported(&store, &[("r.example/app:v1", &deep)]).await;
    let (wide, _store, _folder) = imported(archive, ImportOptions::default()).await;
    for _ in 0..20 {
        let outer = windlass_testkit::Index::listing(std::slice::from_ref(&deep.root));
        let inner = std::mem::replace(&mut deep, outer);
        deep.blobs.extend(inner.blobs);
    }

    let error = error_of(list(marker(blobs(Layer::new(), &deep)), &[(&deep, json!(null))]).tar()).await;

    assert_eq!(wide.expect("it is whole")[0].manifests.len(), 1);
    assert!(error.to_string().contains("nested more than 8 deep"), "{error}");
}
