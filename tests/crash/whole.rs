//! What must hold at any time, and what must be left in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    os::fd::AsRawFd,
    path::Path,
};

use futures::TryStreamExt;
use oci_spec::image::Descriptor;
use windlass::{
    Platforms, Windlass,
    content::{Condition, Verify},
    images::{Filter, check, media_type::is_layer},
    snapshot::mount::open_tree,
};
use windlass_testkit::Tree;

/// What the root file system of an image is, without leaving a trace.
pub(crate) async fn tree(root: &Path, name: &str) -> Tree {
    tree_in(&open(root), name).await
}

/// Asserts that all blobs are good, that nothing is missing of any image that is listed, and that the files of each are what
/// they should be. Returns the names of the images.
pub(crate) async fn all_that_is_listed(root: &Path, trees: &BTreeMap<String, Tree>) -> Vec<String> {
    let windlass = open(root);
    let mut verified = windlass.content().verify(Verify::default());
    while let Some(blob) = verified.try_next().await.expect("blobs can be read") {
        assert!(matches!(blob.condition, Condition::Good), "{blob:?}");
    }
    index(root);
    let records = windlass.images().list(&Filter::all()).expect("the list can be read");
    for record in &records {
        is_whole(&windlass, &record.name, &trees[&record.name]).await;
    }
    records.into_iter().map(|record| record.name).collect()
}

/// Asserts that an image is whole, whatever goes on beside it.
pub(crate) async fn one_image(root: &Path, name: &str, want: &Tree) {
    let windlass = open(root);
    is_whole(&windlass, name, want).await;
    let image = windlass.image(name, &Platforms::Host).await.expect("it is listed");
    for (layer, _) in image.layers() {
        let verified = windlass.content().verify_blob(layer.digest(), &Verify::default()).await;
        let verified = verified.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(matches!(verified.condition, Condition::Good), "{name}: {verified:?}");
    }
}

async fn is_whole(windlass: &Windlass, name: &str, want: &Tree) {
    let record = windlass.images().get(name).expect("the list can be read").expect("it is listed");
    let discarded = record.labels.contains_key("windlass.unpacked");
    for image in check(windlass.content(), &record.target, None).await.expect("it can be looked at") {
        let may_miss = |blob: &Descriptor| discarded && is_layer(blob.media_type());
        assert!(image.missing.iter().all(may_miss), "{name}: {image:?}");
    }
    let differences = want.diff(&tree_in(windlass, name).await);
    assert!(differences.is_empty(), "{name} is not whole:\n{}", differences.join("\n"));
}

async fn tree_in(windlass: &Windlass, name: &str) -> Tree {
    let image = windlass.image(name, &Platforms::Host).await.expect("it is listed");
    let chain_id = image.chain_id().expect("it has layers");
    let snapshotter = windlass.snapshotter().expect("the driver works");
    let mounts =
        snapshotter.stacked(&[], Some(chain_id.as_ref())).unwrap_or_else(|error| panic!("{name}: {error}"));
    // A mount that has no place in the file system leaves nothing, whatever becomes of us.
    let root = open_tree(&mounts).expect("it can be mounted");
    Tree::read(format!("/proc/self/fd/{}", root.as_raw_fd())).ignore_overlay_xattrs()
}

/// Asserts that nothing is left, not even a file, of images that were removed and collected.
pub(crate) async fn nothing_is_left(root: &Path) {
    let windlass = open(root);
    assert!(windlass.images().list(&Filter::all()).expect("the list can be read").is_empty());
    assert!(windlass.images().leases().await.expect("they can be read").is_empty());
    let snapshotter = windlass.snapshotter().expect("the driver works");
    let mut snapshots = Vec::new();
    let all = snapshotter.walk(&mut |info| {
        snapshots.push(info.name);
        ControlFlow::Continue(())
    });
    all.expect("they can be listed");
    assert!(snapshots.is_empty(), "{snapshots:?}");
    drop((snapshotter, windlass));

    for (folder, may_have) in [
        ("", &["bundles", "content", "gc.lock", "gc.next", "gc.run", "images.db", "leases", "snapshots"][..]),
        ("bundles", &[]),
        ("content", &["blobs", "index.json", "ingest", "labels", "oci-layout"]),
        ("content/blobs", &["sha256"]),
        ("content/blobs/sha256", &[]),
        ("content/ingest", &[]),
        ("content/labels", &["sha256"]),
        ("content/labels/sha256", &[]),
        ("leases", &[]),
        ("snapshots", &["erofs"]),
        ("snapshots/erofs", &["lock", "metadata.db", "snapshots", "unpack.lock"]),
        ("snapshots/erofs/snapshots", &[]),
    ] {
        let left: Vec<_> = names(&root.join(folder))
            .into_iter()
            // SQLite's own.
            .filter(|name| !name.ends_with("-wal") && !name.ends_with("-shm"))
            .filter(|name| !may_have.contains(&&**name))
            .collect();
        assert!(left.is_empty(), "{folder} has {left:?}");
    }
    let rows = |database: &str, table: &str| -> i64 {
        let database = rusqlite::Connection::open(root.join(database)).expect("it is a database");
        let count = format!("SELECT count(*) FROM {table}");
        database.query_row(&count, [], |row| row.get(0)).expect("it has that table")
    };
    assert_eq!(rows("snapshots/erofs/metadata.db", "snapshots"), 0, "removed ones included");
    assert_eq!(rows("images.db", "resources"), 0, "what leases held");
    assert_eq!(index(root)["manifests"], serde_json::json!([]));
    nothing_is_mounted_below(root);
}

fn nothing_is_mounted_below(root: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts can be read");
    let below = format!("{}/", root.display());
    assert!(!mounts.contains(&below), "{mounts}");
}

/// What other tools see.
fn index(root: &Path) -> serde_json::Value {
    let index = fs::read(root.join("content/index.json")).expect("it is there");
    serde_json::from_slice(&index).expect("it is JSON")
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.expect("it is listed").file_name().into_string().expect("it is text")).collect()
}

fn open(root: &Path) -> Windlass {
    Windlass::open(root).expect("the folder can be opened")
}
