//! What is promised of leases, before any garbage is collected.

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use windlass_content::hash::sha256;
use windlass_images::{Error, LeaseInfo, LeaseOptions, Removal, Resource, Store};

use self::common::{Blob, Root, image, layer, pull};

const HOUR: Duration = Duration::from_secs(3600);

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let store = Store::open(dir.path().join("images.db")).expect("it opens");
    (dir, store)
}

fn named(id: &str) -> LeaseOptions {
    LeaseOptions::default().id(id)
}

async fn find(store: &Store, id: &str) -> Option<LeaseInfo> {
    store.find_lease(id).await.expect("it looks")
}

#[tokio::test]
async fn a_lease_holds_what_it_is_told_until_its_last_handle_is_dropped() {
    let (dir, store) = store();
    let other = Store::open(dir.path().join("images.db")).expect("it opens twice");
    let resources = [
        Resource::Blob(sha256(b"1")),
        Resource::Tree(sha256(b"2")),
        Resource::Snapshot { driver: "overlay".into(), name: "key".into() },
        Resource::Ingest("layer".into()),
    ];
    let lease = store.lease(LeaseOptions::default().label("who", "me")).await.expect("it is made");
    lease.hold(&resources[0]).await.expect("it holds");
    lease.hold_all(&resources).await.expect("it holds");

    let seen = other.leases().await.expect("it lists").pop().expect("there is one");
    assert_eq!((seen.id.as_str(), &seen.resources[..]), (lease.id(), &resources[..]));
    assert_eq!((seen.labels["who"].as_str(), seen.expires, seen.held), ("me", None, true));
    assert!(seen.is_alive());

    let clone = lease.clone();
    drop(lease);
    assert!(find(&other, clone.id()).await.is_some());
    drop(clone);
    assert_eq!(other.leases().await.expect("it lists"), []);
    assert_eq!(dir.path().join("leases").read_dir().expect("it is there").count(), 0);
}

#[tokio::test]
async fn a_released_lease_holds_nothing_more() {
    let (_dir, store) = store();
    let lease = store.lease(named("a")).await.expect("it is made");

    lease.release().await.expect("it ends");
    lease.release().await.expect("it ended");

    let err = lease.hold(&Resource::Ingest("x".into())).await.expect_err("it ended");
    assert_eq!(err.to_string(), "lease \"a\" has ended");
    assert!(matches!(lease.renew(HOUR).await, Err(Error::LeaseGone { .. })));
    let again = store.lease(named("a")).await.expect("the name is free");
    drop(lease);
    again.hold(&Resource::Ingest("x".into())).await.expect("the old handle did not end the new one");
}

#[tokio::test]
async fn a_name_has_one_handle_and_is_a_plain_one() {
    let (_dir, store) = store();
    let _lease = store.lease(named("a")).await.expect("it is made");

    assert!(matches!(store.lease(named("a")).await, Err(Error::LeaseHeld { .. })));
    for id in ["", ".a", "a/b", "..", "ä", &"a".repeat(129)] {
        assert!(matches!(store.lease(named(id)).await, Err(Error::LeaseId { .. })), "{id}");
    }
}

#[tokio::test]
async fn a_kept_lease_outlives_its_handle_and_is_taken_over() {
    let (_dir, store) = store();
    let lease = store.lease(named("a")).await.expect("it is made");
    lease.hold(&Resource::Ingest("x".into())).await.expect("it holds");
    lease.keep(HOUR).await.expect("it is kept");
    drop(lease);

    let kept = find(&store, "a").await.expect("it is there");
    assert!(kept.is_alive() && !kept.held);
    let lease = store.lease(named("a")).await.expect("it is taken over");
    lease.hold(&Resource::Ingest("y".into())).await.expect("it holds");
    drop(lease);

    let kept = find(&store, "a").await.expect("it is there");
    assert_eq!(kept.resources, [Resource::Ingest("x".into()), Resource::Ingest("y".into())]);
    assert_eq!(store.remove_lease("a").await.expect("it removes"), Removal::Removed);
    assert_eq!(store.remove_lease("a").await.expect("it looks"), Removal::Missing);
}

#[tokio::test]
async fn an_expired_lease_protects_while_it_has_a_handle_and_starts_anew_after() {
    let (_dir, store) = store();
    let lease = store.lease(named("a").expires(HOUR)).await.expect("it is made");
    lease.hold(&Resource::Ingest("x".into())).await.expect("it holds");
    lease.keep(Duration::ZERO).await.expect("it is kept");
    assert!(find(&store, "a").await.expect("it is there").is_alive());
    assert_eq!(store.remove_lease("a").await.expect("it looks"), Removal::Held);

    drop(lease);

    assert!(!find(&store, "a").await.expect("nobody collected it").is_alive());
    let _lease = store.lease(named("a")).await.expect("it is made");
    assert_eq!(find(&store, "a").await.expect("it is there").resources, []);
}

