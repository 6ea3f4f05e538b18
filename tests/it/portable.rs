//! Archives: ours are read by others, theirs by us, and the same images give the same bytes.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use windlass_testkit::{Image, ImageBuilder, Index, Registry, require};

use crate::support::{Dist, layer};

fn app(own: &str) -> Image {
    ImageBuilder::new().layer(layer("base")).layer(layer(own)).build()
}

/// A folder with two images, and their names.
async fn two() -> (Dist, [String; 2], [Image; 2]) {
    let (registry, dist, images) = (Registry::start().await, Dist::new(), [app("one"), app("two")]);
    let names = ["one", "two"].map(|name| format!("{}/{name}:1", registry.host()));
    for ((image, name), tag) in images.iter().zip(&names).zip(["one", "two"]) {
        registry.push(image, tag, "1");
        dist.ok(&["fetch", name]);
    }
    (dist, names, images)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(require("skopeo", "skopeo"))
        .args(["--insecure-policy"])
        .args(arguments)
        .output()
        .expect("skopeo starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_reads_what_is_exported_as_either_kind_of_archive() {
    let (dist, names, images) = two().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = folder.path().join("both.tar");
    dist.ok(&["images", "export", text(&archive), &names[0], &names[1]]);

    for (nth, (name, image)) in names.iter().zip(&images).enumerate() {
        let oci = folder.path().join(format!("oci-{nth}"));
        let oci_source = format!("oci-archive:{}:{name}", archive.display());
        skopeo(&["copy", &oci_source, &format!("oci:{}:copy", oci.display())]);
        let raw = skopeo(&["inspect", "--raw", &format!("oci:{}:copy", oci.display())]);
        assert_eq!(raw, image.blob(image.root.digest()), "{name}");

        let docker = folder.path().join(format!("docker-{nth}"));
        let docker_source = format!("docker-archive:{}:{name}", archive.display());
        skopeo(&["copy", &docker_source, &format!("dir:{}", docker.display())]);
        let config = skopeo(&["inspect", "--config", "--raw", &docker_source]);
        assert_eq!(config, image.blob(image.config().digest()), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_skopeo_writes_is_imported_from_a_pipe_however_it_is_compressed() {
    let (dist, names, images) = two().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let content = dist.root().join("content");
    let from = format!("oci:{}:{}", content.display(), names[0]);
    for kind in ["docker-archive", "oci-archive"] {
        for (program, package) in [("cat", "coreutils"), ("gzip", "gzip"), ("zstd", "zstd")] {
            let archive = folder.path().join(format!("{kind}-{program}.tar"));
            let tag = if kind == "docker-archive" { "saved.example/app:v1" } else { "v1" };
            skopeo(&["copy", &from, &format!("{kind}:{}:{tag}", archive.display())]);
            let mut compress = Command::new(require(program, package));
            if program != "cat" {
                compress.arg("-c");
            }
            let mut compress = compress
                .stdin(File::open(&archive).expect("skopeo wrote it"))
                .stdout(Stdio::piped())
                .spawn()
                .expect("it starts");
            let to = Dist::new();

            let output = to
                .command(&["images", "import", "--unpack", "-"])
                .stdin(compress.stdout.take().expect("it is piped"))
                .output()
                .expect("dist starts");
            compress.wait().expect("it ends");

            let name = if kind == "docker-archive" { tag } else { "localhost/import:v1" };
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{kind} {program}: {output:?}");
            assert!(stdout.starts_with(&format!("{name} sha256:")), "{kind} {program}: {stdout}");
            assert_eq!(to.names(), [name], "{kind} {program}");
            assert_eq!(to.files(&[], name), ["./base=base", "./one=one"], "{kind} {program}");
            let config = to.json(&["images", "inspect", name])["manifest"]["config"]["digest"].clone();
            assert_eq!(
                config,
                images[0].config().digest().as_ref(),
                "{kind} {program}: it is the same image"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_images_give_the_same_bytes_in_a_file_and_in_a_pipe() {
    let (dist, [one, two], _) = two().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let files = ["a.tar", "b.tar"].map(|name| folder.path().join(name));

    dist.ok(&["images", "export", text(&files[0]), &one, &two]);
    let piped = dist.command(&["images", "export", "-", &one, &two]).output().expect("dist starts");
    let other = Dist::new();
    other.ok(&["images", "import", text(&files[0])]);
    other.ok(&["images", "export", text(&files[1]), &one, &two]);

    let first = fs::read(&files[0]).expect("it was written");
    assert!(piped.status.success() && piped.stdout == first, "{}", String::from_utf8_lossy(&piped.stderr));
    assert_eq!(String::from_utf8_lossy(&piped.stderr), "");
    assert!(fs::read(&files[1]).expect("it was written") == first, "another folder, the same bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_of_an_archive_is_imported_alone() {
    let (dist, names, images) = two().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = folder.path().join("both.tar");
    dist.ok(&["images", "export", text(&archive), &names[0], &names[1]]);
    let to = Dist::new();

    let imported = to.ok(&["images", "import", "--name", &names[1], text(&archive)]);
    let refused = to.refused(&["images", "import", "--name", "nobody:1", text(&archive)]);

    assert_eq!(imported, format!("{} {}\n", names[1], images[1].root.digest()));
    assert_eq!(to.names(), [names[1].clone()]);
    assert!(refused.contains("nobody:1") && refused.contains("two:1"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_platform_of_an_index_is_exported_alone() {
    let of = |platform: &str, own| ImageBuilder::new().platform(platform).layer(layer(own)).build();
    let (amd, arm) = (of("linux/amd64", "amd"), of("linux/arm64", "arm"));
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(&Index::of(&[amd.clone(), arm.clone()]), "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["fetch", "--all-platforms", &name]);
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = folder.path().join("arm.tar");

    dist.ok(&["images", "export", "--platform", "linux/arm64", text(&archive), &name]);

    let to = Dist::new();
    to.ok(&["images", "import", text(&archive)]);
    let listed = to.ok(&["list", "-q"]);
    assert!(listed.contains(arm.layers()[0].digest().as_ref()), "{listed}");
    assert!(!listed.contains(amd.layers()[0].digest().as_ref()), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_what_is_not_whole_names_the_image_and_the_blob() {
    let (dist, names, images) = two().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = folder.path().join("both.tar");
    for blob in [images[1].layers().remove(1), images[1].config(), images[1].root.clone()] {
        fs::remove_file(dist.blob(blob.digest())).expect("it is there");

        let refused = dist.refused(&["images", "export", text(&archive), &names[0], &names[1]]);

        assert!(refused.contains(&names[1]) && refused.contains(blob.digest().as_ref()), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).expect("it is a folder").count(), 0, "nothing is left of it");
    }
}

#[test]
fn what_is_no_archive_is_refused_in_one_line() {
    let dist = Dist::new();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let (empty, noise) = (folder.path().join("empty"), folder.path().join("noise"));
    fs::write(&empty, b"").expect("it can be written");
    fs::write(&noise, b"this is no archive ".repeat(1000)).expect("it can be written");
    for (path, why) in [
        (text(&empty), "cannot use the archive"),
        (text(&noise), "cannot use the archive"),
        ("/dev/null", "cannot use the archive"),
        (text(folder.path()), "oci-layout"),
        ("/nothing/here.tar", "cannot open /nothing/here.tar: No such file"),
        ("oci:/nothing/here", "/nothing/here"),
    ] {
        let refused = dist.refused(&["images", "import", path]);

        assert!(refused.contains(why), "{path}: {refused}");
        dist.shows_nothing();
    }
}
