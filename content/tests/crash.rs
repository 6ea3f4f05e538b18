//! Processes are killed, the power is cut, the disk is full: the store is whole, and needs no repair.
//!
//! `WINDLASS_CRASH_RUNS` says how many processes are killed, 100 if it is not set; the power is cut a tenth as often.

mod child;

use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::Descriptor;
use tokio::runtime::Runtime;
use windlass_content::{
    Condition, Error, Filter, Ingest, Ingester, Labels, LocalStore, ProviderExt, Store, Verify, WriterExt,
    testsuite::{descriptor, writer},
};
use windlass_testkit::LoopDisk;

use self::child::{Child, Random, open};

/// How many blobs the children write.
const BLOBS: u64 = 8;

/// Not a test: what the children do.
#[test]
fn child() {
    let Some((role, root, seed)) = child::role() else { return };
    let mut random = Random::new(seed);
    let run = async {
        let store = open(&root);
        child::say("ready");
        match &*role {
            "churn" => loop {
                churn(&store, &mut random).await;
            },
            "commit" => {
                // The first error is the end of the power.
                for number in seed * 1000.. {
                    let want = descriptor(&blob(number));
                    let Ok(Ingest::Open(mut writer)) = store.ingest(&key(number), &want).await else {
                        return;
                    };
                    let Ok(()) = writer.write(blob(number)).await else { return };
                    let Ok(()) = writer.commit(labels(number)).await else { return };
                    child::say(&number.to_string());
                }
            }
            role => panic!("no role {role}"),
        }
    };
    Runtime::new().expect("a runtime can be made").block_on(run);
}

