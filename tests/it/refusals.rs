//! Bad input: one clear error line with its cause, exit code 1, nothing half-visible, and the next try works.

use windlass_testkit::{Fault, Image, ImageBuilder, Layer, Registry};

use crate::support::{Dist, names_a_full_disk};

fn app() -> Image {
    ImageBuilder::new().layer(Layer::new().file("file", 0o644, &b"content ".repeat(4096))).build()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let registry = Registry::start().await;
    registry.push(&app(), "app", "latest");
    let dist = Dist::new();
    for (reference, why) in [
        (format!("{}/app:nothing", registry.host()), "not found"),
        (format!("{}/nobody:latest", registry.host()), "not found"),
        ("127.0.0.1:1/app:latest".to_owned(), "127.0.0.1:1"),
    ] {
        let line = dist.refused(&["pull", &reference]);
        assert!(line.contains(why), "{reference}: {line}");
        dist.shows_nothing();
    }
    dist.ok(&["pull", &format!("{}/app:latest", registry.host())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password_is_named() {
    let registry = Registry::builder().password("user", "secret").start().await;
    registry.push(&app(), "app", "latest");
    let dist = Dist::new();

    let line = dist.refused(&["pull", &format!("{}/app:latest", registry.host())]);

    assert!(line.contains("401") || line.contains("unauthorized"), "{line}");
    dist.shows_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_the_next_pull_works() {
    let image = app();
    let layer = image.layers()[0].digest().to_string();
    let registry = Registry::start().await;
    registry.push(&image, "app", "latest");
    let dist = Dist::new();
    let name = format!("{}/app:latest", registry.host());
    registry.fault(Fault::wrong_bytes(&layer).once());

    let line = dist.refused(&["pull", &name]);
    dist.shows_nothing();
    dist.ok(&["pull", &name]);

    assert!(line.contains(&layer), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_are_not_what_the_config_says_are_refused() {
    let wrong_diff_id = {
        let other = Layer::new().file("other", 0o644, b"").diff_id().to_string();
        ImageBuilder::new()
            .layer(Layer::new().file("file", 0o644, b"content"))
            .config(move |config| config["rootfs"]["diff_ids"] = serde_json::json!([other]))
            .build()
    };
    let not_a_tar =
        ImageBuilder::new().layer(Layer::new().raw(&b"this is no tar archive ".repeat(100))).build();
    let escaping = ImageBuilder::new().layer(Layer::new().file("../escaped", 0o644, b"x")).build();
    for (image, why) in [(wrong_diff_id, "DiffID"), (not_a_tar, "tar"), (escaping, "../escaped")] {
        let registry = Registry::start().await;
        registry.push(&image, "app", "latest");
        let dist = Dist::new();

        let line = dist.refused(&["pull", &format!("{}/app:latest", registry.host())]);

        assert!(line.contains(why), "{why}: {line}");
        dist.shows_nothing();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_not_one_is_refused() {
    let registry = Registry::start().await;
    registry.push(&Image::not_a_manifest(b"<html>login</html>"), "app", "latest");
    let dist = Dist::new();

    let line = dist.refused(&["pull", &format!("{}/app:latest", registry.host())]);

    assert!(line.contains("manifest"), "{line}");
    dist.shows_nothing();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_a_pull_with_room_works() {
    let registry = Registry::start().await;
    let noise: Vec<u8> = (0..3u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    registry.push(
        &ImageBuilder::new().layer(Layer::new().file("big", 0o644, &noise).plain()).build(),
        "app",
        "latest",
    );
    let dist = Dist::new();
    let name = format!("{}/app:latest", registry.host());
    let small = crate::support::TmpfsMount::new(dist.root(), "2m");

    let line = dist.refused(&["--snapshotter", "native", "pull", &name]);
    assert_eq!(dist.ok(&["images", "--json"]), "");
    small.grow("64m");
    dist.ok(&["--snapshotter", "native", "pull", &name]);

    assert!(names_a_full_disk(&line), "{line}");
}
