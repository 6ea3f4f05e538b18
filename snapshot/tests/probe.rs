//! Which driver is chosen where. Needs root.

use std::{io::Write, path::Path};

use windlass_snapshot::{
    Commit, Durability, Error, Mount, Native, Overlay, Snapshotter, Snapshotters, mount::temp_mount,
};
use windlass_testkit::LoopDisk;

fn probe(root: &Path) -> Snapshotters {
    Snapshotters::probe(root, Durability::Fast).expect("some driver works")
}

/// Calls `work` with a folder on an overlay, where there is no other.
fn on_an_overlay<T>(work: impl FnOnce(&Path) -> T) -> T {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Overlay::open(dir.path(), Durability::Fast).expect("it is not on an overlay");
    driver.prepare("low", None).expect("a free key");
    let commit = Commit::new("low", "low", None);
    driver.commit(&[commit]).expect("it is active");
    let mounts: Vec<Mount> = driver.prepare("key", Some("low")).expect("a committed parent");
    temp_mount(&mounts, work).expect("it mounts")
}

#[test]
fn the_best_that_works_is_chosen() {
    let dir = tempfile::tempdir().expect("a folder");

    let found = probe(dir.path());

    let best = if cfg!(feature = "erofs") { "erofs" } else { "overlay" };
    assert_eq!(found.chosen.name(), best);
    assert_eq!(found.to_string(), format!("{best}, as it is the best one that works"));
    assert!(dir.path().join(best).join("metadata.db").exists());
}

#[test]
fn those_that_do_not_work_say_why() {
    let (name, text, drivers) = on_an_overlay(|tree| {
        let found = probe(&tree.join("root"));
        let drivers: Vec<_> = found.refused.iter().map(|refused| refused.driver).collect();
        (found.chosen.name().to_owned(), found.to_string(), drivers)
    });

    let all = ["erofs", "overlay", "btrfs"];
    let refused = if cfg!(feature = "erofs") { &all[..] } else { &all[1..] };
    assert_eq!((name.as_str(), &drivers[..]), ("native", refused));
    assert!(text.contains("not on overlayfs itself") && text.contains("is not on btrfs"), "{text}");
}

#[test]
fn the_driver_whose_snapshots_are_there_stays_in_use() {
    let dir = tempfile::tempdir().expect("a folder");
    Native::open(&dir.path().join("native"), Durability::Fast).expect("an empty root");

    let found = probe(dir.path());

    assert_eq!(found.to_string(), "native, as its snapshots are there");
    assert!(found.existed);
}

#[test]
fn a_full_disk_is_no_reason_to_take_another_driver() {
    let disk = LoopDisk::ext4(8 << 20);
    let full = (0..).map(|number: u64| disk.path().join(number.to_string())).map(|path| {
        let mut file = std::fs::File::create_new(path)?;
        file.write_all(&[7; 4096]).and_then(|()| file.sync_all())
    });
    full.take_while(Result::is_ok).for_each(drop);

    let err = Snapshotters::probe(&disk.path().join("root"), Durability::Fast).expect_err("the disk is full");

    assert!(matches!(err, Error::Io { .. } | Error::Database { .. }), "{err:?}");
}
