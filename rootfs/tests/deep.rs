//! Trees that are deeper than a process may have files open. In a process of its own, since it lowers that limit.

use std::{fs, os::fd::OwnedFd};

use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use windlass_rootfs::{
    compression::Compression,
    diff::{self, Options},
};
use windlass_snapshot::Whiteouts;

const DEPTH: usize = 900;

/// Folders in each other, with a file in the innermost one.
fn deep() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut at: OwnedFd = fs::File::open(folder.path()).expect("it is there").into();
    for _ in 0..DEPTH {
        mkdirat(&at, "d", Mode::RWXU).expect("it is new");
        at = openat(&at, "d", OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).expect("it is there");
    }
    openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).expect("it is new");
    folder
}

#[test]
fn however_deep_a_tree_is_few_files_are_open() {
    let (upper, lower) = (deep(), deep());
    let open =
        |folder: &tempfile::TempDir| OwnedFd::from(fs::File::open(folder.path()).expect("it is there"));
    let (upper_root, lower_root) = (open(&upper), open(&lower));
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(100), ..before }).expect("less is always allowed");

    let entries = |whiteouts, lower: Option<&OwnedFd>| {
        let options = Options::default().compression(Compression::None).whiteouts(whiteouts);
        diff::diff(&upper_root, lower, Vec::new(), &options).expect("it can be written").entries
    };
    let (new, compared, changed) = (
        entries(Whiteouts::Remove, None),
        entries(Whiteouts::Remove, Some(&lower_root)),
        entries(Whiteouts::Overlay, Some(&lower_root)),
    );

    setrlimit(Resource::Nofile, before).expect("it was so before");
    let all = DEPTH as u64 + 2;
    assert_eq!([new, compared, changed], [all; 3], "the root, the folders, the file: their times differ");
}
