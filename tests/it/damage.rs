//! A pull does not trust what it finds: what is damaged is made anew, and the rest is used again.

use std::{fs, os::unix::fs::symlink, path::Path};

use windlass_testkit::{Image, ImageBuilder, Registry};

use crate::support::{Dist, fetched, layer};

fn app() -> Image {
    ImageBuilder::new().layer(layer("low")).layer(layer("middle")).layer(layer("high")).build()
}

const FILES: [&str; 3] = ["./high=high", "./low=low", "./middle=middle"];

async fn pulled(settings: &[&str]) -> (Registry, Image, String, Dist) {
    let (registry, image, dist) = (Registry::start().await, app(), Dist::new());
    registry.push(&image, "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&[settings, &["pull", &name]].concat());
    (registry, image, name, dist)
}

/// Something that happens to a file on a bad day.
type Damage = fn(&Path);

fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("it can be written");
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).expect("it is there");
    fs::write(path, &bytes[..bytes.len() - 1]).expect("it can be written");
}

fn to_folder(path: &Path) {
    fs::remove_file(path).expect("it is there");
    fs::create_dir(path).expect("it can be made");
    fs::write(path.join("inside"), "something").expect("it can be made");
}

fn to_symlink(path: &Path) {
    let target = path.with_extension("elsewhere");
    fs::rename(path, &target).expect("it is there");
    symlink(&target, path).expect("it can be made");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("it is there");
}

