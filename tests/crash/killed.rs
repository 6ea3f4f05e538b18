//! SIGKILL at any moment of a pull, a removal or a collection.

use std::{process::Stdio, thread, time::Duration};

use crate::{
    images::Served,
    random::{Random, runs, seed},
    support::Dist,
    whole,
};

/// How many kills there are between two times when everything is removed.
const ROUND: u64 = 15;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_leaves_what_is_listed_whole_and_nothing_to_repair() {
    let served = Served::start(2).await;
    let dist = Dist::new();
    for run in 0..runs(150) {
        let seed = seed() * 1_000_000 + run;
        let shown = Shown(seed);
        let mut random = Random::new(seed);
        let name = &served.names[usize::try_from(random.below(2)).expect("there are two")];
        match random.below(8) {
            0..5 => kill(&dist, &["pull", name], random.within(served.pull)),
            5 => {
                // What it is to collect.
                let _ = dist.run(&["images", "rm", name]);
                kill(&dist, &["gc"], random.within(Duration::from_millis(80)));
            }
            6 => kill(&dist, &["gc"], random.within(Duration::from_millis(80))),
            _ => kill(&dist, &["images", "rm", name], random.within(Duration::from_millis(50))),
        }

        whole::all_that_is_listed(dist.root(), &served.trees).await;
        // Not every time, so that some are killed twice in the middle.
        if random.below(2) == 0 {
            dist.ok(&["pull", name]);
            let listed = whole::all_that_is_listed(dist.root(), &served.trees).await;
            assert!(listed.contains(name), "{listed:?}");
        }
        if run % ROUND == ROUND - 1 || run + 1 == runs(150) {
            for name in &served.names {
                dist.ok(&["pull", name]);
                dist.ok(&["images", "rm", name]);
            }
            dist.ok(&["gc"]);
            whole::nothing_is_left(dist.root()).await;
        }
        shown.passed();
    }
}

/// Starts `dist`, and kills it after that time, if it has not ended before.
fn kill(dist: &Dist, arguments: &[&str], after: Duration) {
    let mut child =
        dist.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("dist starts");
    thread::sleep(after);
    child.kill().expect("it is ours");
    child.wait().expect("it is ours");
}

/// Says which seed it was if a test fails.
struct Shown(u64);

impl Shown {
    fn passed(self) {
        std::mem::forget(self);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        eprintln!("the seed was {}", self.0);
    }
}
