//! What regular files hold: all their bytes, their holes, and no more room than that, also where ext4 was asked for room before.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    process::Command,
};

use support::Place;
use windlass_rootfs::{
    Error,
    apply::{Options, apply},
};
use windlass_testkit::{Layer, LoopDisk, Tree, require};

const MIB: usize = 1 << 20;
/// How much more than its content a file may take, for the file system's own use.
const OWN: u64 = 64 << 10;

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 + 1).collect()
}

fn apply_to(root: &Path, tar: &[u8]) -> Result<(), Error> {
    fs::create_dir(root).expect("the disk is new");
    let root = File::open(root).expect("it is a folder").into();
    apply(tar, &root, &Options::default()).map(drop)
}

/// How much of the disk a file takes, in bytes.
fn room_of(file: &Path) -> u64 {
    fs::metadata(file).expect("it is there").blocks() * 512
}

#[test]
fn all_sparse_formats_of_gnu_tar_are_written_with_their_holes() {
    const MIB: u64 = 1 << 20;
    let source = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| source.path().join(name);
    // Data at the start, data at the end, a hole only, and more pieces than a header has room for.
    for (name, size, pieces) in [
        ("head", 8 * MIB, &[(0, 5000)][..]),
        ("tail", 8 * MIB + 123, &[(8 * MIB, 123)]),
        ("hole", 4 * MIB, &[]),
        ("many", 64 * MIB, &(0..40).map(|n| (n * MIB + MIB / 2, 4096 + n)).collect::<Vec<_>>()),
    ] {
        let file = File::create(path(name)).expect("the folder is new");
        file.set_len(size).expect("a hole takes no room");
        for (offset, length) in pieces {
            let data: Vec<u8> = (0..*length).map(|at| (at % 251) as u8 + 1).collect();
            file.write_all_at(&data, *offset).expect("there is room");
        }
    }
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = Command::new(require("tar", "tar"))
            .args(["-c", "-S", "-f", "-", "-C"])
            .arg(source.path())
            .args(format)
            .arg(".")
            .output()
            .expect("tar starts");
        assert!(tar.status.success() && tar.stdout.len() < 2 << 20, "{format:?}: holes are left out");
        let place = Place::new();

        place.apply(&tar.stdout, &Options::default()).unwrap_or_else(|err| panic!("{format:?}: {err}"));

        let differences = Tree::read(source.path()).ignore_mtimes().diff(&place.tree().ignore_mtimes());
        assert!(differences.is_empty(), "{format:?}: {differences:?}");
        for (name, blocks) in [("head", 100), ("tail", 100), ("hole", 0), ("many", 2000)] {
            let metadata = fs::metadata(place.root().join(name)).expect("it is there");
            assert!(metadata.blocks() <= blocks, "{format:?}: {name} has {} blocks", metadata.blocks());
        }
    }
}

#[test]
fn a_file_has_its_content_and_takes_no_more_room() {
    let disk = LoopDisk::ext4(256 << 20);
    let root = disk.path().join("root");
    let whole = content(70 * MIB + 5);
    // Data, a hole, data that is large, a hole.
    let pieces = [(0, 5), (3 * MIB, 40 * MIB + 7)];
    let (size, map) = (100 * MIB, format!("0,5,{},{}", pieces[1].0, pieces[1].1));
    let parts = content(pieces[0].1 + pieces[1].1);
    let layer = Layer::new()
        .file("whole", 0o644, &whole)
        .file("parts", 0o644, &parts)
        .pax("GNU.sparse.map", map.as_bytes())
        .pax("GNU.sparse.size", size.to_string().as_bytes());

    apply_to(&root, &layer.tar()).expect("nothing is wrong with it");

    assert!(fs::read(root.join("whole")).expect("it is there") == whole, "it has its content");
    let room = room_of(&root.join("whole"));
    assert!((whole.len() as u64..whole.len() as u64 + OWN).contains(&room), "it takes {room} bytes");
    let file = File::open(root.join("parts")).expect("it is there");
    let mut rest = &parts[..];
    for (offset, length) in pieces {
        let mut found = vec![0; length];
        file.read_exact_at(&mut found, offset as u64).expect("the file is as long as its layer says");
        let (piece, others) = rest.split_at(length);
        assert!(found == piece, "the piece at {offset} has its content");
        rest = others;
    }
    assert_eq!(file.metadata().expect("it is open").len(), size as u64);
    let room = room_of(&root.join("parts"));
    assert!(room < parts.len() as u64 + OWN, "holes stay holes: it takes {room} bytes");
}

#[test]
fn of_what_a_layer_only_announces_ext4_is_asked_for_a_step_and_no_more() {
    let disk = LoopDisk::ext4(256 << 20);
    let root = disk.path().join("root");
    let tar = Layer::new().file("file", 0o644, &content(200 * MIB)).tar();

    let error = apply_to(&root, &tar[..4 * MIB]).expect_err("it ends in the middle of the file");

    assert!(matches!(error, Error::Tar { .. }), "{error:?}");
    let room = room_of(&root.join("file"));
    assert!((32 << 20..50 << 20).contains(&room), "4 MiB of 200 take {room} bytes");
}
