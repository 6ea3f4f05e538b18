//! What two trees differ in.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::{XattrFlags, setxattr};
use windlass_rootfs::{
    Error,
    compression::Compression,
    diff::{self, Options},
};
use windlass_snapshot::Whiteouts;
use windlass_testkit::assert_same;

use crate::support::{Stack, entries, open};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn date(path: &Path, seconds: u64) {
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(at(seconds)))
        .expect("it is ours");
}

/// A file of three names, and one of one.
fn linked(root: &Path) {
    for (name, content) in [("a", "linked"), ("z", "alone")] {
        fs::write(root.join(name), content).expect("it is new");
    }
    for name in ["b", "c"] {
        fs::hard_link(root.join("a"), root.join(name)).expect("it is new");
    }
}

#[test]
fn all_names_of_a_file_are_written_if_it_or_their_number_changes() {
    type Change = fn(&Path);
    let changes: [(Change, &[&str]); 6] = [
        (|_| {}, &[]),
        (|root| fs::write(root.join("b"), "LINKED").expect("it is there"), &["./", "a", "b -> a", "c -> a"]),
        (|root| fs::remove_file(root.join("a")).expect("it is there"), &["./", ".wh.a", "b", "c -> b"]),
        (
            |root| fs::hard_link(root.join("c"), root.join("d")).expect("it is new"),
            &["./", "a", "b -> a", "c -> a", "d -> a"],
        ),
        (
            |root| {
                // The same content and time, but a file of its own.
                let modified =
                    fs::metadata(root.join("b")).and_then(|it| it.modified()).expect("it is there");
                fs::remove_file(root.join("b")).expect("it is there");
                fs::write(root.join("b"), "linked").expect("it is gone");
                File::options()
                    .write(true)
                    .open(root.join("b"))
                    .and_then(|it| it.set_modified(modified))
                    .expect("ours");
            },
            &["./", "a", "b", "c -> a"],
        ),
        (
            |root| {
                fs::remove_file(root.join("z")).expect("it is there");
                fs::hard_link(root.join("a"), root.join("z")).expect("it is gone");
            },
            &["./", "a", "b -> a", "c -> a", "z -> a"],
        ),
    ];
    for (change, want) in changes {
        let stack = Stack::new(Whiteouts::Remove, linked);
        let tree = stack.change(change);

        let layer = stack.layer();

        assert_eq!(entries(&layer), want);
        assert_same(&tree, &stack.applied(&layer));
        assert_same(&tree, &stack.stacked(&layer));
    }
}

#[test]
fn content_is_compared_unless_times_are_trusted() {
    let stack = Stack::new(Whiteouts::Remove, linked);
    let modified = fs::metadata(stack.lower().join("z")).and_then(|it| it.modified()).expect("it is there");
    let changed = File::options().write(true).open(stack.upper().join("z")).expect("it is there");
    changed.write_all_at(b"ALONE", 0).and_then(|()| changed.set_modified(modified)).expect("it is ours");

    let read = stack.layer();
    let trusted = stack.diff(&stack.options().trust_times(true)).expect("it can be written").1;

    assert_eq!(entries(&read), ["./", "z"]);
    assert_eq!(trusted.entries, 0);
}

#[test]
fn the_same_trees_give_the_same_bytes_in_whatever_order_they_were_made() {
    let layers = [["x", "y", "z"], ["z", "x", "y"]].map(|names| {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        for name in names {
            fs::write(folder.path().join(name), name).expect("it is new");
        }
        let mut layer = Vec::new();
        let options = Options::default().latest(at(1000));
        diff::diff(&open(folder.path()), None, &mut layer, &options).expect("it can be written");
        layer
    });

    assert_eq!(layers[0], layers[1]);
}

#[test]
fn only_later_times_are_written_as_the_latest_one() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (name, seconds) in [("earlier", 500), ("later", 2000)] {
        fs::write(folder.path().join(name), "").expect("it is new");
        date(&folder.path().join(name), seconds);
    }
    let mut layer = Vec::new();
    let options = Options::default().compression(Compression::None).latest(at(1000));

    diff::diff(&open(folder.path()), None, &mut layer, &options).expect("it can be written");

    let mut archive = tar::Archive::new(&layer[..]);
    let times = archive
        .entries()
        .expect("it is an archive")
        .map(|entry| entry.expect("it is whole").header().mtime().expect("it is a number"));
    assert_eq!(times.collect::<Vec<_>>(), [1000, 500, 1000], "the root, earlier, later");
}

