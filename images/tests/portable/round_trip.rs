//! What we export, we import.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use windlass_content::{Ingest, Ingester, Store, WriterExt};
use windlass_images::{
    Error, Platform,
    export::{ExportOptions, export, export_layout},
    import::{ImportOptions, import},
};
use windlass_testkit::{Image, ImageBuilder, Index, Layer};

use crate::fixtures::{
    Buffer, app, artifact, assert_has, docker, exported, imported, index, named, of, store, store_with, zstd,
};

/// The files of an archive, by name, and the names in their order.
fn files(archive: &[u8]) -> (Vec<String>, BTreeMap<String, Vec<u8>>) {
    let mut archive = tar::Archive::new(archive);
    let (mut names, mut files) = (Vec::new(), BTreeMap::new());
    for entry in archive.entries().expect("it is an archive") {
        let mut entry = entry.expect("it is an archive");
        let header = entry.header();
        assert_eq!((header.uid().ok(), header.gid().ok(), header.mtime().ok()), (Some(0), Some(0), Some(0)));
        let name = entry.path().expect("it is UTF-8").display().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).expect("it is whole");
        names.push(name.clone());
        files.insert(name, bytes);
    }
    (names, files)
}

fn json_of(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).expect("it is JSON")
}

fn blob_name(digest: &impl ToString) -> String {
    format!("blobs/{}", digest.to_string().replace(':', "/"))
}

#[tokio::test]
async fn an_archive_has_the_images_for_both_kinds_of_readers() {
    let (app, artifact) = (app(), artifact());
    let (_folder, store) = store_with([&app, &artifact]).await;

    let archive = exported(
        &store,
        &[("r.example/app:v1", &app), ("r.example/sbom:v2", &artifact), ("docker.io/library/app:v3", &app)],
    )
    .await;

    let (names, files) = files(&archive);
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(names, sorted);
    assert_eq!(names.len(), 5 + app.blobs.len() + artifact.blobs.len(), "two folders, three documents");
    let entry = |name: &str, tag: &str, image: &Image| {
        json!({
            "mediaType": image.root.media_type(), "digest": image.root.digest(), "size": image.root.size(),
            "annotations": { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag },
        })
    };
    let want = [
        entry("docker.io/library/app:v3", "v3", &app),
        entry("r.example/app:v1", "v1", &app),
        entry("r.example/sbom:v2", "v2", &artifact),
    ];
    assert_eq!(json_of(&files, "index.json")["manifests"], json!(want));
    let want = json!([{
        "Config": blob_name(app.config().digest()),
        "RepoTags": ["docker.io/library/app:v3", "r.example/app:v1"],
        "Layers": app.layers().iter().map(|layer| blob_name(layer.digest())).collect::<Vec<_>>(),
    }]);
    assert_eq!(json_of(&files, "manifest.json"), want, "an artifact is nothing that Docker can load");
}

#[tokio::test]
async fn images_of_one_tag_are_told_apart_by_their_whole_names() {
    let (app, docker) = (app(), docker());
    let (_folder, store) = store_with([&app, &docker]).await;

    let archive = exported(&store, &[("r.example/a:v1", &app), ("r.example/b:v1", &docker)]).await;

    let index = json_of(&files(&archive).1, "index.json");
    let name = |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"].clone();
    let names: Vec<_> = index["manifests"].as_array().expect("it is a list").iter().map(name).collect();
    assert_eq!(names, ["r.example/a:v1", "r.example/b:v1"]);
}

#[tokio::test]
async fn the_same_images_give_the_same_bytes() {
    let images = [app(), docker(), index(), zstd()];
    let names = ["r.example/app:1", "r.example/docker:1", "r.example/index:2", "r.example/zstd:3"];
    let there: Vec<_> = names.into_iter().zip(&images).collect();
    let back: Vec<_> = there.iter().copied().rev().collect();
    let (_folder, one) = store_with(&images).await;
    let (_other_folder, other) = store_with(images.iter().rev()).await;

    let archive = exported(&one, &there).await;

    assert!(archive == exported(&one, &there).await, "twice from one store");
    assert!(archive == exported(&other, &back).await, "from another store, asked in another order");
}

