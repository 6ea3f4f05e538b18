//! Many processes unpack each layer once, and whoever is killed in the middle of one leaves it to another.

use std::{fs, process::Stdio, time::Duration};

use windlass_testkit::Fault;

use crate::{
    images::Served,
    killed::ends_empty,
    running::{Running, until},
    support::{Dist, Ran},
    whole,
};

/// How often layers were unpacked, and how often they were there, as a pull has said.
fn unpacked(ran: &Ran) -> (usize, usize) {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let events = ran.stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON"));
    let (existed, made): (Vec<_>, Vec<_>) = events
        .filter(|event: &serde_json::Value| event["event"] == "unpacked")
        .partition(|event| event["existed"] == true);
    (made.len(), existed.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_pull_images_with_a_common_base_unpack_each_layer_once() {
    for (processes, images, layers) in [(2, 1, 4), (8, 1, 4), (8, 2, 2 + 2 * 2)] {
        let served = Served::start(images).await;
        for driver in ["erofs", "overlay", "native"] {
            let dist = Dist::new();
            let pulls: Vec<_> = (0..processes)
                .map(|number: usize| {
                    let name = &served.names[number % served.names.len()];
                    let mut pull = dist.command(&["--snapshotter", driver, "pull", "--json", name]);
                    pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("dist starts")
                })
                .collect();
            let ran = pulls.into_iter().map(|pull| Ran::from(pull.wait_with_output().expect("it is ours")));

            let counts: Vec<_> = ran.map(|ran| unpacked(&ran)).collect();

            let made: usize = counts.iter().map(|(made, _)| made).sum();
            assert_eq!(made, layers, "{processes} processes, {driver}: {counts:?}");
            assert!(counts.iter().all(|(made, existed)| made + existed == 4), "{counts:?}");
            if driver != "native" {
                assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, served.names);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_process_that_is_killed_in_the_middle_of_a_layer_unpacks_it() {
    let served = Served::start(1).await;
    let (dist, name) = (Dist::new(), &served.names[0]);
    for layer in served.images[0].layers() {
        served.registry.fault(Fault::stall(layer.digest().as_ref(), Duration::from_secs(60)).once());
    }
    let mut holder = Running::start(&dist, &["pull", name]);
    let snapshots = dist.root().join("snapshots/erofs/snapshots");
    let begun = || fs::read_dir(&snapshots).into_iter().flatten().count();
    until("all layers are being unpacked", || begun() == 4);
    let mut waiting = dist.command(&["pull", "--json", name]);
    let waiting = waiting.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("dist starts");
    // Until it waits. If it does not yet, the test proves less, and passes.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(begun(), 4, "nobody else began one of them");

    holder.kill();

    let ran = Ran::from(waiting.wait_with_output().expect("it is ours"));
    assert_eq!(unpacked(&ran), (4, 0));
    assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, [name.as_str()]);
    ends_empty(&dist, &served).await;
}