#[tokio::test]
async fn an_expiring_lease_is_renewed_when_it_is_used_past_half_of_its_time() {
    let (_dir, store) = store();
    let lease = store.lease(named("a").expires(HOUR)).await.expect("it is made");
    let expires = |info: Option<LeaseInfo>| info.expect("it is there").expires.expect("it expires");
    let first = expires(find(&store, "a").await);
    lease.hold(&Resource::Ingest("x".into())).await.expect("it holds");
    assert_eq!(expires(find(&store, "a").await), first);

    lease.renew(Duration::from_millis(20)).await.expect("it is renewed");
    let second = expires(find(&store, "a").await);
    tokio::time::sleep(Duration::from_millis(15)).await;
    lease.hold(&Resource::Ingest("x".into())).await.expect("it holds");

    assert!(second < SystemTime::now() + HOUR / 2);
    assert!(expires(find(&store, "a").await) > second);
}

/// A full blocking pool of waiting holders must not keep out who is inside.
#[test]
fn many_hold_at_once_with_one_thread_for_the_disk() {
    let (dir, store) = store();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .expect("it can be made");
    runtime.block_on(async {
        let other = Store::open(dir.path().join("images.db")).expect("it opens twice");
        let mut tasks = tokio::task::JoinSet::new();
        for task in 0..16 {
            let store = if task % 2 == 0 { store.clone() } else { other.clone() };
            tasks.spawn(async move {
                let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
                for n in 0..8 {
                    lease.hold(&Resource::Ingest(n.to_string())).await.expect("it holds");
                }
                lease
            });
        }
        let leases = tasks.join_all().await;
        let seen = store.leases().await.expect("it lists");
        assert_eq!(seen.len(), leases.len());
        assert!(seen.iter().all(|it| it.resources.len() == 8));
    });
}

#[tokio::test]
#[ignore = "it is started, and killed, by the other test"]
async fn a_process_that_dies() {
    let Some(folder) = std::env::var_os("WINDLASS_LEASE_FOLDER") else { return };
    let store = Store::open(std::path::Path::new(&folder).join("images.db")).expect("it opens");
    let lease = store.lease(named("dies")).await.expect("it is made");
    lease.hold(&Resource::Ingest("x".into())).await.expect("it holds");
    let _kept = store.lease(named("expires").expires(HOUR)).await.expect("it is made");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_lease_dies_with_its_process_unless_it_has_time_left() {
    let (dir, store) = store();
    let mut process = std::process::Command::new(std::env::current_exe().expect("it is this one"))
        .args(["--ignored", "--exact", "a_process_that_dies"])
        .env("WINDLASS_LEASE_FOLDER", dir.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("it starts");
    while find(&store, "expires").await.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lives = find(&store, "dies").await.expect("it is there");
    process.kill().expect("it can be killed");
    process.wait().expect("it ends");
    let dead = find(&store, "dies").await.expect("nobody collected it");

    assert!(lives.held && lives.is_alive());
    assert!(!dead.held && !dead.is_alive());
    assert_eq!(dead.resources, [Resource::Ingest("x".into())]);
    let left = find(&store, "expires").await.expect("it is there");
    assert!(!left.held && left.is_alive());
}

#[tokio::test]
async fn what_others_have_come_to_need_is_not_discarded() {
    let root = Root::new();
    let [mine, held, tree, listed, before] = ["mine", "held", "tree", "listed", "before"].map(layer);
    let [in_tree, in_list, in_old] = [&tree, &listed, &before].map(|it| image("x", std::slice::from_ref(it)));
    root.store.put("old", &root.add_image(&in_old[..2]).await).expect("it is recorded");
    let lease = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    let blobs = [&mine, &held, &tree, &listed, &before];
    for blob in blobs {
        pull(&lease, &root.content, blob).await;
    }

    let other = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    other.hold(&Resource::Blob(held.digest())).await.expect("it holds");
    root.add_image(&in_tree).await;
    other.hold(&Resource::Tree(in_tree[0].digest())).await.expect("it holds");
    root.store.put("new", &root.add_image(&in_list).await).expect("it is recorded");
    let digests = blobs.map(Blob::digest);
    let discarded = lease.discard(Arc::new(root.content.clone()), &digests).await.expect("it deletes");

    // The old image had no layer when the lease began, and is no worse than it was.
    assert_eq!(discarded, [mine.digest(), before.digest()]);
    assert!(
        !root.has(&mine).await && root.has(&held).await && root.has(&tree).await && root.has(&listed).await
    );
}
