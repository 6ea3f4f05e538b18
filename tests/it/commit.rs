//! Images out of containers: what one has changed is in the image that is made of it, wherever that goes.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use windlass_testkit::{ImageBuilder, Layer, RealRegistry, require};

use crate::support::Dist;

const EPOCH: &str = "1700000000";

/// A shell, and some files to change.
fn base() -> ImageBuilder {
    let busybox = fs::read(require("busybox", "busybox-static")).expect("busybox can be read");
    let commands = ["sh", "cat", "mkdir", "rm", "touch", "ln", "chmod", "chown"];
    let places =
        ["dev", "proc", "run", "sys"].iter().fold(Layer::new(), |layer, place| layer.dir(place, 0o755));
    let bin = commands.iter().fold(
        places.dir("./", 0o755).dir("bin", 0o755).file("bin/busybox", 0o755, &busybox),
        |layer, command| layer.symlink(format!("bin/{command}"), "busybox"),
    );
    let data =
        Layer::new().dir("data", 0o750).file("data/old", 0o644, b"old").file("data/kept", 0o644, b"kept");
    ImageBuilder::new()
        .layer(bin)
        .layer(data)
        .entrypoint(&["/bin/busybox"])
        .cmd(&["true"])
        .env("PATH", "/bin")
}

const CHANGE: &str =
    "echo -n new > /data/new; rm /data/old; chmod 4755 /data/kept; mkdir -p /a/b; ln /data/new /a/b/same";

fn skopeo(arguments: &[&str]) -> Vec<u8> {
    run(Command::new(require("skopeo", "skopeo")).arg("--insecure-policy").args(arguments))
}

