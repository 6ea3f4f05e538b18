//! What takes the space, who holds it, and what is removed.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use serde_json::Value;
use windlass_testkit::{Artifact, Fault, Image, ImageBuilder, Registry};

use crate::support::{Dist, layer};

fn image(own: &str) -> Image {
    ImageBuilder::new().layer(layer("base")).layer(layer(own)).build()
}

/// Images that share a base, pulled in this order, with their names.
async fn pulled(owns: &[&str]) -> (Registry, Dist, Vec<(String, Image)>) {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let mut images = Vec::new();
    for own in owns {
        let (name, image) = (format!("{}/app:{own}", registry.host()), image(own));
        registry.push(&image, "app", own);
        dist.ok(&["pull", &name]);
        images.push((name, image));
        // Times are kept in milliseconds.
        std::thread::sleep(Duration::from_millis(5));
    }
    (registry, dist, images)
}

fn texts<'a>(report: &'a Value, kind: &str, field: &str) -> Vec<&'a str> {
    let mut texts: Vec<_> = report[kind]
        .as_array()
        .expect("it is a list")
        .iter()
        .map(|entry| entry[field].as_str().expect("it is text"))
        .collect();
    texts.sort_unstable();
    texts
}

fn listed(dist: &Dist) -> Vec<String> {
    dist.ok(&["list", "-q"]).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_removes_exactly_what_its_dry_run_said() {
    let (_registry, dist, images) = pulled(&["one", "two"]).await;
    let (name, one) = &images[0];
    dist.ok(&["images", "rm", name]);
    let before = listed(&dist);

    let would = dist.json(&["gc", "--dry-run", "--json"]);
    let untouched = listed(&dist);
    let table = dist.run(&["gc", "--dry-run"]);
    let did = dist.json(&["gc", "--json"]);
    let again = dist.json(&["gc", "--json"]);

    assert_eq!(before, untouched);
    for field in ["images", "leases", "snapshots", "blobs", "ingests", "bytes"] {
        assert_eq!(would[field], did[field], "{field}");
    }
    let digests = [one.root.clone(), one.config(), one.layers().remove(1)].map(|it| it.digest().to_string());
    let mut gone: Vec<_> = digests.iter().map(String::as_str).collect();
    gone.sort_unstable();
    assert_eq!(texts(&did, "blobs", "digest"), gone, "the base is the other image's, too");
    assert_eq!(did["snapshots"].as_array().map(Vec::len), Some(1));
    let left: Vec<_> = before.iter().filter(|digest| !gone.contains(&digest.as_str())).cloned().collect();
    assert_eq!(listed(&dist), left);
    assert_eq!(again["bytes"], 0, "{again}");
    assert!(gone.iter().all(|digest| table.stdout.contains(digest)), "{}", table.stdout);
    assert!(table.stderr.starts_with("would free "), "{}", table.stderr);
    assert!(dist.ok(&["images", "check"]).contains("complete"));
    assert_eq!(dist.files(&[], &images[1].0), ["./base=base", "./two=two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_drop_names_and_labels_keep_them() {
    for (policy, dropped) in [
        (&["--keep-newest", "1"][..], &[0, 1][..]),
        (&["--keep-newest", "2"], &[0]),
        (&["--unused-since", "1h"], &[]),
        (&["--unused-since", "0s"], &[0, 1, 2]),
        (&["--max-size", "0"], &[0, 1, 2]),
        (&["--max-size", "1000000"], &[]),
        (&["--max-size", "0", "--keep-label", "windlass.unpacked"], &[0, 1]),
        (&["--max-size", "0", "--keep-label", "windlass.unpacked=false"], &[0, 1, 2]),
        (&["--keep-label", "nothing"], &[]),
    ] {
        let (_registry, dist, images) = pulled(&["one", "two", "three"]).await;
        dist.ok(&["pull", "--discard-layers", &images[2].0]);

        let would = dist.json(&[&["gc", "--dry-run", "--json"], policy].concat());
        let did = dist.json(&[&["gc", "--json"], policy].concat());

        let mut names: Vec<_> = dropped.iter().map(|nth: &usize| images[*nth].0.as_str()).collect();
        names.sort_unstable();
        assert_eq!(did["images"], serde_json::json!(names), "{policy:?}");
        assert_eq!(would["images"], did["images"], "{policy:?}");
        assert_eq!(texts(&would, "blobs", "digest"), texts(&did, "blobs", "digest"), "{policy:?}");
        assert_eq!(dist.names().len(), 3 - dropped.len(), "{policy:?}");
        let index = std::fs::read(dist.root().join("content/index.json")).expect("it is there");
        let index: Value = serde_json::from_slice(&index).expect("it parses");
        assert_eq!(index["manifests"].as_array().map(Vec::len), Some(3 - dropped.len()), "{policy:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_an_image_stays_with_it_and_goes_with_it() {
    let (registry, dist, images) = pulled(&["one"]).await;
    let (name, image) = &images[0];
    let artifact =
        Artifact::new("application/vnd.example.sbom").blob("text/plain", "a bill").subject(&image.root);
    let artifact = artifact.build();
    registry.push(&artifact, "app", "sbom");
    let sbom = format!("{}/app:sbom", registry.host());
    dist.ok(&["fetch", &sbom]);
    dist.ok(&["images", "rm", &sbom]);

    let kept = dist.json(&["gc", "--json"]);
    let du = dist.json_lines(&["du", "--json"]);
    let is_there = dist.blob(artifact.root.digest()).exists();
    dist.ok(&["images", "rm", name]);
    dist.ok(&["gc"]);

    assert_eq!(kept["blobs"], serde_json::json!([]));
    assert!(is_there);
    let unneeded = du.iter().find(|line| line["type"] == "reclaimable").expect("it says what can be freed");
    assert_eq!(unneeded["bytes"], 0, "{du:?}");
    assert_eq!(listed(&dist), [""; 0]);
}

/// A pull that waits for its layer.
async fn hanging(dist: &Dist, registry: &Registry) -> (Child, Image) {
    let image = image("slow");
    registry.push(&image, "slow", "1");
    registry.fault(Fault::stall(image.layers()[1].digest().as_ref(), Duration::from_secs(60)));
    let name = format!("{}/slow:1", registry.host());
    let mut child = dist
        .command(&["pull", &name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dist starts");
    for _ in 0..200 {
        if dist.blob(image.layers()[0].digest()).exists() && dist.blob(image.config().digest()).exists() {
            return (child, image);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ended = child.kill().and_then(|()| child.wait());
    panic!("the other blobs do not come: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_another_process_holds_until_that_dies() {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let (mut child, image) = hanging(&dist, &registry).await;

    let beside = dist.json(&["gc", "--json"]);
    let held = dist.ok(&["leases"]);
    let id = held.lines().nth(1).and_then(|line| line.split(' ').next()).expect("one lease").to_owned();
    let refused = dist.refused(&["leases", "rm", &id]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let dead = dist.ok(&["leases"]);
    let after = dist.json(&["gc", "--json"]);

    assert_eq!(beside["blobs"], serde_json::json!([]));
    assert!(held.contains("held") && held.contains("pull="), "{held}");
    assert!(refused.contains(&id) && refused.contains("running"), "{refused}");
    assert!(dead.contains("dead"), "{dead}");
    assert_eq!(after["leases"], serde_json::json!([id]));
    assert_eq!(after["blobs"].as_array().map(Vec::len), Some(3), "manifest, config, one layer: {after}");
    assert_eq!(dist.ok(&["leases"]).lines().count(), 1, "only the heading");
    assert_eq!(listed(&dist), [""; 0]);
    registry.push(&image, "slow", "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_lease_is_removed_by_hand() {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let (mut child, _) = hanging(&dist, &registry).await;
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let dead = dist.ok(&["leases"]);
    let id = dead.lines().nth(1).and_then(|line| line.split(' ').next()).expect("one lease").to_owned();

    let removed = dist.ok(&["leases", "rm", &id]);
    let again = dist.refused(&["leases", "rm", &id]);

    assert_eq!(removed, format!("{id}\n"));
    assert_eq!(again, format!("dist: no lease {id} here"));
    assert_eq!(dist.ok(&["leases"]).lines().count(), 1, "only the heading");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshots_under_a_container_stay_when_its_image_goes() {
    let (_registry, dist, images) = pulled(&["one"]).await;
    let (name, image) = &images[0];
    let chain_id = dist.ok(&["rootfs", "unpack", image.root.digest().as_ref()]);
    let prepared = dist.ok(&["rootfs", "prepare", chain_id.trim(), "container"]);

    dist.ok(&["images", "rm", name]);
    let report = dist.json(&["gc", "--json"]);

    assert_eq!(report["snapshots"], serde_json::json!([]));
    assert_eq!(report["blobs"].as_array().map(Vec::len), Some(4));
    let words = prepared.split([',', ' ', '\'', '=', ':', ')']);
    let images: Vec<_> = words.filter(|word| word.ends_with(".erofs")).collect();
    assert!(!images.is_empty(), "{prepared}");
    for image in images {
        assert!(std::path::Path::new(image).exists(), "{image}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_the_space_adds_up() {
    let (_registry, dist, images) = pulled(&["one", "two"]).await;
    dist.ok(&["images", "tag", &images[1].0, "again:1"]);

    let du = dist.json_lines(&["du", "--json"]);
    let table = dist.ok(&["du"]);

    let size = |image: &Image| image.blobs.values().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let base = images[0].1.layers()[0].size();
    let of = |name: &str| du.iter().find(|line| line["ref"] == name).expect("it is listed");
    for (name, image) in [
        (&*images[0].0, &images[0].1),
        (&images[1].0, &images[1].1),
        ("docker.io/library/again:1", &images[1].1),
    ] {
        assert_eq!(of(name)["blobs"], size(image), "{name}");
        assert_eq!(of(name)["shared"], base, "a second name shares nothing with another image: {name}");
        assert!(of(name)["unpacked"].as_u64() > Some(0), "{name}");
        assert!(table.contains(name), "{table}");
    }
    let total = |kind: &str| du.iter().find(|line| line["type"] == kind).expect("it is a total").clone();
    let files = listed(&dist);
    let on_disk: u64 =
        files.iter().map(|digest| dist.blob(digest).metadata().expect("it is there").len()).sum();
    assert_eq!(total("blobs")["count"], files.len());
    assert_eq!(total("blobs")["bytes"], on_disk);
    assert_eq!(on_disk, size(&images[0].1) + size(&images[1].1) - base);
    assert_eq!(total("snapshots")["count"], 3, "a base and two more");
    assert_eq!((&total("ingests")["count"], &total("reclaimable")["bytes"]), (&0.into(), &0.into()));

    dist.ok(&["images", "rm", &images[0].0]);
    let du = dist.json_lines(&["du", "--json"]);
    let freed = dist.json(&["gc", "--json"]);
    let reclaimable = du.iter().find(|line| line["type"] == "reclaimable").expect("it is a total");
    assert!(freed["bytes"].as_u64() > Some(0));
    assert_eq!(reclaimable["bytes"], freed["bytes"], "what it said is what a collection frees");
}
