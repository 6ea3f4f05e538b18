//! Garbage is collected all the time, by two processes, while others pull, tag, check and delete. One of them is killed.

mod common;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::MediaType;
use tokio::task::JoinSet;
use windlass_content::{LocalStore, Store as _};
use windlass_images::{
    Checked, Filter, LeaseOptions, Record, Resource, Store, check,
    gc::{Gc, Options},
};

use self::common::{Blob, image, index, layer, open, pull};

const FOLDER: &str = "WINDLASS_STRESS_FOLDER";
const TIME: Duration = Duration::from_secs(4);

/// Enough randomness to meet in all orders.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).expect("it is small")
    }
}

/// One of a few images, that share layers with each other. The target comes last.
fn some_image(dice: &mut Dice) -> Vec<Blob> {
    let pool: Vec<_> = (0..6).map(|n| layer(&format!("layer {n}").repeat(n * 40 + 1))).collect();
    let large = Blob::new(MediaType::ImageLayer, vec![1; (1 << 20) + 1]);
    let number = dice.roll(8);
    let mut layers = vec![pool[number % 6].clone(), pool[number * 5 % 6].clone()];
    if number == 7 {
        layers.push(large);
    }
    let mut blobs = image(&number.to_string(), &layers);
    blobs.reverse();
    if number.is_multiple_of(2) {
        let target = &blobs[blobs.len() - 1].descriptor;
        blobs.push(index(&[target]));
    }
    blobs
}

async fn work(content: LocalStore, store: Store, seed: u64, until: Instant) -> usize {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
    let mut pulled = 0;
    while Instant::now() < until {
        let name = format!("image {}", dice.roll(5));
        match dice.roll(8) {
            0..3 => {
                let blobs = some_image(&mut dice);
                let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
                // From the top, as registries are read, or from the bottom.
                let mut order: Vec<_> = blobs.iter().collect();
                if dice.roll(2) == 0 {
                    order.reverse();
                }
                for blob in order {
                    pull(&lease, &content, blob).await;
                }
                let target = blobs.last().expect("it has blobs");
                if dice.roll(4) > 0 {
                    store.put(&name, &target.descriptor).expect("it is recorded");
                }
                if dice.roll(4) == 0 {
                    lease.keep(Duration::from_millis(5)).await.expect("it is kept");
                }
                pulled += 1;
            }
            3 => drop(store.tag(&name, "tagged").expect("it tags")),
            4 => drop(store.delete(&name).expect("it deletes")),
            5 => drop(store.delete("tagged").expect("it deletes")),
            6 => {
                let Some(record) = store.get(&name).expect("it looks") else { continue };
                let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
                let tree = Resource::Tree(record.target.digest().clone());
                lease.hold(&tree).await.expect("it holds");
                if store.get(&name).expect("it looks").is_some_and(|it| it.target == record.target) {
                    store.delete(&name).expect("it deletes");
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    assert_whole(&content, &record).await;
                }
            }
            _ => check_all(&content, &store).await,
        }
    }
    pulled
}

async fn is_whole(content: &LocalStore, record: &Record) -> bool {
    let checked = check(content, &record.target, None).await;
    matches!(checked, Ok(checked) if !checked.is_empty() && checked.iter().all(Checked::is_complete))
}

async fn assert_whole(content: &LocalStore, record: &Record) {
    assert!(is_whole(content, record).await, "{record:?}: {:?}", check(content, &record.target, None).await);
}

/// Whatever is listed is whole, unless it was deleted while we looked.
async fn check_all(content: &LocalStore, store: &Store) {
    for record in store.list(&Filter::all()).expect("it lists") {
        if !is_whole(content, &record).await {
            let now = store.get(&record.name).expect("it looks");
            let same = |it: &Record| {
                (it.created, it.updated, &it.target) == (record.created, record.updated, &record.target)
            };
            assert!(!now.as_ref().is_some_and(same), "{record:?} is listed and not whole");
        }
    }
}

async fn collect(content: LocalStore, store: Store, until: Instant) -> usize {
    let gc = Gc::new(store, Arc::new(content));
    let mut freed = 0;
    while Instant::now() < until {
        freed += gc.run(&Options::default()).await.expect("it collects").blobs.len();
    }
    freed
}

/// The part that each process plays.
async fn play(folder: &Path, seed: u64) -> (usize, usize) {
    let until = Instant::now() + TIME;
    let mut workers = JoinSet::new();
    let (content, store) = open(folder);
    for worker in 0..3 {
        // Two share a store, and one has its own.
        let (content, store) = if worker < 2 { (content.clone(), store.clone()) } else { open(folder) };
        workers.spawn(work(content, store, seed * 100 + worker, until));
    }
    let collector = tokio::spawn(collect(content, store, until));
    let pulled: usize = workers.join_all().await.into_iter().sum();
    (pulled, collector.await.expect("it ends"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "it is started by the other test"]
async fn another_process() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    play(&PathBuf::from(folder), u64::from(std::process::id())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_listed_image_is_whole_at_all_times() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    drop(open(dir.path()));
    let start = || {
        Command::new(env::current_exe().expect("it is this one"))
            .args(["--ignored", "--exact", "another_process"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("it starts")
    };
    let (mut lives, mut dies) = (start(), start());
    let killed = std::thread::spawn(move || {
        std::thread::sleep(TIME / 2);
        dies.kill().expect("it can be killed");
        dies.wait().expect("it ends")
    });

    let (pulled, freed) = play(dir.path(), 1).await;

    assert!(lives.wait().expect("it ends").success());
    killed.join().expect("it was killed");
    println!("{pulled} pulled, {freed} freed");
    assert!(pulled > 10 && freed > 10, "{pulled} pulled, {freed} freed");
    let (content, store) = open(dir.path());
    for record in store.list(&Filter::all()).expect("it lists") {
        assert_whole(&content, &record).await;
        store.delete(&record.name).expect("it deletes");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let options = Options::default().idle_ingests(Duration::ZERO);
    Gc::new(store.clone(), Arc::new(content.clone())).run(&options).await.expect("it collects");
    assert_eq!(store.leases().await.expect("it lists"), []);
    assert_eq!(content.active().await.expect("it lists"), []);
    let left: Vec<_> = futures::TryStreamExt::try_collect(content.walk(windlass_content::Filter::default()))
        .await
        .expect("it lists");
    assert_eq!(left, [], "nothing leaks");
}
