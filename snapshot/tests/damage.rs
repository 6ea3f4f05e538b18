//! What drivers with folders do about files that somebody removed. Needs root.

use std::{fs, path::Path, sync::Arc};

use windlass_snapshot::{Commit, Durability, Mount, Native, Overlay, Snapshotter, mount};

type Open = fn(&Path) -> Arc<dyn Snapshotter>;

fn commit(driver: &dyn Snapshotter, name: &str, parent: Option<&str>, file: &str) {
    let mounts = driver.prepare("new", parent).expect("the parent is there");
    mounted(&mounts, |tree| fs::write(tree.join(file), file).expect("it is writable"));
    driver.commit(&[Commit::new("new", name, None)]).expect("it was prepared");
}

fn mounted<T>(mounts: &[Mount], look: impl FnOnce(&Path) -> T) -> T {
    let target = tempfile::tempdir().expect("a temporary folder can be made");
    mount::mount_all(mounts, target.path()).expect("it mounts");
    let found = look(target.path());
    mount::unmount(target.path()).expect("nobody uses it");
    found
}

/// The folder of the snapshot that has this file of its own, and no other.
fn folder_with(root: &Path, file: &str) -> std::path::PathBuf {
    let folders = fs::read_dir(root.join("snapshots")).expect("it is a folder");
    let paths = folders.map(|entry| entry.expect("it can be read").path());
    let has = |path: &std::path::PathBuf| {
        let image = fs::read(path.join("layer.erofs")).unwrap_or_default();
        path.join("fs").join(file).exists() || image.windows(file.len()).any(|bytes| bytes == file.as_bytes())
    };
    paths.into_iter().find(has).expect("it was committed")
}

#[test]
fn a_snapshot_whose_files_are_gone_counts_as_none_until_it_is_committed_again() {
    let open: &[Open] = &[
        #[cfg(feature = "erofs")]
        |root| Arc::new(windlass_snapshot::Erofs::open(root, Durability::Fast).expect("an empty root")),
        |root| Arc::new(Native::open(root, Durability::Fast).expect("an empty root")),
        |root| Arc::new(Overlay::open(root, Durability::Fast).expect("an empty root")),
    ];
    for open in open {
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        let driver = open(root.path());
        commit(&*driver, "low", None, "one");
        let low = folder_with(root.path(), "one");
        commit(&*driver, "high", Some("low"), "two");

        fs::remove_dir_all(&low).expect("it can be removed");
        let (lost, above) = (driver.stat("low").expect("it looks"), driver.stat("high").expect("it looks"));
        commit(&*driver, "low", None, "one");

        assert_eq!(lost, None, "{driver:?}");
        assert!(above.is_some(), "{driver:?}");
        assert!(driver.stat("low").expect("it looks").is_some(), "{driver:?}");
        let mounts = driver.view("view", Some("high")).expect("it is committed");
        let files = ["one", "two"];
        assert!(mounted(&mounts, |tree| files.iter().all(|file| tree.join(file).exists())), "{driver:?}");
        assert!(low.exists(), "it was put where it had been");
        driver.cleanup().expect("nothing is left over");
        assert!(low.exists(), "{driver:?}");
    }
}
