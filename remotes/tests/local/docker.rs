use std::fs;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use serde_json::{Value, json};
use tempfile::TempDir;
use windlass_images::{Image as Opened, Platform};
use windlass_reference::Reference;
use windlass_remotes::{Error, Resolver, local::DockerArchive};
use windlass_testkit::{Image, ImageBuilder, Layer};

use crate::fixtures::{Files, app, assert_has, document, layout, other, pulled, tag, tar};

fn lower() -> Layer {
    Layer::new().file("lower", 0o644, b"lower")
}

fn upper() -> Layer {
    Layer::new().file("upper", 0o644, &[1; 300_000])
}

/// An image whose config the archives of this file have.
fn image() -> Image {
    ImageBuilder::new().platform("linux/amd64").docker().layer(lower()).layer(upper()).layer(lower()).build()
}

fn config_name(image: &Image) -> String {
    format!("{}.json", image.config().digest().digest())
}

/// What `docker save` wrote until version 24: the third layer is the first one again.
fn saved(lower: &Bytes, upper: &Bytes) -> Layer {
    let manifest = json!([{
        "Config": config_name(&image()),
        "RepoTags": ["redis:7", "r.example/redis:latest"],
        "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"],
    }]);
    Layer::new()
        .dir("1", 0o755)
        .file("1/layer.tar", 0o644, lower)
        .file("2/layer.tar", 0o644, upper)
        .symlink("3/layer.tar", "../1/layer.tar")
        .file(config_name(&image()), 0o644, &image().blob(image().config().digest()))
        .file("manifest.json", 0o644, manifest.to_string().as_bytes())
}

fn open(tar: &[u8]) -> (TempDir, DockerArchive) {
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("saved.tar");
    fs::write(&path, tar).expect("there is room");
    (folder, DockerArchive::open(path).expect("it is an archive"))
}

#[tokio::test]
async fn a_saved_image_is_pulled_with_a_manifest_made_for_it() {
    let plain = [lower().tar(), upper().tar()];
    let compressed = [lower().blob(), upper().zstd().blob()];
    let prefix = "application/vnd.oci.image.layer.v1.tar";
    for (layers, suffixes) in [(&plain, ["", "", ""]), (&compressed, ["+gzip", "+zstd", "+gzip"])] {
        let (_file, archive) = open(&saved(&layers[0], &layers[1]).tar());
        let resolved = archive.resolve_tag(None).await.expect("it is the only one");

        let (_folder, store) = pulled(&resolved).await;

        assert_eq!(resolved.name, "docker.io/library/redis:7");
        let manifest = document(&store, &resolved.descriptor).await;
        let types: Vec<_> =
            manifest["layers"].as_array().expect("it has layers").iter().map(|it| &it["mediaType"]).collect();
        assert_eq!(
            types,
            suffixes.map(|suffix| json!(format!("{prefix}{suffix}"))).iter().collect::<Vec<_>>()
        );
        let opened =
            Opened::open(&store, &resolved.descriptor, &Platform::host()).await.expect("it is an image");
        assert_eq!(opened.layers().map(|(_, diff_id)| diff_id.clone()).collect::<Vec<_>>(), image().diff_ids);
    }
}

#[tokio::test]
async fn the_same_archive_gives_the_same_manifest() {
    let (_file, archive) = open(&saved(&lower().tar(), &upper().tar()).tar());

    let resolved = archive.resolve_tag(None).await.expect("it is the only one");

    assert_eq!(
        resolved.descriptor.digest().as_ref(),
        "sha256:fbdd8a4c25ddd9e089b40aa44da6d8364705eb315598f7427512073dbe0888da",
        "a new release must not make other content of it"
    );
}

#[tokio::test]
async fn an_image_is_found_by_any_of_its_tags_and_by_its_id() {
    let (_file, archive) = open(&saved(&lower().tar(), &upper().tar()).tar());
    let id = image().config().digest().to_string();
    for (text, name) in [
        ("redis:7", "docker.io/library/redis:7"),
        ("r.example/redis:latest", "r.example/redis:latest"),
        ("7", "docker.io/library/redis:7"),
        (&id, "docker.io/library/redis:7"),
    ] {
        let resolved = archive.resolve_tag(Some(text)).await.expect(text);
        assert_eq!(resolved.name, name, "{text}");
    }
    for (text, found) in
        [("redis:7", true), ("r.example/redis", true), ("redis", false), ("r.example/redis:7", false)]
    {
        let reference: Reference = text.parse().expect(text);
        match archive.resolve(&reference).await {
            Ok(resolved) => assert_eq!((resolved.name, found), (reference.to_string(), true)),
            Err(error) => assert!(matches!(error, Error::NotFound { .. }) && !found, "{error:?}"),
        }
    }
}

#[tokio::test]
async fn several_saved_images_are_listed() {
    let config = image().blob(image().config().digest());
    let entry = |config: &str, tags: Value| json!({ "Config": config, "RepoTags": tags, "Layers": null });
    let manifest = json!([entry("a.json", json!(["a:1", "a:2"])), entry("b.json", json!(null))]);
    let tar = Layer::new().file("a.json", 0o644, &config).file("b.json", 0o644, &config).file(
        "manifest.json",
        0o644,
        manifest.to_string().as_bytes(),
    );
    let (_file, archive) = open(&tar.tar());

    let error = archive.resolve_tag(None).await.expect_err("there are two");

    assert!(error.to_string().ends_with("has several images; choose one of a:1, a:2, sha256:b"), "{error}");
}

/// What Docker writes from version 25 on: an image layout with a `manifest.json` beside it.
fn hybrid(image: &Image) -> Files {
    let blob = |node: &Descriptor| crate::fixtures::blob_name(node.digest().as_ref());
    let manifest = json!([{
        "Config": blob(&image.config()),
        "RepoTags": ["app:v1"],
        "Layers": image.layers().iter().map(blob).collect::<Vec<_>>(),
    }]);
    let mut files = layout(&[(&other(), tag("v0")), (image, tag("v1"))]);
    files.push(("manifest.json".into(), manifest.to_string().into()));
    files
}

#[tokio::test]
async fn a_hybrid_archive_keeps_the_manifest_it_has() {
    let (_file, archive) = open(&tar(&hybrid(&app())));
    let resolved = archive.resolve_tag(Some("app:v1")).await.expect("it is there");

    let (_folder, store) = pulled(&resolved).await;

    assert_eq!(resolved.descriptor, app().root);
    assert_has(&store, &app()).await;
}

#[tokio::test]
async fn a_hybrid_archive_without_its_manifest_gets_one() {
    let mut files = hybrid(&app());
    let root = crate::fixtures::blob_name(app().root.digest().as_ref());
    files.retain(|(name, _)| *name != root);
    let (_file, archive) = open(&tar(&files));
    let resolved = archive.resolve_tag(None).await.expect("it is there");

    let (_folder, store) = pulled(&resolved).await;

    assert_ne!(resolved.descriptor, app().root);
    let manifest = document(&store, &resolved.descriptor).await;
    assert_eq!(manifest["config"]["digest"], json!(app().config().digest()));
}
