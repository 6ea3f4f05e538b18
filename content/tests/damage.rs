//! What the disk has not kept is noticed, told, moved out of the way, and made anew.

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_spec::image::Descriptor;
use tempfile::TempDir;
use windlass_content::{
    Condition, Error, Filter, Labels, LocalStore, Options, Provider, ProviderExt, Store, Verified, Verify,
    WriterExt,
    testsuite::{descriptor, put, writer},
};

/// Puts something that is no blob at a path.
type Make = fn(&Path);

#[tokio::test]
async fn what_is_no_file_is_damaged_and_made_anew() {
    let make: [(&str, Make); 4] = [
        ("it is a folder", |path| fs::create_dir_all(path.join("not/empty")).expect("the name is free")),
        ("it is a symbolic link", |path| symlink("elsewhere", path).expect("the name is free")),
        ("it is a symbolic link", |path| symlink("/dev/zero", path).expect("the name is free")),
        ("it is not a regular file", |path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).expect("the name is free");
        }),
    ];
    for (reason, make) in make {
        let (_folder, store) = store();
        let want = put(&store, b"content").await;
        fs::remove_file(store.path(want.digest())).expect("it is there");
        make(&store.path(want.digest()));

        let err = store.open(&want).await.expect_err("it is no blob");
        assert_eq!(err.to_string(), format!("blob {} is damaged: {reason}", want.digest()));
        let err = store.info(want.digest()).await.expect_err("it is no blob");
        assert!(matches!(err, Error::Damaged { .. }), "{err:?}");
        assert_eq!(store.walk(Filter::default()).count().await, 0);
        put(&store, b"content").await;

        assert_eq!(store.read(&want, 7).await.expect("it is whole again"), "content");
    }
}

#[tokio::test]
async fn bytes_in_memory_are_those_of_the_digest() {
    let (_folder, store) = store();
    let want = put(&store, b"content").await;
    damage(&store, &want, b"CONTENT");

    let err = store.read(&want, 7).await.expect_err("the bytes are others");

    let actual = windlass_content::hash::sha256(b"CONTENT");
    assert_eq!(err.to_string(), format!("blob {} is damaged: its bytes hash to {actual}", want.digest()));
}

#[tokio::test]
async fn verify_tells_good_from_damaged_and_touches_nothing() {
    let (_folder, store) = store();
    let blobs = [put(&store, b"one").await, put(&store, b"two").await, put(&store, b"three").await];
    damage(&store, &blobs[1], b"TWO");
    fs::remove_file(store.path(blobs[2].digest())).expect("it is there");
    fs::create_dir(store.path(blobs[2].digest())).expect("the name is free");

    let verified = verify(&store, Verify::default()).await;

    assert_eq!(verified.len(), 3);
    assert_eq!(verified[&blobs[0].digest().to_string()].condition, Condition::Good);
    assert_eq!(verified[&blobs[0].digest().to_string()].size, 3);
    let actual = windlass_content::hash::sha256(b"TWO");
    assert_eq!(reason(&verified[&blobs[1].digest().to_string()]), format!("its bytes hash to {actual}"));
    assert_eq!(reason(&verified[&blobs[2].digest().to_string()]), "it is a folder");
    assert_eq!(fs::read(store.path(blobs[1].digest())).expect("it is still there"), b"TWO");
    assert!(!root(&store).join("quarantine").exists());
}

#[tokio::test]
async fn one_blob_can_be_verified() {
    let (_folder, store) = store();
    let (good, bad) = (put(&store, b"good").await, put(&store, b"bad").await);
    damage(&store, &bad, b"BAD");

    assert_eq!(
        store.verify_blob(good.digest(), &Verify::default()).await.expect("it is there").condition,
        Condition::Good
    );
    assert!(
        reason(&store.verify_blob(bad.digest(), &Verify::default()).await.expect("it is there"))
            .starts_with("its bytes")
    );
    let err = store
        .verify_blob(descriptor(b"missing").digest(), &Verify::default())
        .await
        .expect_err("it is missing");
    assert!(matches!(err, Error::NotFound { .. }), "{err:?}");
}