/// One step of somebody who uses the store as roughly as it allows.
async fn churn(store: &LocalStore, random: &mut Random) {
    let number = random.below(BLOBS);
    let (bytes, want) = (blob(number), descriptor(&blob(number)));
    match random.below(10) {
        0 | 1 => match store.delete(want.digest()).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        2 => match store.update(want.digest(), labels(number)).await {
            Ok(_) | Err(Error::NotFound { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        3 => match store.abort(&key(number)).await {
            Ok(()) | Err(Error::NoIngest { .. }) => {}
            Err(error) => panic!("{error}"),
        },
        choice => {
            let ingest = store.ingest(&key(number), &want).await.expect("it can be opened");
            let Ingest::Open(mut writer) = ingest else { return };
            let piece = 1 + random.below(want.size() + 1);
            while writer.offset() < want.size() {
                let from = writer.offset();
                let to = want.size().min(from + piece);
                let range = usize::try_from(from).expect("small")..usize::try_from(to).expect("small");
                writer.write(bytes.slice(range)).await.expect("the bytes fit");
                match random.below(8) {
                    0 => return,
                    1 => writer.truncate(random.below(to + 1)).await.expect("it has more"),
                    _ => {}
                }
            }
            let labels = if choice < 7 { labels(number) } else { Labels::new() };
            writer.commit(labels).await.expect("the bytes are right");
        }
    }
}

#[test]
fn a_killed_process_leaves_the_store_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let runtime = Runtime::new().expect("a runtime can be made");
    let runs = runs(100);
    for run in 0..runs {
        let mut random = Random::new(run);
        // Two at once, so that one is killed under the eyes of the other.
        let mut children = [0, 1].map(|at| Child::start("churn", folder.path(), run * 2 + at));
        for child in &mut children {
            assert_eq!(child.hear().as_deref(), Some("ready"));
        }
        for child in &mut children {
            thread::sleep(Duration::from_micros(random.below(30_000)));
            child.kill();
        }

        runtime.block_on(async {
            let store = open(folder.path());
            all_is_whole(&store).await;
            if run % 10 == 9 || run + 1 == runs {
                all_can_be_finished(&store).await;
                nothing_is_left_behind(&store, folder.path()).await;
            }
        });
    }
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let disk = LoopDisk::ext4(256 << 20);
    let runtime = Runtime::new().expect("a runtime can be made");
    let root = disk.path().join("some/new/root");
    for run in 0..runs(100).div_ceil(10) {
        let mut child = Child::start("commit", &root, run);
        assert_eq!(child.hear().as_deref(), Some("ready"));
        let (sender, acknowledged) = mpsc::channel();
        let listener = thread::spawn(move || {
            while let Some(number) = child.hear() {
                sender.send(number.parse::<u64>().expect("it is a number")).expect("somebody counts");
            }
            child.kill();
        });
        // At the first chance for a new root, and later on at any moment.
        let mut numbers: Vec<_> = acknowledged.recv().into_iter().collect();
        thread::sleep(Duration::from_micros(if run == 0 { 0 } else { Random::new(run).below(200_000) }));

        numbers.extend(acknowledged.try_iter());
        disk.cut_power();
        listener.join().expect("the child ends when the disk is gone");
        disk.remount();

        runtime.block_on(async {
            let store = open(&root);
            for number in numbers {
                let want = descriptor(&blob(number));
                let read = store.read(&want, want.size()).await.expect("it was acknowledged");
                assert!(read == blob(number), "{number} was acknowledged");
                let info = store.info(want.digest()).await.expect("it was acknowledged");
                assert_eq!(info.labels, labels(number));
            }
            all_is_whole(&store).await;
            all_can_be_finished(&store).await;
            for info in store.walk(Filter::default()).try_collect::<Vec<_>>().await.expect("walk") {
                store.delete(&info.digest).await.expect("it is listed");
            }
            nothing_is_left_behind(&store, &root).await;
        });
    }
}

#[test]
fn a_full_disk_keeps_what_came_and_goes_on_when_there_is_room() {
    let disk = LoopDisk::ext4(16 << 20);
    let runtime = Runtime::new().expect("a runtime can be made");
    let filler = disk.path().join("filler");
    let bytes = Bytes::from((0..6_u32 << 20).map(|at| (at >> 3) as u8).collect::<Vec<_>>());
    let want = descriptor(&bytes);
    runtime.block_on(async {
        let store = open(&disk.path().join("store"));
        let mut ballast = fs::File::create(&filler).expect("there is room");
        fill(&mut ballast);
        ballast.set_len(fs::metadata(&filler).expect("it is there").len() - (3 << 20)).expect("it shrinks");
        drop(ballast);
        let mut first = writer(&store, "key", &want).await;

        let err = match first.write(bytes.clone()).await {
            Ok(()) => first.commit(Labels::new()).await.expect_err("the disk is full"),
            Err(err) => err,
        };

        let Error::Io { op: "write", source, path } = &err else { panic!("{err:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert!(path.starts_with(disk.path().join("store/ingest")), "{err}");
        fs::remove_file(&filler).expect("it is ours");
        let mut second = writer(&store, "key", &want).await;
        let from = usize::try_from(second.offset()).expect("it is small");
        assert!(from >= 1 << 20, "what fitted is kept, not only {from} bytes");
        second.write(bytes.slice(from..)).await.expect("there is room");
        second.commit(Labels::new()).await.expect("the bytes are right");
        assert!(store.read(&want, want.size()).await.expect("committed") == bytes);
    });
}

#[test]
fn a_disk_that_fails_frees_the_key() {
    let disk = LoopDisk::ext4(16 << 20);
    let runtime = Runtime::new().expect("a runtime can be made");
    let (bytes, want) = (blob(1), descriptor(&blob(1)));
    runtime.block_on(async {
        let store = open(&disk.path().join("store"));
        let mut first = writer(&store, "key", &want).await;
        disk.cut_power();

        let err = match first.write(bytes.clone()).await {
            Ok(()) => first.commit(Labels::new()).await.expect_err("the disk is gone"),
            Err(err) => err,
        };

        assert!(matches!(err, Error::Io { .. }), "{err:?}");
        // It fails as well, but it does not wait for the one that failed.
        let second = tokio::time::timeout(Duration::from_secs(20), store.ingest("key", &want)).await;
        assert!(matches!(second, Ok(Err(Error::Io { .. }))), "{second:?}");
    });
    disk.remount();
    let store = open(&disk.path().join("store"));
    runtime.block_on(put(&store, "key", &want, &bytes));
}

/// Everything that is listed is good, and its labels are its own.
async fn all_is_whole(store: &LocalStore) {
    let verified: Vec<_> = store.verify(Verify::default()).try_collect().await.expect("verify");
    for verified in verified {
        assert_eq!(verified.condition, Condition::Good, "{}", verified.digest);
    }
    for info in store.walk(Filter::default()).try_collect::<Vec<_>>().await.expect("walk") {
        let own = info.labels.get("digest").is_none_or(|digest| *digest == info.digest.to_string());
        assert!(own, "{info:?}");
    }
}

/// Whatever was begun is gone on with, without any repair.
async fn all_can_be_finished(store: &LocalStore) {
    for status in store.active().await.expect("active") {
        let number = status.key.strip_prefix("blob ").and_then(|number| number.parse().ok());
        let bytes = blob(number.expect("the key is one of ours"));
        let want = descriptor(&bytes);
        let Ingest::Open(mut writer) = store.ingest(&status.key, &want).await.expect("it can be opened")
        else {
            continue;
        };
        let from = usize::try_from(writer.offset()).expect("it is small");
        writer.write(bytes.slice(from..)).await.expect("the bytes fit");
        match writer.commit(Labels::new()).await {
            Ok(()) => {}
            // A power cut may leave other bytes than were written; then they are gone now.
            Err(Error::DigestMismatch { .. }) => put(store, &status.key, &want, &bytes).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn put(store: &LocalStore, key: &str, want: &Descriptor, bytes: &Bytes) {
    let mut writer = writer(store, key, want).await;
    assert_eq!(writer.offset(), 0);
    writer.write(bytes.clone()).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
}

/// No file but blobs, and the labels of blobs.
async fn nothing_is_left_behind(store: &LocalStore, root: &Path) {
    store.expire_idle(Duration::ZERO).await.expect("the folder can be written");
    assert_eq!(names(&root.join("ingest")), BTreeSet::new());
    let (blobs, labels) = (names(&root.join("blobs/sha256")), names(&root.join("labels/sha256")));
    assert!(labels.is_subset(&blobs), "labels {labels:?} of blobs {blobs:?}");
    let known: BTreeSet<_> =
        ["blobs", "ingest", "labels", "index.json", "oci-layout"].map(str::to_owned).into();
    assert!(names(root).is_subset(&known), "{:?}", names(root));
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.expect("it is listed").file_name().into_string().expect("it is text")).collect()
}

/// Writes until there is no room.
fn fill(file: &mut fs::File) {
    use std::io::Write;
    let begun = Instant::now();
    while file.write_all(&[7; 64 << 10]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the disk is small");
    }
    // Reserved for later is not yet taken.
    file.sync_all().expect("what was taken has its place");
}

/// The bytes of a blob: from one to about a million, different for each number.
fn blob(number: u64) -> Bytes {
    let mut random = Random::new(number + 1);
    let size = 1 << random.below(21);
    let start = random.below(1 << 30);
    (0..size).map(|at| (((start + at) * 0x9e37_79b9) >> 16) as u8).collect::<Vec<_>>().into()
}

fn key(number: u64) -> String {
    format!("blob {number}")
}

fn labels(number: u64) -> Labels {
    let digest = descriptor(&blob(number)).digest().to_string();
    Labels::from([("digest".to_owned(), digest), ("number".to_owned(), number.to_string())])
}

fn runs(default: u64) -> u64 {
    env::var("WINDLASS_CRASH_RUNS").map_or(default, |runs| runs.parse().expect("it is a number"))
}
