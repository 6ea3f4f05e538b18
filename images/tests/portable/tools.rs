//! skopeo and podman read what we export, and we import what they write.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use oci_spec::image::Digest;
use serde_json::Value;
use tempfile::TempDir;
use windlass_content::LocalStore;
use windlass_images::{
    Image as Opened, Platform,
    import::{ImportOptions, Imported},
};
use windlass_testkit::{Image, ImageBuilder, Layer, require};

use crate::fixtures::{app, artifact, base, docker, exported, imported, index, store_with, zstd};

/// Runs a program, which must succeed; gives stdout.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

fn skopeo_copy(from: &str, to: &str, options: &[&str]) {
    let skopeo = require("skopeo", "skopeo");
    run(Command::new(skopeo).args(["--insecure-policy", "copy", "--quiet"]).args(options).args([from, to]));
}

/// podman, with images in a folder of its own.
struct Podman {
    folder: TempDir,
}

impl Podman {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("there is room") }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let path = |name: &str| self.folder.path().join(name);
        let mut podman = Command::new(require("podman", "podman"));
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        podman.arg("--root").arg(path("root")).arg("--runroot").arg(path("run"));
        run(podman.args(arguments))
    }

    /// The digest of the config of an image.
    fn id(&self, name: &str) -> String {
        self.run(&["image", "inspect", "--format", "sha256:{{.Id}}", name]).trim().to_owned()
    }
}

/// Writes an archive of images into a folder.
async fn write(folder: &Path, images: &[(&str, &Image)]) -> String {
    let (_folder, store) = store_with(images.iter().map(|(_, image)| *image)).await;
    let path = folder.join("exported.tar");
    fs::write(&path, exported(&store, images).await).expect("there is room");
    path.display().to_string()
}

#[tokio::test]
async fn skopeo_copies_what_is_exported_with_equal_digests() {
    let folder = tempfile::tempdir().expect("there is room");
    // Of a layout skopeo takes only OCI's media types; it reads Docker's images by `docker-archive:`, see below.
    let images = [app(), zstd(), index(), artifact()];
    let names = ["r.example/app:v1", "r.example/app:v2", "r.example/app:v3", "r.example/sbom:v4"];
    let named: Vec<_> = names.into_iter().zip(&images).collect();
    let path = write(folder.path(), &named).await;

    for (name, image) in named {
        let (_, tag) = name.rsplit_once(':').expect("it has a tag");
        let copy = folder.path().join(tag);
        skopeo_copy(
            &format!("oci-archive:{path}:{tag}"),
            &format!("dir:{}", copy.display()),
            &["--all", "--preserve-digests"],
        );
        let manifest = fs::read(copy.join("manifest.json")).expect("skopeo wrote it");
        assert!(manifest == image.blob(image.root.digest()), "{name}");
    }
    let layout = folder.path().join("layout");
    skopeo_copy(
        &format!("oci-archive:{path}:v1"),
        &format!("oci:{}:v1", layout.display()),
        &["--preserve-digests"],
    );
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("skopeo wrote it"))
        .expect("it is JSON");
    assert_eq!(index["manifests"][0]["digest"], images[0].root.digest().to_string());
}

#[tokio::test]
async fn skopeo_reads_it_as_an_archive_of_docker_too() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, docker) = (app(), docker());
    let named = [("r.example/app:v1", &app), ("docker.io/library/docker:v2", &docker)];
    let path = write(folder.path(), &named).await;

    for (name, image) in named {
        let copy = folder.path().join(image.config().digest().digest());
        skopeo_copy(&format!("docker-archive:{path}:{name}"), &format!("dir:{}", copy.display()), &[]);
        let manifest = fs::read(copy.join("manifest.json")).expect("skopeo wrote it");
        let manifest: Value = serde_json::from_slice(&manifest).expect("it is JSON");
        assert_eq!(manifest["config"]["digest"], image.config().digest().to_string(), "{name}");
    }
}

