//! What drivers do with few open files. A process of its own, since that limit is the process's. Needs root.

use std::{path::Path, sync::Arc};

use rustix::process::{Resource, Rlimit, setrlimit};
use windlass_snapshot::{Durability, Native, Overlay, Snapshotter, testsuite};

#[test]
fn a_deep_tree_takes_no_handle_for_each_folder() {
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: Some(256) })
        .expect("it is less than now");
    let native = |root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Native::open(root, Durability::Fast).expect("an empty root"))
    };
    let overlay = |root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Overlay::open(root, Durability::Fast).expect("an empty root"))
    };

    for open in [&native as testsuite::Open<'_>, &overlay] {
        testsuite::a_tree_deeper_than_any_path_is_kept_and_removed(&testsuite::Bench::new(open));
    }
}