#[test]
fn holes_stay_holes() {
    let stack = Stack::new(Whiteouts::Remove, |_| {});
    let large = File::create(stack.upper().join("large")).expect("it is new");
    large.set_len(1 << 33).expect("holes take no room");
    large.write_all_at(b"in the middle", 1 << 32).expect("there is room");
    let empty = File::create(stack.upper().join("only a hole")).expect("it is new");
    empty.set_len(1 << 20).expect("holes take no room");

    let layer = stack.layer();

    assert!(layer.len() < 20_000, "{} bytes", layer.len());
    let copied = tempfile::tempdir().expect("a temporary folder can be made");
    windlass_rootfs::apply::apply(&layer[..], &open(copied.path()), &Default::default())
        .expect("it can be applied");
    let metadata = fs::metadata(copied.path().join("large")).expect("it is there");
    assert_eq!((metadata.size(), metadata.blocks() * 512), (1 << 33, 4096));
    assert_eq!(fs::metadata(copied.path().join("only a hole")).expect("it is there").size(), 1 << 20);
}

#[test]
fn what_a_layer_cannot_hold_is_refused_by_name() {
    for (name, attribute, why) in [(".wh.file", None, "rename it"), ("file", Some("user.a=b"), "user.a=b")] {
        let stack = Stack::new(Whiteouts::Remove, |root| fs::create_dir(root.join("in")).expect("it is new"));
        let path = stack.upper().join("in").join(name);
        fs::write(&path, "").expect("it is new");
        if let Some(attribute) = attribute {
            setxattr(&path, attribute, b"", XattrFlags::empty()).expect("the file system has attributes");
        }

        let err = stack.diff(&stack.options()).expect_err(name);

        assert!(matches!(&err, Error::Entry { entry, .. } if *entry == Path::new("in").join(name)), "{err}");
        assert!(err.to_string().contains(why), "{err}");
    }
}

#[test]
fn attributes_are_kept_but_for_those_of_the_host() {
    let stack = Stack::new(Whiteouts::Remove, |_| {});
    let path = stack.upper().join("file");
    fs::write(&path, "").expect("it is new");
    // CAP_NET_RAW, permitted and effective (linux/capability.h, VFS_CAP_REVISION_2).
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (name, value) in [
        ("security.capability", &capability[..]),
        ("user.binary", b"\0\n="),
        ("trusted.mine", b"1"),
        ("security.selinux", b"label"),
    ] {
        setxattr(&path, name, value, XattrFlags::empty()).expect("the file system has attributes");
    }

    let tree = stack.applied(&stack.layer());

    let xattrs = &tree.nodes[Path::new("file")].xattrs;
    let names: Vec<_> = xattrs.keys().map(|name| name.to_str().expect("it is UTF-8")).collect();
    assert_eq!(names, ["security.capability", "user.binary"]);
    assert_eq!(xattrs.values().next().map(Vec::as_slice), Some(&capability[..]));
}

/// Changes a file as soon as its content is written.
struct Meddler<'a> {
    file: &'a Path,
    size: u64,
    seen: usize,
}

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.seen += bytes.len();
        if self.seen > 1 << 20 {
            File::options().write(true).open(self.file)?.set_len(self.size)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error_that_names_it() {
    for size in [100, 10 << 20] {
        let stack = Stack::new(Whiteouts::Remove, |_| {});
        let path = stack.upper().join("file");
        fs::write(&path, vec![1; 4 << 20]).expect("it is new");
        let out = Meddler { file: &path, size, seen: 0 };
        let options = stack.options().compression(Compression::None);

        let err = diff::diff(&open(&stack.upper()), None, out, &options).expect_err("it changes");

        assert!(matches!(&err, Error::Changed { path } if path == Path::new("file")), "{size}: {err:?}");
    }
}

#[test]
fn an_output_that_takes_no_more_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let stack = Stack::new(Whiteouts::Remove, linked);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = stack.options().compression(compression);
        let err = diff::diff(&open(&stack.upper()), None, Full, &options).expect_err("it is full");
        assert!(matches!(err, Error::Io { op: "write", .. }), "{compression:?}: {err:?}");
    }
}
