//! Several processes share a folder, and some of them die.

mod child;

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use oci_spec::image::Descriptor;
use tokio::{runtime::Runtime, task::JoinSet, time::timeout};
use windlass_content::{
    Ingest, Ingester, Labels, ProviderExt, Store, WriterExt,
    testsuite::{descriptor, writer},
};

use self::child::{Child, open};

/// Large enough that several can be at it.
const SIZE: usize = 3 << 20;

/// How much of it a holder has written when it says so.
const PART: usize = 1 << 20;

/// Not a test: what the children do.
#[test]
fn child() {
    let Some((role, root, _)) = child::role() else { return };
    let run = async {
        let store = open(&root);
        match &*role {
            "hold" => {
                let mut writer = writer(&store, "key", &want()).await;
                writer.write(bytes().slice(..PART)).await.expect("the bytes fit");
                while store.status("key").await.expect("it is ours").offset < PART as u64 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                child::say("holding");
                child::wait();
                drop(writer);
            }
            "ingest" => {
                child::say("ready");
                child::wait();
                child::say(if ingest(&store).await { "wrote" } else { "found" });
            }
            role => panic!("no role {role}"),
        }
    };
    Runtime::new().expect("a runtime can be made").block_on(run);
}

#[tokio::test]
async fn who_waits_for_a_process_that_is_killed_goes_on_where_it_was() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut holder = Child::start("hold", folder.path(), 0);
    assert_eq!(holder.hear().as_deref(), Some("holding"));
    let (here, there) = (open(folder.path()), open(folder.path()));
    let want = want();
    let mut waits = pin!(here.ingest("key", &want));
    let also_waits = there.ingest("key", &want);
    assert!(timeout(MOMENT, &mut waits).await.is_err(), "the other process has it");
    // Who stops waiting for a process stays out of the way, too.
    assert!(timeout(MOMENT, also_waits).await.is_err(), "the other process has it");

    holder.kill();

    let ingest = timeout(LONG, waits).await.expect("the kernel unlocks it").expect("it can be opened");
    let Ingest::Open(mut writer) = ingest else { panic!("nobody has committed it") };
    assert_eq!(writer.offset(), PART as u64);
    writer.write(bytes().slice(PART..)).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert!(here.read(&want, SIZE as u64).await.expect("committed") == bytes());
}

#[tokio::test]
async fn a_waiting_process_can_be_killed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = open(folder.path());
    let want = want();
    let mut first = writer(&here, "key", &want).await;
    let mut waiting = Child::start("ingest", folder.path(), 0);
    assert_eq!(waiting.hear().as_deref(), Some("ready"));
    waiting.go();
    tokio::time::sleep(MOMENT).await;

    waiting.kill();

    first.write(bytes()).await.expect("the bytes fit");
    first.commit(Labels::new()).await.expect("the bytes are right");
    assert!(here.active().await.expect("active").is_empty());
}

#[tokio::test]
async fn of_eight_processes_one_writes_and_all_succeed() {
    for _ in 0..3 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut children: Vec<_> = (0..8).map(|_| Child::start("ingest", folder.path(), 0)).collect();
        for child in &mut children {
            assert_eq!(child.hear().as_deref(), Some("ready"));
        }

        children.iter_mut().for_each(Child::go);

        let said: Vec<_> = children.iter_mut().map(|child| child.hear().expect("it succeeds")).collect();
        assert_eq!(said.iter().filter(|said| *said == "wrote").count(), 1, "{said:?}");
        children.into_iter().for_each(Child::succeeds);
        let store = open(folder.path());
        assert!(store.read(&want(), SIZE as u64).await.expect("committed") == bytes());
        assert!(store.active().await.expect("active").is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_many_tasks_each_one_task_writes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut child = Child::start("ingest", folder.path(), 0);
    assert_eq!(child.hear().as_deref(), Some("ready"));
    let store = open(folder.path());
    child.go();

    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let store = store.clone();
        tasks.spawn(async move { ingest(&store).await });
    }

    let written = tasks.join_all().await.into_iter().filter(|wrote| *wrote).count();
    let by_child = usize::from(child.hear().as_deref() == Some("wrote"));
    assert_eq!(written + by_child, 1);
}

/// Whether this is who wrote it.
async fn ingest(store: &impl Ingester) -> bool {
    let Ingest::Open(mut writer) = store.ingest("key", &want()).await.expect("it can be opened") else {
        return false;
    };
    writer.write(bytes()).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    true
}

fn bytes() -> Bytes {
    (0..SIZE).map(|at| (at ^ (at >> 8)) as u8).collect::<Vec<_>>().into()
}

fn want() -> Descriptor {
    descriptor(&bytes())
}

/// Long enough to see that somebody waits.
const MOMENT: Duration = Duration::from_millis(50);

/// Only reached by a test that fails.
const LONG: Duration = Duration::from_secs(20);