#[tokio::test]
async fn the_quarantine_makes_room_for_the_right_bytes() {
    let (_folder, store) = store();
    let good = put(&store, b"good").await;
    // Twice, since the quarantine has one place for each digest.
    for bad_bytes in [&b"CONTENT"[..], b"torn"] {
        let bad = put(&store, b"content").await;
        store.update(bad.digest(), labels()).await.expect("it is there");
        damage(&store, &bad, bad_bytes);

        let verified = verify(&store, Verify::default().quarantine(true)).await;

        let Condition::Damaged { quarantined: Some(aside), .. } =
            &verified[&bad.digest().to_string()].condition
        else {
            panic!("it is damaged: {verified:?}")
        };
        assert_eq!(*aside, root(&store).join("quarantine").join(format!("sha256-{}", bad.digest().digest())));
        assert_eq!(fs::read(aside).expect("it is there"), bad_bytes);
        assert!(matches!(store.open(&bad).await, Err(Error::NotFound { .. })));
        assert_eq!(verify(&store, Verify::default()).await.len(), 1, "the good one stays");
        put(&store, b"content").await;
        assert_eq!(store.read(&bad, 7).await.expect("it is whole again"), "content");
        assert_eq!(store.info(bad.digest()).await.expect("it is there").labels, Labels::new());
        store.delete(bad.digest()).await.expect("it is there");
    }
    assert_eq!(store.read(&good, 4).await.expect("nobody touched it"), "good");
}

/// Blobs come, go and are replaced under the eyes of the verification.
#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_changes_hands_is_never_quarantined() {
    let (_folder, store) = store();
    let done = Arc::new(AtomicBool::new(false));
    let churn = tokio::spawn({
        let (store, done) = (store.clone(), done.clone());
        async move {
            let bytes = Bytes::from(vec![7; 300_000]);
            let want = descriptor(&bytes);
            while !done.load(Ordering::Relaxed) {
                // The second commit replaces what the first has committed.
                let mut writers = [writer(&store, "one", &want).await, writer(&store, "two", &want).await];
                for writer in &mut writers {
                    writer.write(bytes.clone()).await.expect("the bytes fit");
                }
                for writer in writers {
                    writer.commit(Labels::new()).await.expect("the bytes are right");
                }
                store.delete(want.digest()).await.expect("nobody else takes it away");
            }
        }
    });

    for _ in 0..300 {
        for (digest, verified) in verify(&store, Verify::default().quarantine(true)).await {
            assert_eq!(verified.condition, Condition::Good, "{digest}");
        }
    }

    done.store(true, Ordering::Relaxed);
    churn.await.expect("no blob was taken away");
    assert!(!root(&store).join("quarantine").exists());
}

#[tokio::test]
async fn many_blobs_are_verified_by_few_threads_and_the_work_ends_with_the_stream() {
    let (_folder, store) = store();
    for at in 0..100_u32 {
        let bytes = Bytes::copy_from_slice(&at.to_be_bytes());
        let mut writer = writer(&store, "key", &descriptor(&bytes)).await;
        writer.write(bytes).await.expect("the bytes fit");
        writer.commit(Labels::new()).await.expect("the bytes are right");
    }
    let three = Verify::default().parallel(NonZeroUsize::new(3).expect("three is not zero"));

    let all = verify(&store, three.clone()).await;
    let some: Vec<_> = store.verify(three).take(5).try_collect().await.expect("verify");

    assert_eq!((all.len(), some.len()), (100, 5));
}

fn labels() -> Labels {
    Labels::from([("key".to_owned(), "value".to_owned())])
}

fn reason(verified: &Verified) -> &str {
    match &verified.condition {
        Condition::Damaged { reason, .. } => reason,
        other => panic!("it is {other:?}"),
    }
}

async fn verify(store: &LocalStore, verify: Verify) -> BTreeMap<String, Verified> {
    store.verify(verify).map_ok(|it| (it.digest.to_string(), it)).try_collect().await.expect("verify")
}

/// As a bad disk would: the same file, with other bytes.
fn damage(store: &LocalStore, blob: &Descriptor, bytes: &[u8]) {
    fs::write(store.path(blob.digest()), bytes).expect("root may write it");
}

fn root(store: &LocalStore) -> PathBuf {
    let blob = store.path(descriptor(b"").digest());
    blob.ancestors().nth(3).expect("blobs, the algorithm and the name are below the root").to_owned()
}

fn store() -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = LocalStore::open(folder.path(), Options::default()).expect("an empty folder");
    (folder, store)
}
