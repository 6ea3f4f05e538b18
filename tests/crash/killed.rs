//! SIGKILL at any moment of a pull, a removal or a collection.

use std::{fs, thread, time::Duration};

use windlass_testkit::Fault;

use crate::{
    images::Served,
    random::{Random, Shown, runs, seed},
    running::{Running, until},
    support::Dist,
    whole,
};

/// How many kills there are, if nobody asks for more.
const RUNS: u64 = 120;

/// How many kills there are between two times when everything is removed.
const ROUND: u64 = 15;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_what_is_listed_whole_and_nothing_to_repair() {
    let served = Served::start(2).await;
    let dist = Dist::new();
    for run in 0..runs(RUNS) {
        let seed = seed() * 1_000_000 + run;
        let shown = Shown::new(seed);
        let mut random = Random::new(seed);
        let name = &served.names[usize::try_from(random.below(2)).expect("there are two")];
        match random.below(8) {
            0..4 => kill_after(&dist, &["pull", name], random.within(served.pull)),
            4 => kill_after(&dist, &["pull", "--discard-layers", name], random.within(served.pull)),
            5 => {
                // What it is to collect.
                let _ = dist.run(&["images", "rm", name]);
                kill_after(&dist, &["gc"], random.within(Duration::from_millis(80)));
            }
            6 => kill_after(&dist, &["gc"], random.within(Duration::from_millis(80))),
            _ => kill_after(&dist, &["images", "rm", name], random.within(Duration::from_millis(50))),
        }

        whole::all_that_is_listed(dist.root(), &served.trees).await;
        // Not every time, so that some are killed twice in the middle.
        if random.below(2) == 0 {
            dist.ok(&["pull", name]);
            let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;
            assert!(listed.contains(name), "{listed:?}");
        }
        if run % ROUND == ROUND - 1 || run + 1 == runs(RUNS) {
            ends_empty(&dist, &served).await;
        }
        shown.passed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_while_it_makes_the_folder_leaves_one_that_can_be_used() {
    let served = Served::start(1).await;
    for run in 0..runs(30) {
        let seed = seed() * 1_000_000 + run;
        let shown = Shown::new(seed);
        let mut random = Random::new(seed);
        let dist = Dist::new();
        kill_after(&dist, &["pull", &served.names[0]], random.within(Duration::from_millis(60)));

        ends_empty(&dist, &served).await;
        shown.passed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_download_that_was_damaged_does_not_fail_the_next_pull() {
    let served = Served::start(1).await;
    let dist = Dist::new();
    let name = &served.names[0];
    let layers = served.images[0].layers();
    let half_then_wait = |wait: Duration| {
        for layer in &layers {
            served.registry.fault(Fault::stall(layer.digest().as_ref(), wait).once());
        }
    };
    half_then_wait(Duration::from_secs(60));
    let mut pull = Running::start(&dist, &["pull", name]);
    let ingests = dist.root().join("content/ingest");
    let arrived = || {
        let found = fs::read_dir(&ingests).into_iter().flatten().flatten();
        let files = found.map(|ingest| ingest.path().join("data"));
        files.filter(|data| fs::metadata(data).is_ok_and(|data| data.len() > 1000)).collect::<Vec<_>>()
    };
    until("half of each layer is here", || arrived().len() == layers.len());
    pull.kill();
    for data in arrived() {
        let length = fs::metadata(&data).expect("it is there").len();
        fs::write(&data, vec![7; usize::try_from(length).expect("it is small")]).expect("it is ours");
    }
    // Whoever unpacks has read all that was damaged before the rest is here.
    half_then_wait(Duration::from_secs(1));

    dist.ok(&["pull", name]);

    assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, [name.as_str()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lists_what_was_removed_is_put_right_by_the_next_collection() {
    let served = Served::start(1).await;
    let dist = Dist::new();
    dist.ok(&["pull", &served.names[0]]);
    // As if `images rm` had been killed in the middle.
    windlass::images::Store::open(dist.root().join("images.db"))
        .and_then(|images| images.delete(&served.names[0]))
        .expect("it can be removed");

    dist.ok(&["gc"]);

    whole::nothing_is_left(dist.root()).await;
}

/// Pulls everything, removes it, and looks that nothing is left.
pub(crate) async fn ends_empty(dist: &Dist, served: &Served) {
    for name in &served.names {
        dist.ok(&["pull", name]);
    }
    let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;
    assert_eq!(listed, served.names);
    for name in &served.names {
        dist.ok(&["images", "rm", name]);
    }
    dist.ok(&["gc"]);
    whole::nothing_is_left(dist.root()).await;
}

/// Starts `dist`, and kills it after that time, if it has not ended before.
fn kill_after(dist: &Dist, arguments: &[&str], after: Duration) {
    let mut process = Running::start(dist, arguments);
    thread::sleep(after);
    process.kill();
}
