//! No room on the disk.

use std::{fs, io::Write, path::Path};

use windlass_testkit::LoopDisk;

use crate::{
    images::Served,
    killed::ends_empty,
    support::{Dist, names_a_full_disk},
    whole,
};

/// How large the disk is, before it is filled.
const SIZE: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_with_room_again_everything_works() {
    let served = Served::start(2).await;
    let disk = LoopDisk::ext4(SIZE);
    let dist = Dist::at(disk.path().join("root"));
    let filler = disk.path().join("filler");
    // From hardly enough to open a database to hardly too little for an image: about 1.8 MB.
    for kilobytes in [0, 64, 200, 400, 600, 800, 1000, 1200, 1400] {
        fill(&filler, kilobytes << 10);
        let ran = dist.run(&["pull", &served.names[0]]);

        assert_eq!((ran.code, ran.signal), (Some(1), None), "{kilobytes} KiB are too little: {}", ran.stderr);
        let line = ran.stderr.lines().find(|line| line.starts_with("dist: ")).expect("it says why");
        assert!(names_a_full_disk(line), "{kilobytes} KiB: {line}");
        fs::remove_file(&filler).expect("it is ours");
        assert!(whole::all_that_is_listed(dist.root(), &served.trees).await.is_empty(), "{kilobytes} KiB");
        // Half of the time what is left is not resumed, but collected.
        if kilobytes % 400 == 0 {
            dist.ok(&["gc"]);
        }
        ends_empty(&dist, &served).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_stays_whole_on_a_full_disk() {
    let served = Served::start(2).await;
    let disk = LoopDisk::ext4(SIZE);
    let dist = Dist::at(disk.path().join("root"));
    let filler = disk.path().join("filler");
    dist.ok(&["pull", &served.names[0]]);
    fill(&filler, 0);

    for arguments in [&["pull", &served.names[1]][..], &["gc"], &["images", "rm", &served.names[0]]] {
        let ran = dist.run(arguments);
        let line = ran.stderr.lines().find(|line| line.starts_with("dist: "));
        assert!(ran.code == Some(0) || line.is_some_and(names_a_full_disk), "{arguments:?}: {ran:?}");
    }

    fs::remove_file(&filler).expect("it is ours");
    whole::all_that_is_listed(dist.root(), &served.trees).await;
    ends_empty(&dist, &served).await;
}

/// Takes all room of the disk but `left` bytes.
fn fill(filler: &Path, left: u64) {
    let mut file = fs::File::create(filler).expect("a name takes no room");
    let mut size = 0;
    for step in [64 << 10, 4 << 10] {
        while let Ok(written) = file.write(&vec![7; step]) {
            size += written as u64;
        }
    }
    // Reserved for later is not yet taken.
    file.sync_all().expect("what was taken has its place");
    file.set_len(size.saturating_sub(left)).expect("it shrinks");
    file.sync_all().expect("it has shrunk");
}