const DAMAGES: [(&str, Damage); 5] = [
    ("a flipped bit", flip),
    ("a missing byte", truncate),
    ("a folder", to_folder),
    ("a symbolic link", to_symlink),
    ("nothing", remove),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_or_config_is_fetched_again_and_nothing_else() {
    for (what, damage) in DAMAGES {
        let (registry, image, name, dist) = pulled(&[]).await;
        for digest in [image.root.digest().clone(), image.config().digest().clone()] {
            let before = registry.requests().len();
            damage(&dist.blob(&digest));

            dist.ok(&["pull", &name]);

            assert_eq!(fetched(&registry, before), [digest.as_ref()], "{what}");
            assert_eq!(fs::read(dist.blob(&digest)).expect("it is there"), image.blob(&digest), "{what}");
            assert!(fs::symlink_metadata(dist.blob(&digest)).expect("it is there").is_file(), "{what}");
        }
        assert_eq!(dist.files(&[], &name), FILES, "{what}");
        dist.ok(&["verify"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_damaged_is_fetched_again_when_it_is_unpacked_again() {
    for (what, damage) in DAMAGES {
        let (registry, image, name, dist) = pulled(&[]).await;
        let middle = image.layers()[1].digest().clone();
        let before = registry.requests().len();
        damage(&dist.blob(&middle));
        fs::remove_dir_all(dist.root().join("snapshots")).expect("they are there");

        dist.ok(&["pull", &name]);

        assert_eq!(fetched(&registry, before), [middle.as_ref()], "{what}");
        assert_eq!(dist.files(&[], &name), FILES, "{what}");
        dist.ok(&["verify"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_that_is_there_twice_hides_no_other() {
    let (registry, dist) = (Registry::start().await, Dist::new());
    let image = ImageBuilder::new().layer(layer("low")).layer(layer("twice")).layer(layer("twice")).build();
    registry.push(&image, "app", "1");
    let name = format!("{}/app:1", registry.host());
    dist.ok(&["pull", &name]);
    for layer in image.layers() {
        fs::write(dist.blob(layer.digest()), vec![0; layer.size() as usize]).expect("it is there");
    }
    fs::remove_dir_all(dist.root().join("snapshots")).expect("they are there");

    dist.ok(&["pull", &name]);

    assert_eq!(dist.files(&[], &name), ["./low=low", "./twice=twice"]);
    dist.ok(&["verify"]);
}

/// Whoever does not read a layer does not see that it is damaged, but whoever does, does.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_layer_that_is_unpacked_is_found_by_verify_export_and_push() {
    let (registry, image, name, dist) = pulled(&[]).await;
    let low = image.layers()[0].digest().to_string();
    flip(&dist.blob(&low));
    let archive = dist.root().join("app.tar");
    let archive = archive.to_str().expect("the path is UTF-8");

    let verified = dist.run(&["verify"]);
    let exported = dist.refused(&["images", "export", archive, &name]);
    let pushed = dist.refused(&["push", &name, &format!("{}/other:1", registry.host())]);

    assert_eq!(verified.code, Some(1));
    assert_eq!(verified.stdout.lines().count(), 1, "{}", verified.stdout);
    assert!(verified.stdout.starts_with(&low), "{}", verified.stdout);
    assert!(verified.stderr.contains("1 of 5 blobs") && verified.stderr.contains("--quarantine"));
    assert!(exported.contains(&low) && exported.contains("damaged"), "{exported}");
    assert!(pushed.contains(&low) && pushed.contains("damaged"), "{pushed}");
    assert!(!Path::new(archive).exists(), "half an archive is none");
    assert!(registry.tags("other").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_verify_puts_into_quarantine_is_fetched_by_the_next_pull_and_nothing_else() {
    for (what, damage) in &DAMAGES[..4] {
        let (registry, image, name, dist) = pulled(&[]).await;
        let low = image.layers()[0].digest().to_string();
        damage(&dist.blob(&low));
        let before = registry.requests().len();

        let verified = dist.run(&["verify", "--quarantine"]);
        let checked = dist.run(&["images", "check", &name]);
        dist.ok(&["pull", &name]);

        assert_eq!(verified.code, Some(0), "{what}: {verified:?}");
        assert!(verified.stdout.contains(&low) && verified.stdout.contains("quarantine"), "{verified:?}");
        assert_eq!((checked.code, checked.stdout.contains("1 blob missing")), (Some(1), true), "{checked:?}");
        assert_eq!(fetched(&registry, before), [&*low], "{what}");
        assert_eq!(dist.ok(&["verify"]), "", "{what}");
        assert!(dist.ok(&["images", "check", &name]).contains("complete"), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_that_somebody_removed_are_made_again_without_a_registry() {
    for settings in [&[][..], &["--snapshotter", "native"]] {
        for nth in 0..3 {
            let (registry, _, name, dist) = pulled(settings).await;
            let driver = settings.last().unwrap_or(&"erofs");
            let snapshots = dist.root().join("snapshots").join(driver).join("snapshots");
            let mut folders: Vec<_> = fs::read_dir(&snapshots)
                .expect("it is a folder")
                .map(|entry| entry.expect("it can be read").path())
                .collect();
            folders.sort();
            let before = registry.requests().len();
            fs::remove_dir_all(&folders[nth]).expect("it is there");

            dist.ok(&[settings, &["du"]].concat());
            dist.ok(&[settings, &["gc"]].concat());
            dist.ok(&[settings, &["pull", &name]].concat());

            assert_eq!(fetched(&registry, before), [""; 0], "{settings:?} {nth}");
            assert_eq!(dist.files(settings, &name), FILES, "{settings:?} {nth}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_serves_damaged_bytes_is_asked_once() {
    let (registry, image, name, dist) = pulled(&[]).await;
    let low = image.layers()[0].digest().to_string();
    remove(&dist.blob(&low));
    let before = registry.requests().len();
    registry.fault(windlass_testkit::Fault::wrong_bytes(&low));

    let refused = dist.refused(&["pull", &name]);

    assert!(refused.contains(&low), "{refused}");
    assert_eq!(fetched(&registry, before), [&*low]);
    assert_eq!(dist.names(), [name], "it stays, under its name, as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_needs_a_damaged_manifest_or_config_is_told_to_pull_again() {
    for (what, damage) in DAMAGES {
        let (_registry, image, name, dist) = pulled(&[]).await;
        for digest in [image.config().digest().clone(), image.root.digest().clone()] {
            damage(&dist.blob(&digest));
            for arguments in [&["images", "inspect", &name][..], &["run", &name, "true"]] {
                let refused = dist.refused(arguments);
                let start = format!("dist: image {name} is not whole here; pull it again: ");
                assert!(refused.starts_with(&start), "{what}: {refused}");
                assert!(refused.contains(digest.as_ref()), "{what}: {refused}");
            }
            let checked = dist.run(&["images", "check"]);
            assert_eq!(checked.code, Some(1), "{what}: {checked:?}");
            assert!(checked.stdout.contains("1 blob missing"), "{what}: {checked:?}");
        }
    }
}
