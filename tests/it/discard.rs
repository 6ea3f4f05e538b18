//! Layers that are not kept as blobs once they are unpacked, and what becomes of whoever needs them later.

use std::{
    fs,
    process::{Command, Stdio},
};

use windlass_testkit::{Image, ImageBuilder, Registry, require};

use crate::support::{Dist, fetched, layer};

const NATIVE: [&str; 2] = ["--snapshotter", "native"];

fn image(own: &str) -> Image {
    ImageBuilder::new().layer(layer("base")).layer(layer(own)).build()
}

fn layers(image: &Image) -> Vec<String> {
    sorted(image.layers().iter().map(|layer| layer.digest().to_string()))
}

fn kept(image: &Image) -> Vec<String> {
    sorted([image.root.digest(), image.config().digest()].map(ToString::to_string))
}

fn sorted(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort();
    texts
}

fn listed(dist: &Dist) -> Vec<String> {
    dist.ok(&["list", "-q"]).lines().map(str::to_owned).collect()
}

async fn discarded() -> (Registry, Image, String, Dist) {
    let (registry, image, dist) = (Registry::start().await, image("own"), Dist::new());
    registry.push(&image, "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["pull", "--discard-layers", &name]);
    (registry, image, name, dist)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_layers_are_discarded_and_nothing_is_fetched_by_the_next_pull() {
    let (registry, image, name, dist) = discarded().await;
    let before = registry.requests().len();

    let after_pull = listed(&dist);
    dist.ok(&["pull", "--discard-layers", &name]);
    let freed = dist.json(&["gc", "--json"]);

    assert_eq!(after_pull, kept(&image));
    assert_eq!(fetched(&registry, before), [""; 0]);
    assert_eq!(freed["bytes"], 0, "{freed}");
    assert_eq!(listed(&dist), kept(&image));
    assert_eq!(dist.files(&[], &name), ["./base=base", "./own=own"]);
    assert!(dist.ok(&["images", "check", &name]).contains("layers not kept"));
    assert!(dist.ok(&["images"]).contains(&name));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_its_layers_runs_without_its_registry() {
    let busybox = fs::read(require("busybox", "busybox-static")).expect("busybox can be read");
    let shell = windlass_testkit::Layer::new().dir("bin", 0o755).file("bin/busybox", 0o755, &busybox);
    let image = ImageBuilder::new().layer(shell).entrypoint(&["/bin/busybox"]).build();
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(&image, "shell", "1");
    let name = format!("{}/shell:1", registry.host());
    dist.ok(&["pull", "--discard-layers", &name]);
    drop(registry);

    let by_name = dist.ok(&["run", "--rm", &name, "echo", "hello"]);
    let digest = image.root.digest().as_ref();
    let by_digest = dist.ok(&["run", "--rm", &digest[..20], "echo", "again"]);
    let nothing = dist.refused(&["run", "--rm", "sha256:0000000000", "true"]);

    assert_eq!((&*by_name, &*by_digest), ("hello\n", "again\n"));
    assert!(nothing.contains("no image sha256:0000000000 here"), "{nothing}");
    assert_eq!(listed(&dist), kept(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_needs_the_layers_fetches_them_by_digest_from_where_they_came() {
    let target = Registry::start().await;
    let archive = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = archive.path().join("app.tar");
    let archive = archive.to_str().expect("the path is UTF-8");
    for need in ["push", "export", "unpack"] {
        let (registry, image, name, dist) = discarded().await;
        // The tag means something else by now.
        registry.push(&self::image("new"), "app", "1");
        let before = registry.requests().len();

        match need {
            "push" => drop(dist.ok(&["push", &name, &format!("{}/copy:1", target.host())])),
            "export" => drop(dist.ok(&["images", "export", archive, &name])),
            _ => drop(dist.ok(&[&NATIVE[..], &["rootfs", "unpack", image.root.digest().as_ref()]].concat())),
        }

        assert_eq!(sorted(fetched(&registry, before)), layers(&image), "{need}");
        match need {
            "push" => assert_eq!(target.tags("copy")["1"], image.root.digest().to_string()),
            "export" => {
                let fresh = Dist::new();
                fresh.ok(&["images", "import", "--unpack", archive]);
                assert_eq!(fresh.files(&[], &name), ["./base=base", "./own=own"]);
            }
            _ => assert_eq!(dist.files(&NATIVE, &name), ["./base=base", "./own=own"]),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_driver_runs_an_image_whose_layers_were_discarded() {
    let busybox = fs::read(require("busybox", "busybox-static")).expect("busybox can be read");
    let shell = windlass_testkit::Layer::new().dir("bin", 0o755).file("bin/busybox", 0o755, &busybox);
    let image = ImageBuilder::new().layer(shell).entrypoint(&["/bin/busybox"]).build();
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(&image, "shell", "1");
    let name = format!("{}/shell:1", registry.host());
    dist.ok(&["pull", "--discard-layers", &name]);
    let before = registry.requests().len();

    let said = dist.ok(&[&NATIVE[..], &["run", "--rm", &name, "echo", "hello"]].concat());

    assert_eq!(said, "hello\n");
    assert_eq!(fetched(&registry, before), layers(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_registry_is_gone_the_error_names_the_blob_and_the_reason() {
    let (registry, image, name, dist) = discarded().await;
    let host = registry.host();
    drop(registry);
    let archive = dist.root().join("app.tar");
    let archive = archive.to_str().expect("the path is UTF-8");
    let other = Registry::start().await;
    let copy = format!("{}/copy:1", other.host());
    let unpack = [&NATIVE[..], &["rootfs", "unpack", image.root.digest().as_ref()]].concat();
    for arguments in [&["push", &name, &copy][..], &["images", "export", archive, &name], &unpack] {
        let refused = dist.refused(arguments);

        let names_one = layers(&image).iter().any(|layer| refused.contains(layer));
        assert!(names_one && refused.contains("is not kept here"), "{arguments:?}: {refused}");
        assert!(refused.contains(&host) && refused.contains("onnect"), "{arguments:?}: {refused}");
    }
    assert_eq!(listed(&dist), kept(&image));
    assert_eq!(dist.files(&[], &name), ["./base=base", "./own=own"], "it still runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_from_a_file_says_that_it_cannot_be_fetched_again() {
    let (_registry, _, name, dist) = discarded().await;
    let archive = dist.root().join("app.tar");
    let source = format!("oci-archive:{}", archive.display());
    dist.ok(&["images", "export", archive.to_str().expect("the path is UTF-8"), &name]);
    let fresh = Dist::new();
    fresh.ok(&["pull", "--discard-layers", &source]);
    let names = fresh.names();

    let refused = fresh.refused(&["images", "export", "-", &names[0]]);

    assert!(refused.contains("its image came from no registry"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_image_that_was_there_before_stays() {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let (one, two) = (image("one"), image("two"));
    registry.push(&one, "one", "1");
    registry.push(&two, "two", "1");
    let [one_name, two_name] = ["one", "two"].map(|name| format!("{}/{name}:1", registry.host()));
    dist.ok(&["pull", &one_name]);

    dist.ok(&["pull", "--discard-layers", &two_name]);

    let all_of_one = [kept(&one), layers(&one)].concat();
    assert_eq!(listed(&dist), sorted([all_of_one, kept(&two)].concat()));
    assert!(dist.ok(&["images", "check", &one_name]).contains("complete"));
    assert_eq!(dist.files(&[], &two_name), ["./base=base", "./two=two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_images_that_share_a_base_both_can_be_without_layers() {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let (one, two) = (image("one"), image("two"));
    registry.push(&one, "one", "1");
    registry.push(&two, "two", "1");
    let [one_name, two_name] = ["one", "two"].map(|name| format!("{}/{name}:1", registry.host()));
    dist.ok(&["pull", "--discard-layers", &one_name]);
    let before = registry.requests().len();

    dist.ok(&["pull", "--discard-layers", &two_name]);
    let two_fetched = fetched(&registry, before);
    dist.ok(&["gc"]);
    dist.ok(&["images", "rm", &one_name]);
    let report = dist.json(&["gc", "--json"]);

    let base = one.layers()[0].digest().to_string();
    assert!(!two_fetched.contains(&base), "its snapshot was there: {two_fetched:?}");
    assert_eq!(listed(&dist), kept(&two));
    assert_eq!(report["snapshots"].as_array().map(Vec::len), Some(1), "only its own: {report}");
    assert_eq!(dist.files(&[], &two_name), ["./base=base", "./two=two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_keeps_layers_fetches_those_that_were_discarded() {
    let (registry, image, name, dist) = discarded().await;
    let before = registry.requests().len();

    dist.ok(&["pull", &name]);

    assert_eq!(sorted(fetched(&registry, before)), layers(&image));
    assert!(dist.ok(&["images", "check", &name]).contains("complete"));
    let skopeo = Command::new(require("skopeo", "skopeo"))
        .args(["inspect", &format!("oci:{}:{name}", dist.root().join("content").display())])
        .output()
        .expect("skopeo starts");
    assert!(skopeo.status.success(), "{}", String::from_utf8_lossy(&skopeo.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_its_layer_that_somebody_removed_is_made_again() {
    let (registry, image, name, dist) = discarded().await;
    let snapshots = dist.root().join("snapshots/erofs/snapshots");
    let lost: Vec<_> = fs::read_dir(&snapshots)
        .expect("it is a folder")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| {
            let layer = fs::read(path.join("layer.erofs")).expect("it is committed");
            layer.windows(4).any(|bytes| bytes == b"base")
        })
        .collect();
    let before = registry.requests().len();
    fs::remove_dir_all(&lost[0]).expect("it is there");

    dist.ok(&["pull", "--discard-layers", &name]);

    assert!(fetched(&registry, before).contains(&image.layers()[0].digest().to_string()));
    assert_eq!(dist.files(&[], &name), ["./base=base", "./own=own"]);
    assert_eq!(listed(&dist), kept(&image));
}

/// Pulls that keep layers, pulls that do not, and collections, all at once and of images that share a base.
#[tokio::test(flavor = "multi_thread")]
async fn pulls_that_discard_take_nothing_from_those_that_keep() {
    let registry = Registry::start().await;
    let owns = ["one", "two", "three", "four"];
    let images = owns.map(image);
    for (own, image) in owns.iter().zip(&images) {
        registry.push(image, own, "1");
    }
    for round in 0..3 {
        let dist = Dist::new();
        let start = |arguments: &[&str]| {
            let mut command = dist.command(arguments);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("dist starts")
        };
        let names = owns.map(|own| format!("{}/{own}:1", registry.host()));
        let mut children = Vec::new();
        for (nth, name) in names.iter().enumerate() {
            // Even ones are kept; odd ones are pulled both ways at once.
            children.push(start(&["pull", name]));
            if nth % 2 == 1 {
                children.push(start(&["pull", "--discard-layers", name]));
            }
            children.push(start(&["gc"]));
        }

        for child in children {
            let output = child.wait_with_output().expect("it ends");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }

        dist.ok(&["verify"]);
        assert_eq!(dist.names().len(), 4, "{round}");
        for (nth, name) in names.iter().enumerate() {
            let checked = dist.ok(&["images", "check", name]);
            assert!(nth % 2 == 1 || checked.contains("complete"), "{round}: {checked}");
            let own = format!("./{0}={0}", owns[nth]);
            assert_eq!(dist.files(&[], name), sorted(["./base=base".to_owned(), own]), "{round}");
        }
        dist.ok(&["gc"]);
        assert_eq!(dist.ok(&["leases"]).lines().count(), 1, "{round}: only the heading");
        assert!(dist.ok(&["active", "-q"]).is_empty(), "{round}");
    }
}
