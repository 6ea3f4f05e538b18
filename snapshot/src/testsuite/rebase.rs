//! Checks of layers that are filled alone and stacked afterwards.

use std::{fs, path::Path};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::{Bench, read, trees::names, write};
use crate::{Commit, Error};

/// Whiteouts and opaque folders hide what is below, before the commit and after it.
///
/// A driver without `rebase` must refuse to stack.
pub fn layers_prepared_alone_merge_when_they_are_stacked(bench: &Bench<'_>) {
    let capabilities = bench.driver.capabilities();
    fill(bench, "low", |tree| {
        fs::create_dir(tree.join("dir")).expect("a folder");
        write(tree.join("dir/hidden"), "low");
        write(tree.join("gone"), "low");
        write(tree.join("file"), "low");
    });
    if !capabilities.rebase {
        let err = bench.driver.stacked(&["low"], None).expect_err("it cannot rebase");
        assert!(matches!(err, Error::Unsupported { .. }), "{err:?}");
        return;
    }
    let opaque = capabilities.whiteouts.opaque().expect("layers that are filled alone need whiteouts");
    fill(bench, "middle", |tree| {
        fs::create_dir(tree.join("dir")).expect("a folder");
        write(tree.join("dir/new"), "middle");
        lsetxattr(tree.join("dir"), opaque, b"y", XattrFlags::empty()).expect("opaque");
        mknodat(CWD, tree.join("gone"), FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
    });
    fill(bench, "high", |tree| write(tree.join("file"), "high"));
    let merged = |tree: &Path| {
        assert_eq!(names(tree), ["dir", "file"]);
        assert_eq!(names(&tree.join("dir")), ["new"]);
        assert_eq!(read(tree.join("file")), "high");
    };

    let before = bench.driver.stacked(&["high", "middle", "low"], None).expect("all are active");
    bench.mounted(&before, merged);
    let commits = [
        Commit::new("low", "LOW", None),
        Commit::new("middle", "MIDDLE", Some("LOW")),
        Commit::new("high", "HIGH", Some("MIDDLE")),
    ];
    bench.driver.commit(&commits).expect("each is on one that is committed before it");

    bench.look("HIGH", merged);
    let info = bench.driver.stat("HIGH").expect("stat").expect("committed");
    assert_eq!(info.parent.as_deref(), Some("MIDDLE"));
    assert_eq!(bench.look("LOW", names), ["dir", "file", "gone"]);
    fill(bench, "top", |tree| write(tree.join("top"), "top"));
    let on_base = bench.driver.stacked(&["top"], Some("HIGH")).expect("a committed base");
    bench.mounted(&on_base, |tree| assert_eq!(names(tree), ["dir", "file", "top"]));
    if let Some(many) = capabilities.stacked.checked_add(1) {
        let err = bench.driver.stacked(&vec!["top"; many], None).expect_err("it says that it takes less");
        assert!(matches!(err, Error::Unsupported { .. }), "{err:?}");
    }
}

/// And never changed from one to another.
pub fn a_parent_is_given_at_commit_only_with_rebase(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    bench.layer("other", None, |_| {});
    bench.driver.prepare("alone", None).expect("a free key");
    bench.driver.prepare("child", Some("low")).expect("a committed parent");
    let commit = |key, parent| bench.driver.commit(&[Commit::new(key, key, Some(parent))]);

    let alone = commit("alone", "low");

    if bench.driver.capabilities().rebase {
        alone.expect("it had no parent");
    } else {
        assert!(matches!(alone, Err(Error::Unsupported { .. })), "{alone:?}");
    }
    let changed = commit("child", "other");
    assert!(matches!(changed, Err(Error::Unsupported { .. })), "{changed:?}");
    commit("child", "low").expect("it was prepared on that");
}

fn fill(bench: &Bench<'_>, key: &str, work: impl FnOnce(&Path)) {
    let mounts = bench.driver.prepare(key, None).expect("a free key");
    bench.mounted(&mounts, work);
}
