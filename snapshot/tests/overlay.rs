//! The overlay driver keeps every promise of the suite, and some of its own. Needs root.

use std::{fs, path::Path, sync::Arc};

use rustix::fs::{AtFlags, CWD, FileType, Mode, mknodat, statat};
use windlass_snapshot::{
    Commit, Durability, Error, Overlay, OverlayOptions, Snapshotter,
    mount::{open_tree, temp_mount},
    testsuite,
};

#[test]
fn the_overlay_driver_passes_the_suite() {
    testsuite::run_all(&open);
}

#[test]
fn what_a_process_that_died_while_it_opened_the_root_has_left_is_cleaned_up() {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let driver = open(root.path());
    let left = root.path().join("probe-1-ThreadId2-3/work/work");
    fs::create_dir_all(&left).expect("it is new");

    driver.cleanup().expect("it can be removed");

    assert!(!root.path().join("probe-1-ThreadId2-3").exists());
    assert!(root.path().join("snapshots").exists() && root.path().join("metadata.db").exists());
}

/// Twice what the kernel mounts at once, committed in one call, with one on top for good measure.
#[test]
fn a_thousand_layers_are_one_tree() {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let driver = fast(root.path());
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let keys: Vec<String> = names.iter().map(|name| format!("key-{name}")).collect();
    for (number, (key, name)) in keys.iter().zip(&names).enumerate() {
        let mounts = driver.prepare(key, None).expect("a free key");
        let layer = mounts[0].source.clone();
        fs::write(layer.join(name), name).expect("a file");
        fs::write(layer.join("last"), name).expect("a file");
        if number == 700 {
            // Far below, beyond what is mounted at once.
            mknodat(CWD, layer.join("3"), FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
        }
    }
    let parents = std::iter::once(None).chain(names.iter().map(|name| Some(name.as_str())));
    let commits: Vec<Commit<'_>> = keys
        .iter()
        .zip(&names)
        .zip(parents)
        .map(|((key, name), parent)| Commit::new(key, name, parent))
        .collect();

    driver.commit(&commits).expect("each is on one that is committed before it");
    let mounts = driver.prepare("container", Some("999")).expect("a committed parent");

    let (mut seen, last) = temp_mount(&mounts, |tree| {
        fs::write(tree.join("new"), "text").expect("it can be written");
        let names = fs::read_dir(tree).expect("a folder");
        let names: Vec<String> =
            names.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        (names, fs::read_to_string(tree.join("last")).expect("it is there"))
    })
    .expect("it mounts");
    let mut expected: Vec<String> = names.iter().filter(|name| *name != "3").cloned().collect();
    expected.extend(["last".to_owned(), "new".to_owned()]);
    seen.sort();
    expected.sort();
    assert!(seen == expected, "{} names", seen.len());
    assert_eq!(last, "999");
    let below =
        open_tree(&driver.view("below", Some("650")).expect("a committed parent")).expect("it mounts");
    statat(&below, "3", AtFlags::empty()).expect("it was hidden only later");

    assert_eq!(driver.cleanup().expect("nothing is left over"), 0);
    for key in ["container", "below"] {
        driver.remove(key).expect("it has no child");
    }
    for name in names.iter().rev() {
        driver.remove(name).expect("it has no child");
    }
    let left = fs::read_dir(root.path().join("snapshots")).expect("a folder").count();
    assert_eq!(left, 0, "each took its second tree along");
}

#[test]
fn a_deep_snapshot_whose_second_tree_is_lost_is_made_whole_again() {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let bench = testsuite::Bench::new_in(root.path(), &fast);
    let driver = &bench.driver;
    let prepared = |name: usize| {
        let key = format!("key-{name}");
        let mounts = driver.prepare(&key, None).expect("a free key");
        fs::write(mounts[0].source.join(name.to_string()), "text").expect("a file");
        key
    };
    let commit = |name: usize| {
        let (key, parent) = (prepared(name), name.checked_sub(1).map(|parent| parent.to_string()));
        driver.commit(&[Commit::new(&key, &name.to_string(), parent.as_deref())])
    };
    (0..260).for_each(|name| commit(name).expect("it is active"));
    let snapshots = bench.root().join("snapshots");
    let folders = fs::read_dir(&snapshots).expect("a folder").map(|entry| entry.expect("an entry").path());
    // Only a second tree has two layers' files, and no folder for overlayfs.
    let second: Vec<_> =
        folders.filter(|path| path.join("fs/0").exists() && path.join("fs/1").exists()).collect();
    let [second] = &second[..] else { panic!("one in 240 has one: {second:?}") };
    let deep: usize = fs::read_dir(second.join("fs")).expect("a folder").count() - 1;

    fs::remove_dir_all(second).expect("removed");
    assert_eq!(driver.stat(&deep.to_string()).expect("it looks"), None);
    commit(deep).expect("it is made again");

    assert!(driver.stat(&deep.to_string()).expect("it looks").is_some());
    bench.look("259", |tree| {
        for name in 0..260 {
            assert!(tree.join(name.to_string()).exists(), "{name}");
        }
    });
    assert_eq!(driver.cleanup().expect("nothing is left over"), 0);
}

#[test]
fn what_is_volatile_is_mounted_once_and_can_be_committed() {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let mut options = OverlayOptions::default();
    options.volatile = true;
    let driver = Overlay::open_with(root.path(), Durability::Safe, options).expect("an empty root");
    driver.prepare("low-key", None).expect("a free key");
    driver.commit(&[Commit::new("low-key", "low", None)]).expect("it is active");
    let mounts = driver.prepare("key", Some("low")).expect("a committed parent");

    temp_mount(&mounts, |tree| fs::write(tree.join("file"), "text").expect("written")).expect("it mounts");
    let again = temp_mount(&mounts, |_| ()).expect_err("nobody knows whether all is there");
    driver.commit(&[Commit::new("key", "high", None)]).expect("it is active");

    assert!(matches!(again, Error::Mount { .. }), "{again:?}");
    let source = std::error::Error::source(&again).expect("there is a reason").to_string();
    assert!(source.contains("can be mounted only once"), "{source}");
    let view = driver.view("view", Some("high")).expect("a committed parent");
    let text = temp_mount(&view, |tree| fs::read_to_string(tree.join("file"))).expect("it mounts");
    assert_eq!(text.expect("it is there"), "text");
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Overlay::open(root, Durability::Safe).expect("an empty root"))
}

fn fast(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Overlay::open(root, Durability::Fast).expect("an empty root"))
}
