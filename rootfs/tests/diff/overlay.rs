//! What the upper folder of an overlay mount says.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
};

use rustix::fs::{XattrFlags, setxattr};
use windlass_rootfs::{
    Error,
    compression::Compression,
    diff::{self, Options},
};
use windlass_snapshot::Whiteouts;
use windlass_testkit::assert_same;

use crate::support::{Stack, entries, open, place};

fn write(path: impl AsRef<Path>, content: &str) {
    fs::write(path, content).expect("it can be written");
}

/// Two folders, with a file of two names in one of them.
fn fill(root: &Path) {
    for folder in ["d", "d/e", "f"] {
        fs::create_dir(root.join(folder)).expect("it is new");
    }
    write(root.join("d/one"), "1");
    write(root.join("d/e/two"), "2");
    fs::hard_link(root.join("d/one"), root.join("f/same")).expect("it is new");
}

#[test]
fn nothing_changed_is_an_archive_without_entries() {
    let stack = Stack::new(Whiteouts::Overlay, fill);
    stack.change(|_| {});

    let (layer, diffed) =
        stack.diff(&stack.options().compression(Compression::None)).expect("it can be written");

    assert_eq!((diffed.entries, layer.len()), (0, 1024), "the end of an archive");
}

#[test]
fn each_change_is_written_with_the_folders_that_it_is_in() {
    type Change = fn(&Path);
    let changes: [(Change, &[&str]); 9] = [
        (|root| write(root.join("d/e/two"), "22"), &["./", "d/", "d/e/", "d/e/two"]),
        (|root| fs::remove_file(root.join("d/one")).expect("it is there"), &["./", "d/", "d/.wh.one"]),
        (|root| fs::remove_dir_all(root.join("d")).expect("it is there"), &["./", ".wh.d"]),
        (
            |root| {
                fs::remove_dir_all(root.join("d")).expect("it is there");
                fs::create_dir(root.join("d")).expect("it is gone");
                write(root.join("d/new"), "");
            },
            // Each by its name, which every reader understands, rather than all of them by an opaque folder.
            &["./", "d/", "d/.wh.e", "d/.wh.one", "d/new"],
        ),
        (
            |root| {
                fs::remove_dir_all(root.join("d")).expect("it is there");
                write(root.join("d"), "a file");
            },
            &["./", "d"],
        ),
        (
            |root| fs::rename(root.join("d/one"), root.join("d/new")).expect("it is a file"),
            &["./", "d/", "d/.wh.one", "d/new"],
        ),
        // The overlay copies up one name only; the other one stays the lower file.
        (|root| write(root.join("f/same"), "x"), &["./", "f/", "f/same"]),
        (
            |root| fs::hard_link(root.join("d/one"), root.join("a")).expect("it is new"),
            &["./", "a", "d/", "d/one -> a"],
        ),
        (|root| symlink("d/one", root.join("z")).expect("it is new"), &["./", "z -> d/one"]),
    ];
    for (change, want) in changes {
        let stack = Stack::new(Whiteouts::Overlay, fill);
        let tree = stack.change(change);

        let layer = stack.layer();

        assert_eq!(entries(&layer), want);
        assert_same(&tree, &stack.applied(&layer));
        assert_same(&tree, &stack.stacked(&layer));
    }
}

#[test]
fn what_cannot_be_seen_below_is_hidden_as_the_folder_says() {
    let stack = Stack::new(Whiteouts::Overlay, fill);
    stack.change(|root| {
        fs::remove_file(root.join("f/same")).expect("it is there");
        fs::remove_dir_all(root.join("d")).expect("it is there");
        fs::create_dir(root.join("d")).expect("it is gone");
    });

    let mut layer = Vec::new();
    let options = stack.options().compression(Compression::None);
    diff::diff(&open(&stack.upper()), None, &mut layer, &options).expect("it can be written");

    assert_eq!(entries(&layer), ["./", "d/", "d/.wh..wh..opq", "f/", "f/.wh.same"]);
}

#[test]
fn whiteouts_may_be_files_where_the_folder_says_so() {
    let stack = Stack::new(Whiteouts::Overlay, fill);
    let mark = |path: &str, name: &str, value: &[u8]| {
        setxattr(stack.upper().join(path), name, value, XattrFlags::empty()).expect("we are root");
    };
    for folder in ["d", "f"] {
        fs::create_dir(stack.upper().join(folder)).expect("it is new");
    }
    write(stack.upper().join("d/one"), "");
    mark("d/one", "trusted.overlay.whiteout", b"");
    mark("d", "trusted.overlay.opaque", b"x");
    // Without the mark on its folder it is an empty file.
    write(stack.upper().join("f/same"), "");
    mark("f/same", "trusted.overlay.whiteout", b"");

    assert_eq!(entries(&stack.layer()), ["./", "d/", "d/.wh.one", "f/", "f/same"]);
}

#[test]
fn sockets_are_left_out_and_hide_what_they_replace() {
    let stack = Stack::new(Whiteouts::Overlay, fill);
    stack.change(|root| {
        fs::remove_file(root.join("d/one")).expect("it is there");
        drop(UnixListener::bind(root.join("d/one")).expect("it is gone"));
    });

    let (layer, diffed) =
        stack.diff(&stack.options().compression(Compression::None)).expect("it can be written");

    assert_eq!(entries(&layer), ["./", "d/", "d/.wh.one"]);
    assert_eq!(diffed.skipped, [Path::new("d/one")]);
}

#[test]
fn what_other_mount_options_have_put_elsewhere_is_refused_by_name() {
    type Change = fn(&Path);
    let changes: [(&str, Change, &str); 3] = [
        (
            "redirect_dir=on",
            |root| fs::rename(root.join("d"), root.join("moved")).expect("redirected"),
            "moved",
        ),
        (
            "metacopy=on",
            |root| std::os::unix::fs::chown(root.join("d/e/two"), Some(7), None).expect("we are root"),
            "d/e/two",
        ),
        ("index=on", |root| write(root.join("d/one"), "changed"), "d/one"),
    ];
    for (option, change, path) in changes {
        let stack = Stack::new(Whiteouts::Overlay, fill);
        change(&place(&stack.mount(&[option])));

        let err = stack.diff(&Options::default().whiteouts(Whiteouts::Overlay)).expect_err(option);

        assert!(matches!(&err, Error::Entry { entry, .. } if entry == Path::new(path)), "{option}: {err}");
        assert!(err.to_string().contains(option), "{option}: {err}");
    }
}
