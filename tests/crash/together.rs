//! Many at once in one folder.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, task::JoinSet};
use windlass::{Windlass, content::Store};
use windlass_testkit::Fault;

use crate::{images::Served, killed::ends_empty, running::Running, support::Dist, whole};

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_that_pull_one_image_fetch_each_blob_once() {
    let served = Served::start(1).await;
    let dist = Dist::new();
    let before = served.registry.requests().len();

    let processes: Vec<_> = (0..8).map(|_| Running::start(&dist, &["pull", &served.names[0]])).collect();
    let ended: Vec<_> = processes.into_iter().map(Running::end).collect();

    assert!(ended.iter().all(std::process::ExitStatus::success), "{ended:?}");
    each_was_fetched_once(&served, before);
    assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, served.names);
    ends_empty(&dist, &served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_tasks_that_pull_one_image_fetch_each_blob_once() {
    let served = Served::start(1).await;
    let dist = Dist::new();
    let windlass = Windlass::open(dist.root()).expect("the folder can be made");
    let before = served.registry.requests().len();

    let mut pulls = JoinSet::new();
    for _ in 0..64 {
        let (windlass, name) = (windlass.clone(), served.names[0].parse().expect("it is a reference"));
        pulls.spawn(async move { windlass.pull(&name).await });
    }
    let pulled = pulls.join_all().await;

    for pulled in pulled {
        assert_eq!(pulled.expect("it works").name, served.names[0]);
    }
    each_was_fetched_once(&served, before);
    drop(windlass);
    assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, served.names);
    ends_empty(&dist, &served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_given_up_does_not_fail_another_one_that_follows_what_it_fetched() {
    let served = Served::start(1).await;
    let dist = Dist::new();
    let windlass = Windlass::open(dist.root()).expect("the folder can be made");
    for layer in served.images[0].layers() {
        served.registry.fault(Fault::stall(layer.digest().as_ref(), Duration::from_secs(2)).once());
    }
    let pull = || {
        let (windlass, name) = (windlass.clone(), served.names[0].parse().expect("it is a reference"));
        tokio::spawn(async move { windlass.pull(&name).await })
    };
    // Neither finds anything when it begins; each follows what the other one fetches.
    let (first, second) = (pull(), pull());
    let active = async || windlass.content().active().await.expect("it can be listed");
    while active().await.iter().filter(|it| it.offset > 1000).count() < 4 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Until they have begun to unpack what is there. If they have not, the test proves nothing, and passes.
    tokio::time::sleep(Duration::from_millis(500)).await;

    first.abort();

    second.await.expect("it does not panic").expect("it goes on alone");
    drop(windlass);
    assert_eq!(whole::all_that_is_listed(dist.root(), &served.trees).await, served.names);
    ends_empty(&dist, &served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pulled_is_whole_while_garbage_is_collected_all_the_time() {
    let served = Served::start(3).await;
    let dist = Dist::new();
    let (end, pulls, collections) =
        (Instant::now() + Duration::from_secs(5), AtomicUsize::new(0), AtomicUsize::new(0));
    let (runtime, ended) = (Handle::current(), AtomicBool::new(false));

    thread::scope(|scope| {
        let pulling: Vec<_> = served
            .names
            .iter()
            .map(|name| {
                let (dist, trees, pulls, runtime) = (&dist, &served.trees, &pulls, &runtime);
                scope.spawn(move || {
                    while Instant::now() < end {
                        dist.ok(&["pull", name]);
                        runtime.block_on(whole::one_image(dist.root(), name, &trees[name]));
                        dist.ok(&["images", "rm", name]);
                        pulls.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                dist.ok(&["gc"]);
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        let pulled: Vec<_> = pulling.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.store(true, Ordering::Relaxed);
        pulled.into_iter().for_each(|it| it.expect("it was whole each time"));
    });

    let (pulls, collections) = (pulls.into_inner(), collections.into_inner());
    assert!(pulls >= 3 && collections >= 1, "{pulls} pulls beside {collections} collections");
    ends_empty(&dist, &served).await;
}

/// Asserts that since `before` requests had come, each blob and manifest was sent once.
fn each_was_fetched_once(served: &Served, before: usize) {
    let mut fetched = BTreeMap::<_, usize>::new();
    for request in served.registry.requests().split_off(before) {
        let is_content = ["/blobs/sha256:", "/manifests/sha256:"].iter().any(|it| request.path.contains(it));
        if request.method == "GET" && is_content {
            *fetched.entry(request.path).or_default() += 1;
        }
    }
    assert!(fetched.values().all(|times| *times == 1), "{fetched:#?}");
    assert_eq!(fetched.keys().filter(|path| path.contains("/blobs/")).count(), 5, "{fetched:#?}");
}
