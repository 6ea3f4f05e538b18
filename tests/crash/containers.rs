//! What containers use stays, whatever becomes of the image.

use std::{
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::runtime::Handle;
use windlass::{Platforms, Windlass, rootfs::spec, snapshot::mount::open_tree};
use windlass_testkit::Tree;

use crate::{images::Served, killed::ends_empty, support::Dist, whole};

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_snapshot_keeps_its_layers_when_the_image_is_removed_and_collected() {
    let served = Served::start(1).await;
    let (dist, name) = (Dist::new(), &served.names[0]);
    dist.ok(&["pull", name]);
    let windlass = Windlass::open(dist.root()).expect("the folder can be opened");
    let image = windlass.image(name, &Platforms::Host).await.expect("it was pulled");
    let chain_id = image.chain_id().expect("it has layers").to_string();
    dist.ok(&["rootfs", "prepare", &chain_id, "mine"]);

    dist.ok(&["images", "rm", name]);
    dist.ok(&["gc"]);

    let snapshotter = windlass.snapshotter().expect("the driver works");
    let root = open_tree(&snapshotter.mounts("mine").expect("it was prepared")).expect("it can be mounted");
    let shown = Tree::read(format!("/proc/self/fd/{}", root.as_raw_fd())).ignore_overlay_xattrs();
    assert_eq!(differences(&served.trees[name], &shown), [""; 0]);
    assert_eq!(dist.ok(&["list", "-q"]), "", "blobs are not needed");
    drop(root);
    snapshotter.remove("mine").expect("nobody uses it");
    drop((snapshotter, windlass));
    dist.ok(&["gc"]);
    whole::nothing_is_left(dist.root()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_keeps_its_root_file_system_while_its_image_is_removed_and_garbage_is_collected() {
    let served = Served::start(1).await;
    let (dist, name) = (Dist::new(), &served.names[0]);
    let windlass = Windlass::open(dist.root()).expect("the folder can be opened");
    let ended = AtomicBool::new(false);
    let runtime = Handle::current();

    thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                dist.ok(&["gc"]);
            }
        });
        let containers = scope.spawn(|| {
            for number in 0..6 {
                let id = format!("container-{number}");
                dist.ok(&["pull", name]);
                let options = spec::Options::default().args(vec!["/bin/true".to_owned()]);
                let bundle = runtime.block_on(windlass.bundle(name, &Platforms::Host, &id, options));
                let bundle = bundle.expect("the image is here");
                dist.ok(&["images", "rm", name]);
                dist.ok(&["gc"]);
                let shown = Tree::read(bundle.rootfs()).ignore_overlay_xattrs();
                assert_eq!(differences(&served.trees[name], &shown), [""; 0]);
                runtime.block_on(windlass.remove_container(&id, bundle, true)).expect("nobody uses it");
            }
        });
        let result = containers.join();
        ended.store(true, Ordering::Relaxed);
        result.expect("its root file system was whole each time");
        collecting.join().expect("nothing keeps it from collecting");
    });

    drop(windlass);
    ends_empty(&dist, &served).await;
}

/// What differs from the image, but for the age of the container's own root folder.
fn differences(want: &Tree, shown: &Tree) -> Vec<String> {
    let mut differences = want.diff(shown);
    differences.retain(|line| !line.starts_with("/: mtime "));
    differences
}