#[tokio::test]
async fn podman_loads_what_is_exported() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, docker, zstd, index) = (app(), docker(), zstd(), index());
    let amd = crate::fixtures::of("linux/amd64");
    for images in [
        &[("r.example/app:v1", &app, &app)][..],
        &[("docker.io/library/index:v1", &index, &amd)],
        &[
            ("r.example/app:v1", &app, &app),
            ("docker.io/library/docker:v2", &docker, &docker),
            ("r.example/zstd:v1", &zstd, &zstd),
        ],
    ] {
        let named: Vec<_> = images.iter().map(|(name, image, _)| (*name, *image)).collect();
        let path = write(folder.path(), &named).await;
        let podman = Podman::new();

        podman.run(&["load", "--quiet", "--input", &path]);

        for (name, _, image) in images {
            assert_eq!(podman.id(name), image.config().digest().to_string(), "{name}");
        }
    }
}

/// Asserts that an archive has these images, in any order, under these names, and all of their layers.
async fn assert_imports(path: &Path, images: &[(&str, &Image)]) {
    let archive = fs::read(path).expect("it was written");
    let (done, store, _folder) = imported(archive, ImportOptions::default().base("base")).await;
    let mut done = done.expect("it is whole");
    done.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<_> = done.iter().map(|it| it.name.as_deref().expect("there is a base")).collect();
    assert_eq!(names, images.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (done, (name, image)) in done.iter().zip(images) {
        assert_eq!(diff_ids(&store, done).await, image.diff_ids, "{name}");
    }
}

/// The DiffIDs of an image, whose blobs are read again.
async fn diff_ids(store: &LocalStore, imported: &Imported) -> Vec<Digest> {
    let image = Opened::open(store, &imported.target, &Platform::host()).await.expect("it is an image");
    for (layer, _) in image.layers() {
        let bytes = fs::read(store.path(layer.digest())).expect("it is there");
        assert_eq!(windlass_content::hash::sha256(&bytes), *layer.digest());
    }
    image.layers().map(|(_, diff_id)| diff_id.clone()).collect()
}

#[tokio::test]
async fn what_skopeo_writes_is_imported() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, zstd) = (app(), zstd());
    let path = write(folder.path(), &[("r.example/app:v1", &app), ("r.example/zstd:v2", &zstd)]).await;
    for (source, image) in [("v1", &app), ("v2", &zstd)] {
        // skopeo knows no zstd in Docker's images.
        let kinds = if source == "v1" { 5 } else { 3 };
        for (kind, suffix, name) in [
            ("oci-archive", ":r.example/new:v1", "r.example/new:v1"),
            ("oci-archive", ":v1", "localhost/base:v1"),
            ("oci-archive", "", "localhost/base:latest"),
            ("docker-archive", ":r.example/new:v1", "r.example/new:v1"),
            ("docker-archive", "", "localhost/base:latest"),
        ]
        .into_iter()
        .take(kinds)
        {
            let copy = folder.path().join("copy.tar");
            // skopeo adds to an archive that is there.
            let _ = fs::remove_file(&copy);
            skopeo_copy(
                &format!("oci-archive:{path}:{source}"),
                &format!("{kind}:{}{suffix}", copy.display()),
                &[],
            );
            assert_imports(&copy, &[(name, image)]).await;
        }
    }
}

#[tokio::test]
async fn what_podman_saves_is_imported() {
    let folder = tempfile::tempdir().expect("there is room");
    let (app, docker) = (app(), docker());
    // A layer that is there twice.
    let twice = ImageBuilder::new()
        .layer(base())
        .layer(Layer::new().file("between", 0o644, b"x"))
        .layer(base())
        .build();
    let images = [
        ("docker.io/library/docker:v2", &docker),
        ("r.example/app:v1", &app),
        ("r.example/twice:v3", &twice),
    ];
    let path = write(folder.path(), &images).await;
    let podman = Podman::new();
    podman.run(&["load", "--quiet", "--input", &path]);

    let saved = |name: &str| folder.path().join(name);
    let (all, one) = (saved("all.tar"), saved("one.tar"));
    let names: Vec<_> = images.iter().map(|(name, _)| *name).collect();
    let to = |path: &Path| path.display().to_string();
    podman.run(&[&["save", "--quiet", "--multi-image-archive", "--output", &to(&all)], &names[..]].concat());
    podman.run(&["save", "--quiet", "--format", "oci-archive", "--output", &to(&one), "r.example/app:v1"]);

    assert_imports(&all, &images).await;
    assert_imports(&one, &[("r.example/app:v1", &app)]).await;
}
