//! The overlay driver keeps every promise of the suite. Needs root.

use std::{path::Path, sync::Arc};

use windlass_snapshot::{Durability, Overlay, Snapshotter, testsuite};

#[test]
fn the_overlay_driver_passes_the_suite() {
    testsuite::run_all(&open);
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Overlay::open(root, Durability::Safe).expect("an empty root"))
}
