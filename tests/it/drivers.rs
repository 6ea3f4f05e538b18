//! Which driver unpacks, and why.

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

        let snapshots = std::fs::read_dir(dist.root().join("snapshots")).expect("it is there");
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
