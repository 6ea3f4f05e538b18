//! The changes of snapshots: what each driver has kept of them, and whatever an image's layers do.

use std::{fs, os::fd::AsRawFd, path::Path, sync::Arc};

use tempfile::TempDir;
use windlass_rootfs::{
    Error, apply,
    compression::Compression,
    diff::{self, Options},
};
use windlass_snapshot::{
    Btrfs, Commit, Durability, Erofs, Error as SnapshotError, Native, Overlay, Snapshotter, mount::open_tree,
};
use windlass_testkit::{Layer, LoopDisk, Tree, assert_same};

use crate::support::{entries, in_memory, open, shown};

/// Every driver, on a file system that it works on.
struct Drivers {
    all: [Arc<dyn Snapshotter>; 4],
    _folder: TempDir,
    _disk: LoopDisk,
}

impl Drivers {
    fn new() -> Self {
        let (folder, disk) = (tempfile::tempdir().expect("there is room"), LoopDisk::btrfs(512 << 20));
        let path = |name| folder.path().join(name);
        let overlay = Overlay::open(&path("overlay"), Durability::Fast).expect("overlayfs works here");
        let native = Native::open(&path("native"), Durability::Fast).expect("it opens");
        let btrfs = Btrfs::open(&disk.path().join("btrfs"), Durability::Fast).expect("the disk is btrfs");
        let erofs = Erofs::open(&path("erofs"), Durability::Fast).expect("EROFS works here");
        let all: [Arc<dyn Snapshotter>; 4] =
            [Arc::new(overlay), Arc::new(native), Arc::new(btrfs), Arc::new(erofs)];
        Self { all, _folder: folder, _disk: disk }
    }
}

/// Images, each with layers of which the later ones do something to the earlier ones.
fn fixtures() -> Vec<(&'static str, Vec<Layer>)> {
    let root = || Layer::new().dir("./", 0o755);
    let long = "long/".repeat(60);
    vec![
        (
            "every kind of entry",
            vec![
                root()
                    .dir("etc", 0o1777)
                    .owner(70_000, 3_000_000)
                    .file("etc/motd", 0o4755, b"hello")
                    .mtime(-5)
                    .symlink("etc/link", "/etc/motd")
                    .hardlink("etc/same", "etc/motd")
                    .fifo("pipe", 0o600)
                    .device("null", 0o666, 1, 3)
                    .file("attribute", 0o644, b"")
                    .xattr("user.note", b"\0binary\n")
                    .file(format!("{long}file"), 0o644, b"deep")
                    .mtime(20_000_000_000)
                    .symlink("far", &long),
            ],
        ),
        (
            "whiteouts",
            vec![
                root()
                    .dir("d", 0o755)
                    .file("d/one", 0o644, b"1")
                    .file("d/two", 0o644, b"2")
                    .file("f", 0o644, b"f"),
                Layer::new().whiteout("d/one").whiteout("f").file("f", 0o600, b"again"),
                Layer::new().opaque("d").file("d/three", 0o644, b"3"),
                Layer::new().whiteout("d"),
                Layer::new().dir("d", 0o700).mtime(7),
            ],
        ),
        (
            "one kind in the place of another",
            vec![
                root()
                    .dir("a", 0o755)
                    .file("a/in", 0o644, b"")
                    .file("b", 0o644, b"")
                    .symlink("c", "a")
                    .fifo("d", 0o600),
                Layer::new()
                    .file("a", 0o644, b"file")
                    .dir("b", 0o755)
                    .file("b/in", 0o644, b"")
                    .dir("c", 0o755)
                    .device("d", 0o600, 1, 3),
                Layer::new().symlink("a", "b").symlink("b", "c").fifo("c", 0o644).file("d", 0o644, b""),
            ],
        ),
        (
            "hard links",
            vec![
                root().file("a", 0o644, b"a").hardlink("b", "a").hardlink("c", "a"),
                Layer::new().file("b", 0o644, b"b").hardlink("d", "b"),
                Layer::new().hardlink("e", "c"),
                Layer::new().whiteout("a"),
                Layer::new().file("c", 0o640, b"c").xattr("user.c", b"c"),
            ],
        ),
        (
            "folders that only lower layers declare",
            vec![
                root()
                    .dir("tmp", 0o1777)
                    .owner(7, 8)
                    .mtime(1_000_000)
                    .xattr("user.t", b"t")
                    .dir("tmp/in", 0o700),
                Layer::new().file("tmp/in/file", 0o644, b"x"),
                Layer::new().dir("tmp", 0o1777),
                Layer::new().dir("./", 0o700).owner(1, 2).mtime(3),
            ],
        ),
        (
            "an entry below a lower link",
            vec![
                root().dir("real", 0o750).file("real/old", 0o644, b"old").symlink("link", "real"),
                Layer::new().file("link/new", 0o644, b"new").whiteout("link/old"),
            ],
        ),
    ]
}

