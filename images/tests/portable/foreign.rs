//! Archives as other tools write them, made by hand.

use bytes::Bytes;
use oci_spec::image::Descriptor;
use serde_json::{Value, json};
use windlass_content::ProviderExt;
use windlass_images::{Error, Image as Opened, Platform, import::ImportOptions};
use windlass_testkit::{Image, Layer};

use crate::fixtures::{app, assert_has, docker, imported, index, of};

fn blob_name(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// The blobs of an image.
pub(crate) fn blobs(tar: Layer, image: &Image) -> Layer {
    image.blobs.iter().fold(tar, |tar, (digest, (_, bytes))| tar.file(blob_name(digest), 0o644, bytes))
}

pub(crate) fn marker(tar: Layer) -> Layer {
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// `index.json`, with each image's annotations.
pub(crate) fn list(tar: Layer, images: &[(&Image, Value)]) -> Layer {
    let entry = |(image, annotations): &(&Image, Value)| {
        let mut entry = serde_json::to_value(&image.root).expect("a descriptor is JSON");
        entry["annotations"] = annotations.clone();
        entry
    };
    let manifests: Vec<_> = images.iter().map(entry).collect();
    tar.file(
        "index.json",
        0o644,
        json!({ "schemaVersion": 2, "manifests": manifests }).to_string().as_bytes(),
    )
}

fn tag(tag: &str) -> Value {
    json!({ "org.opencontainers.image.ref.name": tag })
}

/// What `docker save` wrote until version 24, with these bytes as layers: the third one is the first one again.
fn saved(image: &Image, lower: &Bytes, upper: &Bytes, tags: Value) -> Layer {
    let config = format!("{}.json", image.config().digest().digest());
    let manifest = json!([{
        "Config": config,
        "RepoTags": tags,
        "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"],
    }]);
    Layer::new()
        .dir("1", 0o755)
        .file("1/json", 0o644, b"{}")
        .file("1/layer.tar", 0o644, lower)
        .file("2/layer.tar", 0o644, upper)
        .symlink("3/layer.tar", "../1/layer.tar")
        .file(config, 0o644, &image.blob(image.config().digest()))
        .file("manifest.json", 0o644, manifest.to_string().as_bytes())
        .file("repositories", 0o644, b"{}")
}

fn layers() -> [Layer; 2] {
    [Layer::new().file("lower", 0o644, b"lower"), Layer::new().file("upper", 0o644, &[1; 300_000])]
}

fn image() -> Image {
    let [lower, upper] = layers();
    windlass_testkit::ImageBuilder::new()
        .platform("linux/amd64")
        .docker()
        .layer(lower.clone())
        .layer(upper)
        .layer(lower)
        .build()
}

#[tokio::test]
async fn a_saved_image_gets_a_manifest_that_says_what_its_layers_are() {
    let [lower, upper] = layers();
    let prefix = "application/vnd.oci.image.layer.v1.tar";
    for (lower, upper, suffixes) in [
        (lower.tar(), upper.tar(), ["", "", ""]),
        (lower.blob(), upper.zstd().blob(), ["+gzip", "+zstd", "+gzip"]),
    ] {
        let archive = saved(&image(), &lower, &upper, json!(["redis:7", "r.example/redis:latest"])).tar();

        let (imported, store, _folder) = imported(archive, ImportOptions::default()).await;

        let imported = imported.expect("it is whole");
        let names: Vec<_> = imported.iter().map(|it| it.name.as_deref()).collect();
        assert_eq!(names, [Some("docker.io/library/redis:7"), Some("r.example/redis:latest")]);
        let target = &imported[0].target;
        assert_eq!(target, &imported[1].target);
        let manifest: Value =
            serde_json::from_slice(&store.read(target, 4 << 20).await.expect("it was made"))
                .expect("it is JSON");
        let types: Vec<_> = (0..3).map(|layer| manifest["layers"][layer]["mediaType"].clone()).collect();
        assert_eq!(types, suffixes.map(|suffix| json!(format!("{prefix}{suffix}"))));
        let opened = Opened::open(&store, target, &Platform::host()).await.expect("it is an image");
        assert_eq!(opened.layers().map(|(_, diff_id)| diff_id.clone()).collect::<Vec<_>>(), image().diff_ids);
    }
}

#[tokio::test]
async fn a_stream_gives_the_same_manifest_as_a_file() {
    let [lower, upper] = layers();
    let archive = saved(&image(), &lower.tar(), &upper.tar(), json!(null)).tar();

    let (imported, _store, _folder) = imported(archive, ImportOptions::default()).await;

    // As the test of the same name in `windlass-remotes` has it.
    let digest = "sha256:fbdd8a4c25ddd9e089b40aa44da6d8364705eb315598f7427512073dbe0888da";
    assert_eq!(imported.expect("it is whole")[0].target.digest().as_ref(), digest);
}

#[tokio::test]
async fn names_come_from_the_archive_and_else_from_the_base() {
    let (app, docker) = (app(), docker());
    let tar = marker(blobs(blobs(Layer::new(), &app), &docker));
    let whole = json!({ "io.containerd.image.name": "docker.io/library/app:v1", "org.opencontainers.image.ref.name": "v1" });
    let base = || ImportOptions::default().base("My-App.tar");
    for (images, options, names) in [
        (vec![(&app, whole.clone())], base(), vec![Some("docker.io/library/app:v1".to_owned())]),
        (vec![(&app, tag("r.example/app:v2"))], base(), vec![Some("r.example/app:v2".to_owned())]),
        (vec![(&app, tag("v1"))], base(), vec![Some("localhost/my-app:v1".to_owned())]),
        (vec![(&app, tag("v1"))], ImportOptions::default(), vec![Some("localhost/import:v1".to_owned())]),
        (vec![(&app, json!(null))], base(), vec![Some("localhost/my-app:latest".to_owned())]),
        (vec![(&app, json!(null))], ImportOptions::default(), vec![None]),
        (
            vec![(&app, json!(null)), (&docker, json!(null))],
            base(),
            vec![
                Some(format!("localhost/my-app@{}", app.root.digest())),
                Some(format!("localhost/my-app@{}", docker.root.digest())),
            ],
        ),
        (
            vec![(&app, whole), (&docker, tag("v2"))],
            base().names(["v2"]),
            vec![Some("localhost/my-app:v2".to_owned())],
        ),
    ] {
        let archive = list(tar.clone(), &images).tar();

        let (imported, store, _folder) = imported(archive, options).await;

        let imported = imported.expect("it is whole");
        assert_eq!(imported.iter().map(|it| it.name.clone()).collect::<Vec<_>>(), names);
        assert_has(&store, &app).await;
    }
}

#[tokio::test]
async fn an_image_that_is_not_there_says_what_there_is() {
    let app = app();
    let archive = list(marker(blobs(Layer::new(), &app)), &[(&app, tag("v1"))]).tar();

    let (imported, _store, _folder) = imported(archive, ImportOptions::default().names(["v2"])).await;

    assert_eq!(imported.expect_err("it is v1").to_string(), "no image v2 in the archive; it has v1");
}

#[tokio::test]
async fn an_index_needs_one_platform_or_the_one_that_is_wanted() {
    let mut partial = index();
    let arm = of("linux/arm64").root.digest().to_string();
    partial.blobs.remove(&arm);
    let archive = list(marker(blobs(Layer::new(), &partial)), &[(&partial, tag("v1"))]).tar();
    let platform = |text: &str| ImportOptions::default().platform(text.parse().expect("it is a platform"));

    let (any, _any_store, _folder) = imported(archive.clone(), ImportOptions::default()).await;
    let (amd, _amd_store, _folder2) = imported(archive.clone(), platform("linux/amd64")).await;
    let (arm_error, _arm_store, _folder3) = imported(archive.clone(), platform("linux/arm64")).await;
    let (none, _none_store, _folder4) = imported(archive, platform("linux/s390x")).await;

    for imported in [any, amd] {
        let imported = imported.expect("amd64 is whole");
        assert_eq!(imported[0].target, partial.root);
        assert_eq!(imported[0].manifests.len(), 1);
    }
    let error = arm_error.expect_err("arm64 is not there");
    assert!(matches!(&error, Error::Incomplete { digest, .. } if digest.as_ref() == arm), "{error}");
    assert!(matches!(none, Err(Error::NoPlatform { .. })), "{none:?}");
}

/// What Docker writes from version 25 on: an image layout with a `manifest.json` beside it.
fn hybrid(image: &Image) -> Layer {
    let name = |node: &Descriptor| blob_name(node.digest().as_ref());
    let manifest = json!([{
        "Config": name(&image.config()),
        "RepoTags": ["app:v1"],
        "Layers": image.layers().iter().map(name).collect::<Vec<_>>(),
    }]);
    Layer::new().file("manifest.json", 0o644, manifest.to_string().as_bytes())
}

#[tokio::test]
async fn a_hybrid_archive_keeps_the_manifest_it_has_and_else_gets_one() {
    let app = app();
    let mut partial = app.clone();
    partial.blobs.remove(app.root.digest().as_ref());
    for (image, keeps) in [(&app, true), (&partial, false)] {
        let archive = list(marker(blobs(hybrid(&app), image)), &[(&app, tag("app:v1"))]).tar();

        let (imported, store, _folder) = imported(archive, ImportOptions::default()).await;

        let imported = imported.expect("it is whole");
        assert_eq!(imported[0].name.as_deref(), Some("docker.io/library/app:v1"));
        assert_eq!(imported[0].target == app.root, keeps);
        assert_has(&store, image).await;
    }
}

#[tokio::test]
async fn content_of_the_store_need_not_be_in_the_archive() {
    let app = app();
    let mut thin = app.clone();
    thin.blobs.retain(|digest, _| digest == app.root.digest().as_ref());
    let archive = list(marker(blobs(Layer::new(), &thin)), &[(&app, tag("v1"))]).tar();
    let (_folder, store) = crate::fixtures::store_with([&app]).await;

    let archive = std::io::Cursor::new(archive);
    let imported = windlass_images::import::import(&store, archive, &ImportOptions::default()).await;

    assert_eq!(imported.expect("the rest is there")[0].manifests, [app.root]);
}