#[tokio::test]
async fn one_platform_takes_the_place_of_its_index() {
    let arm = of("linux/arm64");
    let (_folder, store) = store_with([&index()]).await;
    let buffer = Buffer::default();
    let options = ExportOptions::default().platform("linux/arm64".parse().expect("it is a platform"));

    export(&store, &named(&[("r.example/app:v1", &index())]), &options, buffer.clone())
        .await
        .expect("it is there");
    let (imported, store, _folder) = imported(buffer.bytes(), ImportOptions::default()).await;

    let imported = imported.expect("it is whole");
    assert_eq!(imported[0].target, arm.root);
    assert_eq!(imported[0].manifests, std::slice::from_ref(&arm.root));
    assert_has(&store, &arm).await;
    let count = futures::StreamExt::count(store.walk(windlass_content::Filter::default())).await;
    assert_eq!(count, arm.blobs.len(), "nothing else came along");
}

#[tokio::test]
async fn a_platform_that_is_not_there_is_left_out_unless_all_are_wanted() {
    let (amd, index) = (of("linux/amd64"), index());
    let mut partial = amd.clone();
    partial.blobs.insert(index.root.digest().to_string(), ("index".into(), index.blob(index.root.digest())));
    let (_folder, store) = store_with([&partial]).await;
    let images = named(&[("r.example/app:v1", &index)]);

    let (done, back, _back) =
        imported(exported(&store, &[("r.example/app:v1", &index)]).await, ImportOptions::default()).await;
    let strict = ExportOptions::default().skip_missing(false);
    let refused = export(&store, &images, &strict, Buffer::default()).await.expect_err("arm64 is not there");
    let arm = ExportOptions::default().platform("linux/arm64".parse().expect("it is a platform"));
    let no_arm = export(&store, &images, &arm, Buffer::default()).await.expect_err("arm64 is not there");

    let done = done.expect("amd64 is whole");
    assert_eq!((&done[0].target, done[0].manifests.len()), (&index.root, 1));
    assert_eq!(done[0].manifests[0].digest(), amd.root.digest());
    assert_has(&back, &partial).await;
    let digest = of("linux/arm64").root.digest().to_string();
    for error in [refused, no_arm] {
        let want = format!(
            "image r.example/app:v1 is not whole: {digest} (application/vnd.oci.image.manifest.v1+json) is missing"
        );
        assert_eq!(error.to_string(), want);
    }
}

#[tokio::test]
async fn what_is_there_of_a_platform_must_be_whole() {
    let mut image = index();
    let lost = of("linux/arm64").layers()[1].digest().to_string();
    image.blobs.remove(&lost);
    let (_folder, store) = store_with([&image]).await;
    let images = named(&[("app", &image)]);

    let error =
        export(&store, &images, &ExportOptions::default(), Buffer::default()).await.expect_err("one is lost");
    let amd: Platform = "linux/amd64".parse().expect("it is a platform");
    let one = export(&store, &images, &ExportOptions::default().platform(amd), Buffer::default()).await;

    assert!(matches!(&error, Error::Incomplete { digest, .. } if digest.to_string() == lost), "{error}");
    one.expect("amd64 is whole");
}

#[tokio::test]
async fn damaged_content_is_not_exported() {
    let app = app();
    let (_folder, store) = store_with([&app]).await;
    let layer = app.layers()[1].clone();
    let path = store.path(layer.digest());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("it is ours");
    std::fs::write(&path, vec![0; layer.size() as usize]).expect("there is room");

    let done = export(&store, &named(&[("app", &app)]), &ExportOptions::default(), Buffer::default()).await;

    let error = done.expect_err("the layer is damaged");
    assert!(matches!(error, Error::Content(windlass_content::Error::DigestMismatch { .. })), "{error}");
}