fn tree(snapshotter: &dyn Snapshotter, key: &str) -> Tree {
    let mounted = open_tree(&snapshotter.mounts(key).expect("it is there")).expect("it can be mounted");
    shown(format!("/proc/self/fd/{}/.", mounted.as_raw_fd()).as_ref())
}

#[test]
fn the_layer_of_a_snapshot_makes_its_tree_again_on_each_driver_for_every_fixture() {
    let drivers = Drivers::new();
    for (name, layers) in fixtures() {
        for driver in &drivers.all {
            let again = in_memory();
            let mut parent: Option<String> = None;
            for (nth, layer) in layers.iter().enumerate() {
                let key = format!("{name} {nth}");
                // A process in a container that does what the layer says.
                let mounted = open_tree(&driver.prepare(&key, parent.as_deref()).expect("it is new"));
                apply::apply(&layer.tar()[..], &mounted.expect("it can be mounted"), &Default::default())
                    .expect(&key);

                let mut made = Vec::new();
                let options = Options::default().compression(Compression::None);
                diff::snapshot(&**driver, &key, "a view", &mut made, &options).expect(&key);

                apply::apply(&made[..], &open(again.path()), &Default::default()).expect(&key);
                let want = tree(&**driver, &key);
                let differences = want.diff(&shown(again.path()));
                assert!(
                    differences.is_empty(),
                    "{} {key}: {differences:?}\n{:?}",
                    driver.name(),
                    entries(&made)
                );
                assert_eq!(driver.stat("a view").expect("it can be asked"), None, "it is removed again");
                let committed = format!("{name} committed {nth}");
                let commit = Commit::new(&key, &committed, parent.as_deref());
                driver.commit(&[commit]).expect(&key);
                parent = Some(committed);
            }
        }
    }
}

#[test]
fn a_real_system_is_in_its_layer() {
    let tar = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/redis.tar");
    let tar = fs::read(&tar)
        .unwrap_or_else(|error| panic!("{}: {error}; make it with tests/redis-rootfs.sh", tar.display()));
    let (one, two) = (in_memory(), in_memory());
    apply::apply(&tar[..], &open(one.path()), &Default::default()).expect("it can be applied");

    crate::support::copy(one.path(), two.path());

    assert_same(&Tree::read(one.path()), &Tree::read(two.path()));
}

#[test]
fn a_snapshot_in_which_nothing_was_changed_has_a_layer_without_entries() {
    for driver in &Drivers::new().all {
        let mounted =
            open_tree(&driver.prepare("base", None).expect("it is new")).expect("it can be mounted");
        let layer = Layer::new().dir("./", 0o711).owner(1, 2).mtime(3).file("file", 0o644, b"");
        apply::apply(&layer.tar()[..], &mounted, &Default::default()).expect("it can be applied");
        driver.commit(&[Commit::new("base", "committed", None)]).expect("it is there");
        driver.prepare("key", Some("committed")).expect("it is new");

        let diffed = diff::snapshot(&**driver, "key", "view", Vec::new(), &Options::default());

        assert_eq!(diffed.expect("it can be written").entries, 0, "{}", driver.name());
    }
}

#[test]
fn only_active_snapshots_have_changes() {
    for driver in &Drivers::new().all {
        driver.prepare("key", None).expect("it is new");
        driver.commit(&[Commit::new("key", "committed", None)]).expect("it is there");

        let of = |key| diff::snapshot(&**driver, key, "view", Vec::new(), &Options::default());

        let err = of("committed").expect_err("it has none");
        assert!(matches!(err, Error::Snapshot(SnapshotError::NotActive { .. })), "{err:?}");
        let err = of("missing").expect_err("it is not there");
        assert!(matches!(err, Error::Snapshot(SnapshotError::NotFound { .. })), "{err:?}");
    }
}
