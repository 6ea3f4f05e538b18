//! The power is cut: what was not yet on the disk never will be.

use std::{thread, time::Duration};

use windlass_testkit::LoopDisk;

use crate::{
    images::Served,
    killed::ends_empty,
    random::{Random, Shown, runs, seed},
    running::{Running, until},
    support::Dist,
    whole,
};

/// Enough for a few images, and a journal.
const SIZE: u64 = 128 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_reported_success_survives_a_power_cut() {
    let served = Served::start(2).await;
    for run in 0..runs(6) {
        let shown = Shown::new(seed() * 1_000_000 + run);
        // On a disk of its own each time: what is only there the first time, folders for instance, must be durable as well.
        let disk = LoopDisk::ext4(SIZE);
        let dist = Dist::at(disk.path().join("some/new/root"));
        for (number, name) in served.names.iter().enumerate() {
            dist.ok(&["pull", name]);
            disk.cut_power();
            disk.remount();

            let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;

            assert_eq!(listed, served.names[..=number]);
        }
        ends_empty(&dist, &served).await;
        shown.passed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_shares_layers_with_one_that_goes_on_survives_a_power_cut() {
    let served = Served::start(3).await;
    let disk = LoopDisk::ext4(SIZE);
    for run in 0..runs(8) {
        let shown = Shown::new(seed() * 1_000_000 + run);
        let dist = Dist::at(disk.path().join(format!("root-{run}")));
        let mut pulls: Vec<_> =
            served.names.iter().map(|name| Running::start(&dist, &["pull", name])).collect();
        let mut succeeded = Vec::new();
        until("a pull succeeds", || {
            let pulls = served.names.iter().zip(&mut pulls);
            succeeded.extend(pulls.filter_map(|(name, pull)| pull.has_ended().then(|| name.clone())));
            !succeeded.is_empty()
        });
        disk.cut_power();
        pulls.iter_mut().for_each(Running::kill);
        disk.remount();

        let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;

        assert!(succeeded.iter().all(|name| listed.contains(name)), "{succeeded:?} of {listed:?}");
        ends_empty(&dist, &served).await;
        shown.passed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_at_any_moment_leaves_what_is_listed_whole_and_nothing_to_repair() {
    let served = Served::start(2).await;
    let disk = LoopDisk::ext4(SIZE);
    for round in 0..runs(4) {
        // Each begins with a folder that is not there.
        let dist = Dist::at(disk.path().join(format!("root-{round}")));
        for run in 0..6 {
            let seed = seed() * 1_000_000 + round * 6 + run;
            let shown = Shown::new(seed);
            cut(&dist, &disk, &served, &mut Random::new(seed)).await;
            shown.passed();
        }
        ends_empty(&dist, &served).await;
    }
}

/// One cut, while something is being done.
async fn cut(dist: &Dist, disk: &LoopDisk, served: &Served, random: &mut Random) {
    let name = &served.names[usize::try_from(random.below(2)).expect("there are two")];
    let (arguments, limit) = match random.below(6) {
        0 => (vec!["images", "rm", name], Duration::from_millis(100)),
        1 => (vec!["gc"], Duration::from_millis(100)),
        2 => (vec!["pull", "--discard-layers", name], served.pull * 2),
        _ => (vec!["pull", name], served.pull * 2),
    };
    let mut process = Running::start(dist, &arguments);
    thread::sleep(random.within(limit));
    let has_ended = process.has_ended();
    disk.cut_power();
    process.kill();
    disk.remount();

    let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;
    match arguments[0] {
        "pull" if has_ended => assert!(listed.contains(name), "{listed:?}"),
        "images" if has_ended => assert!(!listed.contains(name), "{listed:?}"),
        _ => {}
    }
    if random.below(2) == 0 {
        dist.ok(&["pull", name]);
        let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;
        assert!(listed.contains(name), "{listed:?}");
    }
}
