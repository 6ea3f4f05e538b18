//! Which driver unpacks, and why.

use std::fs;

use windlass::snapshot::{Durability, Erofs, Overlay, Snapshotter, mount::temp_mount};
use windlass_testkit::{Image, ImageBuilder, Layer, Registry};

use crate::support::Dist;

fn image() -> Image {
    ImageBuilder::new().layer(Layer::new().file("file", 0o644, b"content")).build()
}

async fn served() -> (Registry, String) {
    let registry = Registry::start().await;
    registry.push(&image(), "app", "latest");
    let name = format!("{}/app:latest", registry.host());
    (registry, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_mount_can_work_it_says_why_and_another_driver_does() {
    let (_registry, name) = served().await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    // Which the options of mounts cannot say.
    let dist = Dist::at(folder.path().join("a:b"));

    let line = dist.refused(&["--snapshotter", "overlay", "pull", &name]);
    let said = dist.run(&["--debug", "pull", &name]);

    assert!(line.contains("choose another root"), "{line}");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("unpacking with native"), "{}", said.stderr);
    assert!(said.stderr.contains("choose another root"), "{}", said.stderr);
    assert_eq!(dist.files(&[], &name), ["./file=content"]);
    assert!(dist.root().join("snapshots/native/metadata.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_that_is_in_use_stays_in_use() {
    let (_registry, name) = served().await;
    for (first, folder) in
        [("auto", "erofs"), ("erofs", "erofs"), ("overlay", "overlay"), ("native", "native")]
    {
        let dist = Dist::new();
        dist.ok(&["--snapshotter", first, "pull", &name]);

        dist.ok(&["pull", &name]);

        let snapshots = fs::read_dir(dist.root().join("snapshots")).expect("it is there");
        let folders: Vec<_> = snapshots.map(|it| it.expect("it is listed").file_name()).collect();
        assert_eq!(folders, [folder], "after {first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_wait_for_the_disk_gets_the_same_image() {
    let (_registry, name) = served().await;
    let dist = Dist::new();

    dist.ok(&["--durability", "fast", "pull", &name]);

    assert_eq!(dist.files(&[], &name), ["./file=content"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_thousand_layers_is_pulled_and_shown() {
    let layers =
        (0..1000).map(|n| Layer::new().file(format!("part/{}", n % 7), 0o644, n.to_string().as_bytes()));
    let image = layers.fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let registry = Registry::start().await;
    registry.push(&image, "deep", "latest");
    let name = format!("{}/deep:latest", registry.host());
    let last = |part| (993..1000).find(|n| n % 7 == part).expect("seven in a row have all rests");
    let want: Vec<_> = (0..7).map(|part| last(part).to_string()).collect();
    for driver in ["erofs", "overlay"] {
        let dist = Dist::new();

        dist.ok(&["--snapshotter", driver, "pull", &name]);

        let chain_id = dist.json(&["images", "inspect", &name])["layers"][999]["chainID"].clone();
        let root = dist.root().join("snapshots").join(driver);
        let snapshotter: Box<dyn Snapshotter> = match driver {
            "erofs" => Box::new(Erofs::open(&root, Durability::Fast).expect("it was just in use")),
            _ => Box::new(Overlay::open(&root, Durability::Fast).expect("it was just in use")),
        };
        let mounts = snapshotter.view("look", chain_id.as_str()).expect("it is unpacked");
        let shown = temp_mount(&mounts, |root| {
            let read = |part| fs::read_to_string(root.join(format!("part/{part}"))).expect("it is there");
            (0..7).map(read).collect::<Vec<_>>()
        });
        assert_eq!(shown.expect("it can be mounted"), want, "with {driver}");
    }
}
