//! The overlay driver keeps every promise of the suite. Needs root.

use std::{path::Path, sync::Arc};

use windlass_snapshot::{Durability, Overlay, Snapshotter, testsuite};

#[test]
fn the_overlay_driver_passes_the_suite() {
    testsuite::run_all(&open);
}

#[test]
fn what_a_process_that_died_while_it_opened_the_root_has_left_is_cleaned_up() {
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let driver = open(root.path());
    let left = root.path().join("probe-1-ThreadId2-3/work/work");
    std::fs::create_dir_all(&left).expect("it is new");

    driver.cleanup().expect("it can be removed");

    assert!(!root.path().join("probe-1-ThreadId2-3").exists());
    assert!(root.path().join("snapshots").exists() && root.path().join("metadata.db").exists());
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Overlay::open(root, Durability::Safe).expect("an empty root"))
}
