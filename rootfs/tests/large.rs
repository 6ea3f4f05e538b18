//! Large files on ext4, which is asked for their room before they are written.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use windlass_rootfs::{
    Error,
    apply::{Options, apply},
};
use windlass_testkit::{Layer, LoopDisk};

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
fn what_a_layer_only_announces_takes_little_room() {
    let disk = LoopDisk::ext4(256 << 20);
    let root = disk.path().join("root");
    let tar = Layer::new().file("file", 0o644, &content(200 * MIB)).tar();

    let error = apply_to(&root, &tar[..4 * MIB]).expect_err("it ends in the middle of the file");

    assert!(matches!(error, Error::Tar { .. }), "{error:?}");
    let room = room_of(&root.join("file"));
    assert!(room < 50 << 20, "4 MiB of 200 take {room} bytes");
}