/// podman, with images in a folder of its own.
fn podman(folder: &Path, arguments: &[&str]) -> String {
    let mut podman = Command::new(require("podman", "podman"));
    podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
    podman
        .current_dir(folder)
        .arg("--root")
        .arg(folder.join("podman"))
        .arg("--runroot")
        .arg(folder.join("podman-run"));
    String::from_utf8(run(podman.args(arguments))).expect("it is text").trim().to_owned()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

/// A folder with the base image, and a container `c1` of it in which a script ran.
async fn changed(image: ImageBuilder, script: &str) -> (RealRegistry, Dist, String) {
    let registry = RealRegistry::start().await;
    registry.push(&image.build(), "base", "1").await;
    let (name, dist) = (format!("{}/base:1", registry.host()), Dist::new());
    dist.ok(&["run", "--name", "c1", &name, "sh", "-c", script]);
    (registry, dist, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_container_has_changed_is_committed_pushed_pulled_and_run() {
    let (registry, dist, _) = changed(base(), CHANGE).await;
    let name = format!("{}/new:1", registry.host());

    let digest = dist.ok(&["commit", "c1", &name, "--author", "me", "--message", "a change"]);
    dist.ok(&["push", &name]);
    dist.ok(&["containers", "rm", "c1"]);
    let other = Dist::new();
    other.ok(&["pull", &name]);
    let script =
        "cat /a/b/same; cat /data/kept; test ! -e /data/old && test -u /data/kept && echo -n ' gone'";
    let shown = other.ok(&["run", "--rm", &name, "sh", "-c", script]);

    assert_eq!(shown, "newkept gone");
    let inspected: Value =
        serde_json::from_slice(&skopeo(&["inspect", "--tls-verify=false", &format!("docker://{name}")]))
            .expect("it is JSON");
    assert_eq!(inspected["Digest"], digest.trim());
    assert_eq!(inspected["Layers"].as_array().map(Vec::len), Some(3));
    let config = ["inspect", "--config", "--tls-verify=false", &format!("docker://{name}")];
    let config: Value = serde_json::from_slice(&skopeo(&config)).expect("it is JSON");
    assert_eq!(config["author"], "me");
    let history = config["history"].as_array().expect("it has one").last().expect("it has a step");
    assert_eq!(
        (&history["comment"], &history["created_by"]),
        (&"a change".into(), &"windlass commit".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn other_tools_unpack_what_is_committed_however_it_is_compressed() {
    let (_registry, dist, _) = changed(base(), CHANGE).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let content = dist.root().join("content");
    for compression in ["gzip", "zstd", "none"] {
        let name = format!("new.example/{compression}:1");
        dist.ok(&["commit", "c1", &name, "--compression", compression]);
        let layout = folder.path().join(compression);
        skopeo(&["copy", &format!("oci:{}:{name}", text(&content)), &format!("oci:{}:1", text(&layout))]);

        let layout = format!("{}:1", text(&layout));
        // It names an image after its path, which must be in lower case.
        let id = podman(folder.path(), &["pull", "--quiet", &format!("oci:{compression}:1")]);
        let mut trees = vec![PathBuf::from(podman(folder.path(), &["image", "mount", &id]))];
        // It knows no zstd.
        if compression != "zstd" {
            let bundle = folder.path().join(format!("{compression}-bundle"));
            run(Command::new(require("umoci", "umoci")).args(["unpack", "--image", &layout]).arg(&bundle));
            trees.push(bundle.join("rootfs"));
        }
        for tree in trees {
            assert_eq!(fs::read(tree.join("a/b/same")).expect("it is there"), b"new", "{}", tree.display());
            assert!(!tree.join("data/old").exists(), "{}", tree.display());
            let metadata = fs::metadata(tree.join("data/kept")).expect("it is there");
            assert_eq!(metadata.mode() & 0o7777, 0o4755, "{}", tree.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_changes_are_the_same_image_if_their_time_is_given() {
    let (registry, dist, name) = changed(base(), CHANGE).await;
    dist.ok(&["run", "--name", "c2", &name, "sh", "-c", CHANGE]);
    let reference = format!("{}/new:1", registry.host());
    let commit = |key: &str| {
        let output = dist.command(&["commit", key, &reference]).env("SOURCE_DATE_EPOCH", EPOCH).output();
        String::from_utf8(output.expect("dist starts").stdout).expect("it is text")
    };

    let (first, second, third) = (commit("c1"), commit("c2"), dist.ok(&["commit", "c1", &reference]));

    assert_eq!(first, second);
    assert_ne!(first, third, "its times are its own");
    let layer = dist.command(&["diff", "c1"]).env("SOURCE_DATE_EPOCH", EPOCH).output().expect("dist starts");
    let mut archive = tar::Archive::new(&layer.stdout[..]);
    let entries = archive.entries().expect("it is an archive").map(|entry| {
        let entry = entry.expect("it is whole");
        (
            String::from_utf8(entry.path_bytes().into_owned()).expect("it is text"),
            entry.header().mtime().expect("a number"),
        )
    });
    let entries: Vec<_> = entries.collect();
    let names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["./", "a/", "a/b/", "a/b/same", "data/", "data/.wh.old", "data/kept", "data/new"]);
    assert!(entries.iter().all(|(_, time)| time.to_string() == EPOCH || *time == 0), "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_docker_image_stays_one_and_what_nobody_knows_of_its_config_is_kept() {
    let image = base().docker().config(|config| config["new"] = json!({ "field": [1, 2] }));
    let (_registry, dist, _) = changed(image, "touch /x").await;

    let digest = dist.ok(&["commit", "c1", "new.example/docker:1"]);

    let manifest: Value = serde_json::from_str(&dist.ok(&["get", digest.trim()])).expect("it is JSON");
    assert_eq!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let layer = manifest["layers"].as_array().expect("it has some").last().expect("a new one");
    assert_eq!(layer["mediaType"], "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let config = dist.ok(&["get", manifest["config"]["digest"].as_str().expect("it has one")]);
    assert!(config.contains("\"new\":{\"field\":[1,2]}"), "{config}");
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_are_listed_until_they_are_removed() {
    let (_registry, dist, name) = changed(base(), "touch /x").await;

    let listed = dist.json_lines(&["containers", "--json"]);
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["id"], &listed[0]["image"]), (&"c1".into(), &name.as_str().into()));
    assert_eq!(listed[0]["state"], "kept");
    assert_eq!(dist.ok(&["ps", "rm", "c1"]), "c1\n");

    assert!(dist.json_lines(&["containers", "--json"]).is_empty());
    assert!(dist.refused(&["containers", "rm", "c1"]).contains("no container \"c1\" here"));
    assert!(dist.refused(&["commit", "c1", "new"]).contains("no snapshot \"c1\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_has_left_is_listed_and_removed() {
    let (_registry, dist, name) = changed(base(), "true").await;
    let mut run = dist
        .command(&["run", "--name", "c2", &name, "sh", "-c", "touch /started; cat"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("dist starts");
    let started = dist.root().join("bundles/c2/rootfs/started");
    while !started.exists() {
        assert!(run.try_wait().expect("it can be waited for").is_none(), "it ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let state = || {
        let all = dist.json_lines(&["containers", "--json"]);
        all.into_iter().find(|it| it["id"] == "c2").map(|it| it["state"].clone())
    };
    assert_eq!(state(), Some("in use".into()));
    assert!(dist.refused(&["containers", "rm", "c2"]).contains("in use"));

    run.kill().expect("it runs");
    run.wait().expect("it ends");
    assert_eq!(state(), Some("abandoned".into()));
    dist.ok(&["containers", "rm", "c2"]);

    assert_eq!(state(), None);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts can be read");
    assert!(!mounts.contains(text(dist.root())), "nothing is mounted any more:\n{mounts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_which_nobody_knows_the_image_is_committed_if_it_is_named() {
    let (_registry, dist, name) = changed(base(), "true").await;
    let image = dist.json(&["images", "inspect", &name]);
    let layers = image["layers"].as_array().expect("it lists its layers");
    let chain_id = |layer: usize| layers[layer]["chainID"].as_str().expect("it is text");
    dist.ok(&["rootfs", "prepare", chain_id(1), "mine"]);
    dist.ok(&["rootfs", "prepare", chain_id(0), "other"]);

    let unknown = dist.refused(&["commit", "mine", "new.example/mine:1"]);
    let wrong = dist.refused(&["commit", "other", "new.example/other:1", "--base", &name]);
    dist.ok(&["commit", "mine", "new.example/mine:1", "--base", &name]);

    assert!(unknown.contains("--base"), "{unknown}");
    assert!(wrong.contains("it is on top of"), "{wrong}");
    assert_eq!(dist.names(), [&name, "new.example/mine:1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_snapshots_are_whole_copies_they_are_compared() {
    let registry = RealRegistry::start().await;
    registry.push(&base().build(), "base", "1").await;
    let (name, dist) = (format!("{}/base:1", registry.host()), Dist::new());
    let native = |arguments: &[&str]| dist.ok(&[&["--snapshotter", "native"], arguments].concat());
    native(&["run", "--name", "c1", &name, "sh", "-c", CHANGE]);

    native(&["commit", "c1", "new.example/native:1"]);

    let script = "cat /a/b/same; test ! -e /data/old && test -u /data/kept && echo -n ' gone'";
    assert_eq!(native(&["run", "--rm", "new.example/native:1", "sh", "-c", script]), "new gone");
    assert_eq!(
        dist.ok(&["run", "--rm", "new.example/native:1", "sh", "-c", script]),
        "new gone",
        "also unpacked anew"
    );
    let report = dist.json(&["--snapshotter", "native", "gc", "--json"]);
    assert_eq!(report["snapshots"], json!([]), "the view of the parent is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_were_discarded_are_fetched_for_whoever_pushes_the_new_image() {
    let registry = RealRegistry::start().await;
    registry.push(&base().build(), "base", "1").await;
    let (name, dist) = (format!("{}/base:1", registry.host()), Dist::new());
    let new = format!("{}/elsewhere/new:1", registry.host());
    dist.ok(&["pull", "--discard-layers", &name]);
    dist.ok(&["run", "--name", "c1", &name, "sh", "-c", CHANGE]);

    dist.ok(&["commit", "c1", &new]);
    dist.ok(&["push", &new]);

    assert_eq!(Dist::new().ok(&["run", "--rm", &new, "cat", "/data/new"]), "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_says_why_and_leaves_nothing() {
    let (_registry, dist, name) = changed(base(), "mkdir /in; touch /in/.wh.file").await;
    let before = (dist.names(), dist.ok(&["list", "-q"]));
    let commit = ["commit", "c1", "new.example/new:1"];

    let refused = dist.refused(&commit);
    let epoch = dist.command(&commit).env("SOURCE_DATE_EPOCH", "today").output().expect("dist starts");
    let digest = dist.refused(&["commit", "c1", &format!("new@sha256:{}", "0".repeat(64))]);

    assert!(refused.contains("in/.wh.file") && refused.contains("rename it"), "{refused}");
    let epoch = String::from_utf8_lossy(&epoch.stderr).into_owned();
    assert!(epoch.contains("$SOURCE_DATE_EPOCH") && epoch.contains("today"), "{epoch}");
    assert!(digest.contains("digest"), "{digest}");
    assert_eq!((dist.names(), dist.ok(&["list", "-q"])), before);
    assert_eq!(dist.ok(&["active", "-q"]), "");

    dist.ok(&["images", "rm", &name]);
    dist.ok(&["gc"]);
    let gone = dist.refused(&commit);
    assert!(gone.contains(&name) && gone.contains("pull it again"), "{gone}");
}
