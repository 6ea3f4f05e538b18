//! The erofs driver keeps every promise of the suite, however its layers are mounted. Needs root.

use std::{path::Path, sync::Arc};

use windlass_snapshot::{Durability, Erofs, ErofsOptions, Snapshotter, erofs::Form, testsuite};

#[test]
fn the_erofs_driver_passes_the_suite() {
    testsuite::run_all(&|root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Erofs::open(root, Durability::Safe).expect("an empty root"))
    });
}

#[test]
fn the_erofs_driver_passes_the_suite_with_stacked_layers() {
    testsuite::run_all(&|root: &Path| -> Arc<dyn Snapshotter> {
        let options = ErofsOptions::default().form(Form::Stacked);
        Arc::new(Erofs::open_with(root, Durability::Fast, options).expect("an empty root"))
    });
}
