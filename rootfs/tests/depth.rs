//! Thousands of folders above each other, with few handles. In a process of its own, since the limit is the process's.

mod support;

use std::ffi::OsString;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Place, paths, root};
use windlass_rootfs::apply::Options;
use windlass_testkit::Layer;

#[test]
fn depth_takes_no_handles() {
    // Layers that follow a link to the bottom of the last: thousands of folders above each other.
    let deep = vec!["d"; 500].join("/");
    let mut layers = vec![root().file(format!("{deep}/file"), 0o644, b"").symlink("end", format!("/{deep}"))];
    for number in 1..5 {
        let target: OsString = vec![deep.as_str(); number + 1].join("/").into();
        // A target is as long as a path may be; those that do not fit are reached by links on the way.
        let target = if target.len() < 4000 { target } else { format!("end/{deep}").into() };
        layers.push(Layer::new().file(format!("end/{deep}/file"), 0o644, b"").symlink("end", target));
    }
    layers.truncate(4);
    let place = Place::new();
    let limit = getrlimit(Resource::Nofile);
    let few = Rlimit { current: Some(256), ..limit };
    setrlimit(Resource::Nofile, few).expect("it may be lowered");
    for layer in &layers {
        place.apply(&layer.tar(), &Options::default()).expect("it is well-formed");
    }
    // All of it goes again: by a whiteout, and in the place of a file.
    place
        .apply(&root().whiteout("d").file("end", 0o644, b"").tar(), &Options::default())
        .expect("it is well-formed");
    setrlimit(Resource::Nofile, limit).expect("it may be raised");
    assert_eq!(paths(&place.tree()), ["end"]);
}
