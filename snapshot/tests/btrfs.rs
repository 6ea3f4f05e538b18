//! Drivers on a btrfs of their own. Needs root.

use std::{fs, path::Path, process::Command, sync::Arc};

use windlass_snapshot::{
    Btrfs, Commit, Durability, Error, Native, Overlay, Snapshotter, mount::temp_mount, testsuite,
};
use windlass_testkit::{LoopDisk, require};

type Open = fn(&Path) -> Arc<dyn Snapshotter>;

const MIB: u64 = 1 << 20;

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Btrfs::open(root, Durability::Safe).expect("the root is on btrfs"))
}

fn btrfs(arguments: &[&str], path: &Path) {
    let output = Command::new(require("btrfs", "btrfs-progs")).args(arguments).arg(path).output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_btrfs_driver_passes_the_suite() {
    let disk = LoopDisk::btrfs(1024 * MIB);

    testsuite::run_all_in(&disk.path(), &open);
}

#[test]
fn the_native_driver_passes_the_suite_on_btrfs() {
    let disk = LoopDisk::btrfs(1024 * MIB);
    let open = |root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Native::open(root, Durability::Fast).expect("an empty root"))
    };

    testsuite::run_all_in(&disk.path(), &open);
}

#[test]
fn the_overlay_driver_passes_the_suite_on_btrfs() {
    let disk = LoopDisk::btrfs(1024 * MIB);
    let open = |root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Overlay::open(root, Durability::Fast).expect("an empty root"))
    };

    testsuite::run_all_in(&disk.path(), &open);
}

/// The disk has no room for three copies, let alone for five.
#[test]
fn copies_share_their_blocks() {
    let drivers: [Open; 2] =
        [open, |root| Arc::new(Native::open(root, Durability::Safe).expect("an empty root"))];
    for open in drivers {
        let disk = LoopDisk::btrfs(512 * MIB);
        let bench = testsuite::Bench::new_in(&disk.path(), &open);
        bench.layer("0", None, |tree| {
            fs::write(tree.join("large"), vec![7; 150 << 20]).expect("there is room for it");
        });

        for number in 1..5 {
            let parent = (number - 1).to_string();
            bench.layer(&number.to_string(), Some(&parent), |tree| {
                fs::write(tree.join(number.to_string()), "text").expect("a file");
            });
        }

        let length = bench.look("4", |tree| fs::metadata(tree.join("large")).expect("it is there").len());
        assert_eq!(length, 150 * MIB);
    }
}

#[test]
fn what_a_child_shares_with_its_parent_is_not_counted_again() {
    let disk = LoopDisk::btrfs(256 * MIB);
    let bench = testsuite::Bench::new_in(&disk.path(), &open);
    bench.layer("low", None, |tree| {
        for name in ["kept", "changed"] {
            fs::write(tree.join(name), vec![7; 1 << 20]).expect("a file");
        }
    });
    bench.layer("high", Some("low"), |tree| {
        fs::write(tree.join("changed"), vec![8; 1 << 20]).expect("a file");
        fs::write(tree.join("new"), vec![9; 1 << 20]).expect("a file");
    });

    let bytes = |name| bench.driver.usage(name).expect("it is there").bytes;

    assert!((2 * MIB..3 * MIB).contains(&bytes("low")), "{}", bytes("low"));
    assert!((2 * MIB..3 * MIB).contains(&bytes("high")), "{}", bytes("high"));
}

#[test]
fn a_subvolume_that_a_container_made_is_not_lost_in_silence() {
    let disk = LoopDisk::btrfs(256 * MIB);
    let driver = open(&disk.path().join("root"));
    let mounts = driver.prepare("key", None).expect("a free key");
    temp_mount(&mounts, |tree| {
        btrfs(&["subvolume", "create"], &tree.join("nested"));
        fs::write(tree.join("nested/file"), "text").expect("a file");
        // As hostile as it can be: nobody may delete what is in it.
        let nested = tree.join("nested");
        btrfs(&["property", "set", "-ts", &nested.display().to_string(), "ro"], Path::new("true"));
    })
    .expect("it mounts");

    let err = driver.commit(&[Commit::new("key", "name", None)]).expect_err("it would be lost");
    driver.remove("key").expect("nothing is on top of it");

    let source = std::error::Error::source(&err).expect("there is a reason").to_string();
    assert!(source.contains("a subvolume"), "{err}: {source}");
    let left = fs::read_dir(disk.path().join("root/snapshots")).expect("a folder").count();
    assert_eq!(left, 0, "the files are gone, the subvolume in them too");
}

#[test]
fn elsewhere_it_says_what_it_needs() {
    let disk = LoopDisk::ext4(16 * MIB);

    let err = Btrfs::open(&disk.path().join("root"), Durability::Safe).expect_err("it is ext4");

    assert!(matches!(err, Error::Unsupported { driver: "btrfs", .. }), "{err:?}");
    assert!(err.to_string().contains("is not on btrfs"), "{err}");
    assert!(!disk.path().join("root/metadata.db").exists());
}