#[tokio::test]
async fn a_folder_has_the_same_blobs() {
    let (app, index) = (app(), index());
    let (_folder, store) = store_with([&app, &index]).await;
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("new/layout");
    let images = [("r.example/app:v1", &app), ("r.example/index:v2", &index)];

    let options = ExportOptions::default();
    export_layout(&store, &named(&images), &options, &path).await.expect("the folder is new");
    let again = export_layout(&store, &named(&images), &options, &path).await;

    let (_, files) = files(&exported(&store, &images).await);
    for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with('/') && *name != "manifest.json") {
        assert!(std::fs::read(path.join(name)).expect(name) == *bytes, "{name}");
    }
    let error = again.expect_err("it is not empty any more").to_string();
    assert_eq!(error, format!("cannot make an image layout of {}", path.display()));
}

#[tokio::test]
async fn a_writer_that_refuses_ends_the_export() {
    #[derive(Debug)]
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let app = app();
    let (_folder, store) = store_with([&app]).await;

    let done = export(&store, &named(&[("app", &app)]), &ExportOptions::default(), Full).await;

    let error = done.expect_err("there is no room");
    assert!(
        matches!(&error, Error::Stream { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    );
    assert_eq!(error.to_string(), "cannot write the archive");
}

#[tokio::test]
async fn an_import_that_broke_off_is_resumed() {
    let app = app();
    let (_folder, from) = store_with([&app]).await;
    let archive = exported(&from, &[("r.example/app:v1", &app)]).await;
    let (_store, to) = store();

    let layer = app.layers()[1].clone();
    let key = format!("blob-{}", layer.digest());
    let Ok(Ingest::Open(mut writer)) = to.ingest(&key, &layer).await else { panic!("it is empty") };
    writer.write(app.blob(layer.digest()).slice(..700_001)).await.expect("there is room");
    drop(writer);

    let half = archive[..archive.len() / 2].to_vec();
    let broken = import(&to, std::io::Cursor::new(half), &ImportOptions::default()).await;
    let partial = to.active().await.expect("it can be read");
    let whole = import(&to, std::io::Cursor::new(archive), &ImportOptions::default()).await;

    broken.expect_err("half of it is missing");
    assert_eq!(partial.iter().map(|it| it.offset >= 700_001).collect::<Vec<_>>(), [true], "{partial:?}");
    whole.expect("it is whole");
    assert_has(&to, &app).await;
    assert_eq!(to.active().await.expect("it can be read"), []);
}

/// Something to build an image of.
fn any_image() -> impl Strategy<Value = Image> {
    let layer = (any::<u8>(), 0..3_u8, 0..700_usize).prop_map(|(byte, kind, size)| {
        let layer = Layer::new().file("file", 0o644, &vec![byte % 4; size]);
        match kind {
            0 => layer.plain(),
            1 => layer.gzip(),
            _ => layer.zstd(),
        }
    });
    let image = (proptest::collection::vec(layer, 0..4), any::<bool>()).prop_map(|(layers, docker)| {
        let builder = if docker { ImageBuilder::new().docker() } else { ImageBuilder::new() };
        layers.into_iter().fold(builder, ImageBuilder::layer).build()
    });
    prop_oneof![
        4 => image,
        1 => proptest::sample::select(vec!["linux/amd64", "linux/s390x"])
            .prop_map(|it| Index::of(&[of(it), of("linux/arm64")])),
        1 => Just(artifact()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_is_exported_is_imported(images in proptest::collection::vec(any_image(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("there are threads");
        runtime.block_on(async {
            let names: Vec<_> = (0..images.len()).map(|it| format!("r.example/app{it}:v{it}")).collect();
            let named: Vec<_> = names.iter().map(String::as_str).zip(&images).collect();
            let (_folder, store) = store_with(&images).await;

            let archive = exported(&store, &named).await;
            let (imported, store, _folder) = imported(archive, ImportOptions::default()).await;

            let imported = imported.expect("it is whole");
            assert_eq!(imported.len(), images.len());
            for (imported, (name, image)) in imported.iter().zip(named) {
                assert_eq!((imported.name.as_deref(), &imported.target), (Some(name), &image.root));
                assert_has(&store, image).await;
            }
        });
    }
}
