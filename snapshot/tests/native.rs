//! The native driver keeps every promise of the suite. Needs root.

use std::{path::Path, sync::Arc};

use windlass_snapshot::{Durability, Native, Snapshotter, testsuite};

#[test]
fn the_native_driver_passes_the_suite() {
    testsuite::run_all(&open);
}

fn open(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Native::open(root, Durability::Fast).expect("an empty root"))
}
