//! The command line against a real registry, Debian's `docker-registry`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use windlass_testkit::{Image, ImageBuilder, Index, Layer, RealRegistry};

use crate::support::Dist;

/// Two layers, the second of which changes and hides something of the first.
fn app() -> Image {
    ImageBuilder::new()
        .layer(Layer::new().dir("etc", 0o755).file("etc/motd", 0o644, b"lower").file("gone", 0o644, b"x"))
        .layer(Layer::new().file("etc/motd", 0o644, b"upper").whiteout("gone").zstd())
        .entrypoint(&["/bin/app"])
        .build()
}

async fn registry_with(name: &str, image: &Image) -> (RealRegistry, String) {
    let registry = RealRegistry::start().await;
    registry.push(image, name, "latest").await;
    let reference = format!("{}/{name}:latest", registry.host());
    (registry, reference)
}

fn events(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).expect("each line is an event")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_is_listed_and_a_second_pull_fetches_nothing() {
    let (_registry, name) = registry_with("library/app", &app()).await;
    let dist = Dist::new();

    let first = events(&dist.ok(&["pull", "--json", &name]));
    let second = events(&dist.ok(&["pull", "--json", &name]));

    let count = |events: &[Value], kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert_eq!(count(&first, "downloaded"), 4, "manifest, config, two layers");
    assert_eq!(count(&first, "unpacked"), 2);
    assert_eq!(count(&second, "downloaded"), 0);
    assert_eq!(count(&second, "exists"), 4);
    let images = events(&dist.ok(&["images", "--json"]));
    assert_eq!(images.len(), 1);
    assert_eq!(images[0]["ref"], name.as_str());
    assert!(dist.ok(&["images"]).starts_with("REF"));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_manifests_and_lists_are_pulled_for_the_platform_that_is_asked_for() {
    let of = |platform: &str| {
        let layer = Layer::new().file("platform", 0o644, platform.as_bytes());
        ImageBuilder::new().docker().platform(platform).layer(layer).build()
    };
    let index = Index::of(&[of("linux/amd64"), of("linux/arm64"), of("linux/s390x")]);
    let (_registry, name) = registry_with("library/multi", &index).await;
    let (one, all) = (Dist::new(), Dist::new());

    let arm = events(&one.ok(&["pull", "--json", "--platform", "linux/arm64/v8", &name]));
    let every = events(&all.ok(&["pull", "--json", "--all-platforms", &name]));
    let none = one.refused(&["pull", "--platform", "linux/mips", &name]);

    let count = |events: &[Value], kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert_eq!(count(&arm, "downloaded"), 4, "list, manifest, config, layer");
    assert_eq!(count(&every, "downloaded"), 10, "list, and three of each");
    assert_eq!(count(&every, "unpacked"), 1, "the host's");
    assert!(none.contains("linux/mips") && none.contains("linux/s390x"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_can_be_looked_into_and_emptied_by_pipes() {
    let (registry, name) = registry_with("library/app", &app()).await;
    let dist = Dist::new();
    dist.ok(&["fetch", &name]);

    let manifest = dist.ok(&["fetch-object", &name]);
    let manifest: Value = serde_json::from_str(&manifest).expect("a manifest by tag");
    let layer = manifest["layers"][0]["digest"].as_str().expect("layers have digests");
    let by_digest = format!("{}/library/app@{layer}", registry.host());
    let object = dist.command(&["fetch-object", &by_digest]).output().expect("dist starts").stdout;
    let stored = dist.command(&["get", layer]).output().expect("dist starts").stdout;
    let path = dist.ok(&["path", layer]);

    assert_eq!(object, stored, "a blob by digest");
    assert_eq!(std::fs::read(path.trim()).expect("the path is the blob's"), stored);
    let listed = dist.ok(&["list", "-q"]);
    assert_eq!(listed.lines().count(), 4);
    let mut delete = vec!["delete"];
    delete.extend(listed.lines());
    assert_eq!(dist.ok(&delete), listed, "delete prints what it deleted");
    assert_eq!(dist.ok(&["list", "-q"]), "");
    assert!(dist.refused(&["get", layer]).contains("no blob"));
    assert!(dist.refused(&["delete", layer]).contains("no blob"));
}

#[test]
fn an_ingest_that_breaks_off_is_listed_and_resumed() {
    let dist = Dist::new();
    let blob = b"the bytes of a blob".repeat(1000);
    let digest = windlass::content::hash::sha256(&blob).to_string();
    let size = blob.len().to_string();
    let arguments = ["ingest", "my-key", "--expected-digest", &digest, "--expected-size", &size];
    let ingest = |bytes: &[u8]| {
        let mut child =
            dist.command(&arguments).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
        child.stdin.take().expect("it is piped").write_all(bytes).expect("it reads all");
        child.wait().expect("it ends").code()
    };

    assert_eq!(ingest(&blob[..5000]), Some(1), "too short");
    assert_eq!(dist.ok(&["active", "-q"]), "my-key\n");
    assert_eq!(dist.ok(&["list", "-q"]), "");
    assert_eq!(ingest(&blob), Some(0));

    assert_eq!(dist.ok(&["active", "-q"]), "");
    assert_eq!(dist.ok(&["list", "-q"]).trim(), digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_unpacked_and_prepared_by_hand() {
    let image = app();
    let (_registry, name) = registry_with("library/app", &image).await;
    let dist = Dist::new();
    dist.ok(&["fetch", &name]);
    let target = tempfile::tempdir().expect("a temporary folder can be made");
    let at = target.path().to_str().expect("the path is UTF-8");

    let chain_id = dist.ok(&["rootfs", "unpack", image.root.digest().as_ref()]);
    let lines = dist.ok(&["rootfs", "prepare", chain_id.trim(), "mine", "--target", at]);
    let script = format!("{lines}\ncat {at}/etc/motd; test ! -e {at}/gone && echo -n ' gone'; umount {at}");
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare starts");

    assert_eq!(String::from_utf8_lossy(&output.stdout), "upper gone", "{lines}{output:?}");
}

#[test]
fn a_layer_on_stdin_is_applied_to_a_folder() {
    let dist = Dist::new();
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    for layer in [
        Layer::new().dir("a", 0o750).file("a/one", 0o640, b"1"),
        Layer::new().file("a/two", 0o604, b"2").zstd(),
        Layer::new().whiteout("a/one").plain(),
    ] {
        let mut child = dist
            .command(&["apply", dir.path().to_str().expect("the path is UTF-8")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        child.stdin.take().expect("it is piped").write_all(&layer.blob()).expect("it reads all");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), layer.diff_id().to_string());
    }

    assert!(!dir.path().join("a/one").exists());
    assert_eq!(std::fs::read(dir.path().join("a/two")).expect("it was applied"), b"2");
}
