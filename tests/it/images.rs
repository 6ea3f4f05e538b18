//! Names: what they stand for, who else can read them, and how they end.

use std::{
    fs,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::Value;
use windlass_testkit::{Image, ImageBuilder, Index, Registry, require};

use crate::support::{Dist, layer};

fn app(content: &str) -> Image {
    ImageBuilder::new().layer(layer("base")).layer(layer(content)).build()
}

/// What skopeo says of a name in the content folder.
fn skopeo(dist: &Dist, name: &str) -> Output {
    Command::new(require("skopeo", "skopeo"))
        .args(["inspect", "--raw", &format!("oci:{}:{name}", dist.root().join("content").display())])
        .output()
        .expect("skopeo starts")
}

async fn fetched(image: &Image) -> (Registry, String, Dist) {
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(image, "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["fetch", &name]);
    (registry, name, dist)
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_finds_every_image_by_name_until_it_is_removed() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;
    let archive = dist.root().join("app.tar");
    let archive = archive.to_str().expect("the path is UTF-8");
    dist.ok(&["images", "tag", &name, "tagged"]);
    dist.ok(&["images", "export", archive, "tagged"]);
    dist.ok(&["images", "rm", "tagged"]);
    dist.ok(&["images", "tag", &name, "other.example/tagged:2"]);
    dist.ok(&["images", "import", archive]);
    let names = [&*name, "other.example/tagged:2", "docker.io/library/tagged:latest"];

    for name in names {
        let found = skopeo(&dist, name);
        assert_eq!(found.stdout, image.blob(image.root.digest()), "{name}: {found:?}");
    }
    for name in names {
        assert_eq!(dist.ok(&["images", "rm", name]), format!("{name}\n"));
        assert!(!skopeo(&dist, name).status.success(), "{name}");
        assert!(!dist.names().contains(&name.to_owned()), "{name}");
    }
    assert_eq!(dist.ok(&["list", "-q"]).lines().count(), 4, "content stays until a collection");
    dist.ok(&["gc"]);
    assert_eq!(dist.ok(&["list", "-q"]), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_can_be_read_at_any_time_while_names_come_and_go() {
    let (_registry, name, dist) = fetched(&app("own")).await;
    let path = dist.root().join("content/index.json");
    let done = AtomicBool::new(false);

    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let bytes = fs::read(&path).expect("it is always there");
                let index: Value = serde_json::from_slice(&bytes).expect("it always parses");
                let names = index["manifests"].as_array().expect("it always has a list");
                assert!((1..=3).contains(&names.len()), "{index}");
                reads += 1;
            }
            reads
        });
        let writers = ["a", "b"].map(|new| {
            let (dist, name) = (&dist, &name);
            scope.spawn(move || {
                for _ in 0..8 {
                    dist.ok(&["images", "tag", name, new]);
                    dist.ok(&["images", "rm", new]);
                }
            })
        });
        writers.into_iter().for_each(|writer| writer.join().expect("each change is a good one"));
        done.store(true, Ordering::Relaxed);
        reader.join().expect("each read is a good one")
    });

    assert!(reads > 1);
    let index: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it parses");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1), "the last one to look wins");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_has_two_names_survives_the_removal_of_one() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;
    dist.ok(&["images", "tag", &name, "again:1"]);

    dist.ok(&["images", "rm", &name]);
    let report = dist.json(&["gc", "--json"]);

    assert_eq!(report["blobs"], serde_json::json!([]));
    assert_eq!(dist.names(), ["docker.io/library/again:1"]);
    assert!(dist.ok(&["images", "check", "again:1"]).contains("complete"));
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_what_was_fetched_and_what_it_means() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;

    let shown = dist.json(&["images", "inspect", &name]);

    assert_eq!(shown["name"], *name);
    assert_eq!(shown["target"]["digest"], image.root.digest().as_ref());
    assert_eq!(shown["labels"]["windlass.source"], *name);
    let blob = |digest| -> Value { serde_json::from_slice(&image.blob(digest)).expect("it is JSON") };
    assert_eq!(shown["manifest"], blob(image.root.digest()));
    assert_eq!(shown["config"], blob(image.config().digest()));
    let sizes: usize = image.blobs.values().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(shown["size"], sizes);
    let diff_ids: Vec<_> = image.diff_ids.iter().map(AsRef::<str>::as_ref).collect();
    let shown_ids = shown["layers"].as_array().expect("it is a list").iter().map(|layer| &layer["diffID"]);
    assert_eq!(shown_ids.collect::<Vec<_>>(), diff_ids);
    assert_eq!(shown["layers"][0]["chainID"], diff_ids[0], "of one layer it is the DiffID");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_here_for_each_platform() {
    let of = |platform: &str| {
        ImageBuilder::new().platform(platform).layer(layer(platform.trim_start_matches("linux/"))).build()
    };
    let (arm, s390x) = (of("linux/arm64"), of("linux/s390x"));
    let index = Index::of(&[arm.clone(), s390x.clone()]);
    let (registry, dist) = (Registry::start().await, Dist::new());
    registry.push(&index, "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["fetch", "--platform", "linux/arm64", &name]);
    let lines = |text: &str| -> Vec<Vec<String>> {
        text.lines().skip(1).map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    };

    let one = dist.ok(&["images", "check", &name]);
    fs::remove_file(dist.blob(arm.layers()[0].digest())).expect("it is there");
    let none = dist.run(&["images", "check"]);

    let line = |image: &Image, platform: &str, state: &str| {
        let words = [&*name, platform, image.root.digest().as_ref()].map(str::to_owned);
        words.into_iter().chain(state.split(' ').map(str::to_owned)).collect::<Vec<_>>()
    };
    let expected = [line(&arm, "linux/arm64", "complete"), line(&s390x, "linux/s390x", "1 blob missing")];
    assert_eq!(lines(&one), expected);
    assert_eq!(none.code, Some(1), "of none of its platforms it is whole");
    assert_eq!(lines(&none.stdout)[0], line(&arm, "linux/arm64", "1 blob missing"));
    assert!(
        none.stderr.starts_with("dist: no platform is whole of ") && none.stderr.contains("pull it again")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_or_its_beginning_stands_for_an_image_but_not_for_one_of_several_names() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;
    let digest = image.root.digest().to_string();
    let hex = &digest["sha256:".len()..];

    for text in [&*digest, &digest[..12], &hex[..12], hex] {
        assert_eq!(dist.json(&["images", "inspect", text])["name"], *name, "{text}");
        assert!(dist.ok(&["images", "check", text]).contains("complete"), "{text}");
    }
    dist.ok(&["images", "tag", &hex[..12], "again:1"]);
    let several = dist.refused(&["images", "rm", &digest]);
    let short = dist.refused(&["images", "inspect", &hex[..11]]);
    dist.ok(&["images", "rm", "again:1"]);
    let removed = dist.ok(&["images", "rm", &digest[..20]]);
    let gone = dist.refused(&["images", "rm", &digest]);

    assert!(several.contains(&name) && several.contains("docker.io/library/again:1"), "{several}");
    assert!(short.contains(&format!("no image docker.io/library/{}:latest here", &hex[..11])), "{short}");
    assert_eq!(removed, format!("{name}\n"));
    assert!(gone.contains(&format!("no image {digest} here")), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named_as_it_was_looked_for() {
    let dist = Dist::new();
    let archive = dist.root().join("app.tar");
    let archive = archive.to_str().expect("the path is UTF-8");
    for arguments in [
        &["images", "label", "redis", "key=value"][..],
        &["images", "tag", "redis", "other"],
        &["images", "inspect", "redis"],
        &["images", "check", "redis"],
        &["images", "export", archive, "redis"],
        &["push", "redis"],
    ] {
        let line = dist.refused(arguments);
        assert_eq!(
            line, "dist: no image docker.io/library/redis:latest here; pull it first",
            "{arguments:?}"
        );
    }
    assert!(!fs::exists(archive).expect("the folder can be read"));
    assert_eq!(
        dist.refused(&["images", "rm", "redis"]),
        "dist: no image docker.io/library/redis:latest here"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_stay_with_a_name_and_keep_it() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;
    dist.ok(&["images", "label", &name, "keep", "team=a=b"]);
    dist.ok(&["images", "tag", &name, "copy:1"]);
    dist.ok(&["images", "label", "copy:1", "--rm", "keep"]);
    dist.ok(&["fetch", &name]);

    let labels = |name: &str| dist.json(&["images", "inspect", name])["labels"].clone();
    let source = ("windlass.source", &*name);
    assert_eq!(labels(&name), serde_json::json!({ "keep": "", "team": "a=b", (source.0): source.1 }));
    assert_eq!(labels("copy:1"), serde_json::json!({ "team": "a=b", (source.0): source.1 }));

    let report = dist.json(&["gc", "--json", "--max-size", "0", "--keep-label", "keep"]);
    assert_eq!(report["images"], serde_json::json!(["docker.io/library/copy:1"]));
    assert_eq!(dist.names(), [name]);
    assert_eq!(dist.run(&["images", "label", "copy:1"]).code, Some(2), "it must say what");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_says_what_an_image_takes() {
    let image = app("own");
    let (_registry, name, dist) = fetched(&image).await;
    let total: usize = image.blobs.values().map(|(_, bytes)| bytes.len()).sum();

    let listed = dist.json(&["images", "--json"]);
    let table = dist.ok(&["images"]);

    assert_eq!(listed["ref"], *name);
    assert_eq!(listed["digest"], image.root.digest().as_ref());
    assert_eq!((&listed["size"], &listed["totalSize"]), (&image.root.size().into(), &total.into()));
    let row: Vec<_> = table.lines().nth(1).expect("one image").split("  ").collect();
    assert_eq!(
        row.last().map(|size| size.trim()),
        Some(&*format!("{}", indicatif::BinaryBytes(total as u64)))
    );
}
