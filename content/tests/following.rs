//! A blob can be read while it is written, and never ends before it is verified.

use std::{
    io::{self, Read},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use windlass_content::{
    Blob, Error, Ingest, Ingester, Labels, LocalStore, Options, Provider, ProviderExt, Store, WriterExt,
    testsuite::{descriptor, put, writer},
};

#[tokio::test]
async fn a_committed_blob_is_opened_at_once() {
    let (_folder, store) = store();
    let want = put(&store, b"content").await;

    assert_eq!(store.following().read(&want, 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn a_blob_is_read_while_it_arrives_and_ends_with_the_commit() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut writer = writer(&store, "key", &want).await;
    let blob = store.following().open(&want).await.expect("it is arriving");
    writer.write(Bytes::from_static(b"con")).await.expect("the bytes fit");

    assert_eq!(first_bytes(&blob, 3).await, b"con");
    assert_eq!(blob.size(), 7);
    let mut whole = read_all(&blob);
    writer.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    assert_eq!(first_bytes(&blob, 7).await, b"content");
    assert!(timeout(MOMENT, &mut whole).await.is_err(), "all bytes are there, but nobody verified them");
    writer.commit(Labels::new()).await.expect("the bytes are right");

    assert_eq!(whole.await.expect("no panic").expect("it was committed"), b"content");
}

#[tokio::test]
async fn who_opens_too_early_waits_for_the_writer() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let following = store.following();
    let mut early = pin!(following.open(&want));

    assert!(timeout(MOMENT, &mut early).await.is_err(), "nobody writes it");
    put(&store, b"other").await;
    assert!(timeout(MOMENT, &mut early).await.is_err(), "another blob is of no use");
    let mut writer = writer(&store, "key", &want).await;

    let blob = early.await.expect("it is arriving");
    writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn a_damaged_blob_is_waited_for() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    std::fs::create_dir(store.path(want.digest())).expect("the name is free");
    let following = store.following();
    let mut early = pin!(following.open(&want));
    assert!(timeout(MOMENT, &mut early).await.is_err(), "nobody makes it anew");

    put(&store, b"content").await;

    let blob = timeout(LONG, early).await.expect("it is woken").expect("committed");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn who_waits_is_woken_when_another_process_brought_the_blob() {
    let (folder, store) = store();
    let want = descriptor(b"content");
    let following = store.following();
    let mut early = pin!(following.open(&want));
    assert!(timeout(MOMENT, &mut early).await.is_err(), "nobody writes it");
    put(&LocalStore::open(folder.path(), Options::default()).expect("it is there"), b"content").await;

    let answer = store.ingest("key", &want).await.expect("the ingest can be opened");

    assert!(matches!(answer, Ingest::Present));
    let blob = timeout(LONG, early).await.expect("it is woken").expect("committed");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn what_an_earlier_writer_left_is_readable_at_once() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    drop(first);

    let mut second = writer(&store, "key", &want).await;
    let blob = store.following().open(&want).await.expect("it is arriving");

    assert_eq!(first_bytes(&blob, 3).await, b"con");
    second.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    second.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn readers_of_an_abandoned_blob_fail_and_the_next_writer_is_found() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    let reading = read_all(&store.following().open(&want).await.expect("it is arriving"));

    drop(first);

    let err = reading.await.expect("no panic").expect_err("the writer gave up");
    assert!(is_abandoned(&err), "{err:?}");
    let following = store.following();
    let mut next = pin!(following.open(&want));
    assert!(timeout(MOMENT, &mut next).await.is_err(), "nobody writes it");
    let mut second = writer(&store, "key", &want).await;
    let blob = next.await.expect("it is arriving");
    second.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    second.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
}

#[tokio::test]
async fn readers_of_what_is_taken_back_fail_and_find_the_blob_again() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut writer = writer(&store, "key", &want).await;
    writer.write(Bytes::from_static(b"conTENT")).await.expect("the bytes fit");
    let earlier = store.following().open(&want).await.expect("it is arriving");
    let reading = read_all(&earlier);

    writer.truncate(3).await.expect("it has more");

    let err = reading.await.expect("no panic").expect_err("bytes were taken back");
    assert!(is_abandoned(&err), "{err:?}");
    let blob = store.following().open(&want).await.expect("it is arriving");
    assert_eq!(first_bytes(&blob, 3).await, b"con");
    writer.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    writer.truncate(7).await.expect("that is where it is");
    assert_eq!(first_bytes(&blob, 7).await, b"content");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("committed"), "content");
    assert!(earlier.bytes(want.digest(), 7).await.is_err(), "it never ends well");
}

#[tokio::test]
async fn readers_of_wrong_bytes_never_see_an_end() {
    let (_folder, store) = store();
    let want = descriptor(b"right");
    let mut writer = writer(&store, "key", &want).await;
    let blob = store.following().open(&want).await.expect("it is arriving");
    writer.write(Bytes::from_static(b"wrong")).await.expect("the length is right");
    let reading = read_all(&blob);

    writer.commit(Labels::new()).await.expect_err("the digest is wrong");

    let err = reading.await.expect("no panic").expect_err("the bytes are wrong");
    assert!(is_abandoned(&err), "{err:?}");
    let err = blob.bytes(want.digest(), 5).await.expect_err("the bytes are wrong");
    assert!(matches!(&err, Error::Source { source, .. } if is_abandoned(source)), "{err:?}");
}

#[tokio::test]
async fn an_empty_blob_ends_with_the_commit() {
    let (_folder, store) = store();
    let want = descriptor(b"");
    let writer = writer(&store, "key", &want).await;
    let mut reading = read_all(&store.following().open(&want).await.expect("it is arriving"));

    assert!(timeout(MOMENT, &mut reading).await.is_err(), "nobody verified that it is empty");
    writer.commit(Labels::new()).await.expect("it is empty");

    assert_eq!(reading.await.expect("no panic").expect("it was committed"), b"");
}

#[tokio::test]
async fn a_deleted_blob_is_waited_for_although_somebody_still_reads_it() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut writer = writer(&store, "key", &want).await;
    let blob = store.following().open(&want).await.expect("it is arriving");
    writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");

    store.delete(want.digest()).await.expect("it is there");

    let following = store.following();
    assert!(timeout(MOMENT, following.open(&want)).await.is_err(), "it is neither there nor arriving");
    assert_eq!(blob.bytes(want.digest(), 7).await.expect("still open"), "content");
}

/// Long enough to see that somebody waits.
const MOMENT: Duration = Duration::from_millis(50);

/// Only reached by a test that fails.
const LONG: Duration = Duration::from_secs(20);

fn store() -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = LocalStore::open(folder.path(), Options::default()).expect("an empty folder");
    (folder, store)
}

fn read_all(blob: &Blob) -> JoinHandle<io::Result<Vec<u8>>> {
    let mut reader = blob.reader(0);
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    })
}

async fn first_bytes(blob: &Blob, count: usize) -> Vec<u8> {
    let mut reader = blob.reader(0);
    let read = spawn_blocking(move || {
        let mut bytes = vec![0; count];
        reader.read_exact(&mut bytes).map(|()| bytes)
    });
    timeout(LONG, read).await.expect("the bytes are there").expect("no panic").expect("the bytes are there")
}

fn is_abandoned(err: &io::Error) -> bool {
    err.get_ref().and_then(|err| err.downcast_ref()).is_some_and(|err| matches!(err, Error::Abandoned { .. }))
}
