//! Images leave one folder and enter another.

use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::Path,
};

use windlass::{
    Error, ExportOptions, ImportOptions, Platforms, PullOptions, Windlass,
    remotes::local::{OciLayout, Source},
};
use windlass_content::Store;
use windlass_testkit::{Image, ImageBuilder, Index, Layer, Registry};

fn of(platform: &str) -> Image {
    let layer = Layer::new().file("platform", 0o644, platform.as_bytes());
    ImageBuilder::new().platform(platform).layer(layer).build()
}

/// A folder that pulled these images.
async fn pulled(folder: &Path, images: &[(&str, &Image)], platforms: Platforms) -> (Windlass, Vec<String>) {
    let registry = Registry::start().await;
    let root = folder.join("from");
    let resolver = windlass::remotes::Registry::builder().build().expect("the settings are good");
    let windlass = Windlass::builder().resolver(resolver).open(root).expect("there is room");
    let mut names = Vec::new();
    for (name, image) in images {
        registry.push(image, name, "v1");
        let reference = format!("{}/{name}:v1", registry.host()).parse().expect("it is a name");
        let options = PullOptions::default().unpack(false).platforms(platforms.clone());
        names.push(windlass.pull_with(&reference, options).await.expect("it is there").name);
    }
    (windlass, names)
}

fn compressed(bytes: &[u8], kind: &str) -> Vec<u8> {
    match kind {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("it is memory");
            encoder.finish().expect("it is memory")
        }
        "zstd" => {
            let folder = tempfile::tempdir().expect("there is room");
            let path = folder.path().join("plain");
            fs::write(&path, bytes).expect("there is room");
            let output = std::process::Command::new(windlass_testkit::require("zstd", "zstd"))
                .arg("-qc")
                .arg(path)
                .output()
                .expect("it starts");
            output.stdout
        }
        _ => bytes.to_vec(),
    }
}

#[tokio::test]
async fn what_one_folder_exports_another_imports_however_it_is_compressed() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, other) = (of("linux/amd64"), of("linux/arm64"));
    let images = [("library/app", &app), ("library/other", &other)];
    let (from, names) = pulled(folder.path(), &images, Platforms::Host).await;
    let path = folder.path().join("exported.tar");

    let file = File::create(&path).expect("there is room");
    from.export(&names, &ExportOptions::default(), file).await.expect("all is there");

    for kind in ["none", "gzip", "zstd"] {
        let bytes = compressed(&fs::read(&path).expect("it was written"), kind);
        let to = Windlass::open(folder.path().join(kind)).expect("there is room");
        let imported = to.import(Cursor::new(bytes), ImportOptions::default()).await.expect("it is whole");
        assert_eq!(imported.iter().map(|it| it.name.clone()).collect::<Vec<_>>(), names, "{kind}");
        for (name, image) in names.iter().zip([&app, &other]) {
            let record = to.images().get(name).expect("it can be read").expect("it is listed");
            assert_eq!(&record.target, &image.root);
        }
    }
}

#[tokio::test]
async fn a_saved_archive_that_comes_compressed_is_imported_and_unpacked() {
    let layer = Layer::new().file("file", 0o644, b"content");
    let image = ImageBuilder::new().layer(layer.clone()).build();
    let manifest = br#"[{ "Config": "config", "RepoTags": null, "Layers": ["layer"] }]"#;
    let config = image.blob(image.config().digest());
    let saved = Layer::new()
        .file("config", 0o644, &config)
        .file("layer", 0o644, &layer.clone().zstd().blob())
        .file("manifest.json", 0o644, manifest);
    let folder = tempfile::tempdir().expect("there is room");
    let snapshots = folder.path().join("native");
    let native = windlass::snapshot::Native::open(&snapshots, windlass::snapshot::Durability::Fast);
    let windlass = Windlass::builder()
        .snapshotter(native.expect("there is room"))
        .open(folder.path().join("root"))
        .expect("there is room");

    let options = || ImportOptions::default().unpack(true);
    let nameless = windlass.import(Cursor::new(saved.gzip().blob()), options()).await.expect("it is whole");

    assert_eq!(nameless[0].name, format!("localhost/import@{}", nameless[0].target.digest()));
    let opened = windlass.image(&nameless[0].name, &Platforms::Host).await.expect("it is listed");
    assert_eq!(nameless[0].chain_id, opened.chain_id());
    assert!(nameless[0].chain_id.is_some());
    let media_types: Vec<_> = opened.layers().map(|(layer, _)| layer.media_type().to_string()).collect();
    assert_eq!(media_types, ["application/vnd.oci.image.layer.v1.tar+zstd"]);
}

#[tokio::test]
async fn a_local_folder_or_file_may_have_less_than_its_index_lists() {
    let (amd, arm) = (of("linux/amd64"), of("linux/arm64"));
    let index = Index::of(&[amd.clone(), arm]);
    let folder = tempfile::tempdir().expect("there is room");
    let one = Platforms::One("linux/amd64".parse().expect("it is a platform"));
    let (from, names) = pulled(folder.path(), &[("library/app", &index)], one.clone()).await;
    let (layout, archive) = (folder.path().join("layout"), folder.path().join("a.tar"));
    let options = ExportOptions::default();
    from.export_layout(&names, &options, &layout).await.expect("amd64 is there");
    from.export(&names, &options, File::create(&archive).expect("there is room"))
        .await
        .expect("amd64 is there");
    OciLayout::open(&layout).expect("it is a layout");

    for (number, source) in
        [format!("oci:{}", layout.display()), format!("oci-archive:{}", archive.display())].iter().enumerate()
    {
        let source: Source = source.parse().expect("it is a source");
        let to = Windlass::open(folder.path().join(number.to_string())).expect("there is room");
        let arm = Platforms::One("linux/arm64".parse().expect("it is a platform"));

        let refused = to.import_from(&source, ImportOptions::default().platforms(arm)).await;
        let imported = to.import_from(&source, ImportOptions::default()).await.expect("amd64 is whole");

        refused.expect_err("arm64 is not there");
        assert_eq!(imported[0].name, names[0]);
        assert_eq!(imported[0].target, index.root);
        let image = to.image(&names[0], &one).await.expect("it is there");
        assert_eq!(image.descriptor().digest(), amd.root.digest());
    }
}

#[tokio::test]
async fn nothing_is_listed_of_an_archive_that_is_not_whole() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, other) = (of("linux/amd64"), of("linux/arm64"));
    let images = [("library/app", &app), ("library/other", &other)];
    let (from, names) = pulled(folder.path(), &images, Platforms::Host).await;
    let missing = other.layers()[0].digest().clone();
    from.content().delete(&missing).await.expect("it is there");
    let path = folder.path().join("partial.tar");

    let error = from
        .export(&names, &ExportOptions::default(), File::create(&path).expect("there is room"))
        .await
        .expect_err("a layer is gone");
    let nobody = from.export(&["r.example/nobody:v1"], &ExportOptions::default(), std::io::sink()).await;
    let to = Windlass::open(folder.path().join("to")).expect("there is room");
    let empty = to.import(File::open(&path).expect("it is there"), ImportOptions::default()).await;

    assert!(error.to_string().contains(&names[1]) && error.to_string().contains(missing.as_ref()), "{error}");
    assert!(matches!(nobody, Err(Error::NoImage { .. })), "{nobody:?}");
    empty.expect_err("nothing was written");
    assert!(to.images().list(&windlass::images::Filter::all()).expect("it can be read").is_empty());
}
