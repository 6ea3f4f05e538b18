//! What the fetch handler promises, with a fetcher that breaks on demand.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use oci_spec::image::{Descriptor, MediaType};
use windlass_content::{ByteStream, LocalStore, Options, ProviderExt, hash::sha256};
use windlass_images::{Handler, Next};
use windlass_remotes::{FetchHandler, from_fn};

const BLOB: &[u8] = b"a blob that comes in pieces";

/// Gives at most `most` bytes from `from` on, and breaks then if more are missing.
fn pieces(from: u64, most: usize) -> ByteStream {
    let rest = &BLOB[from as usize..];
    let mut parts = vec![Ok(Bytes::from_static(&rest[..most.min(rest.len())]))];
    if most < rest.len() {
        parts.push(Err(io::ErrorKind::ConnectionReset.into()));
    }
    stream::iter(parts).boxed()
}

#[tokio::test]
async fn a_stream_that_breaks_goes_on_as_long_as_bytes_come() {
    for (most, whole) in [(BLOB.len(), true), (10, true), (0, false)] {
        let folder = tempfile::tempdir().expect("there is room");
        let store =
            Arc::new(LocalStore::open(folder.path(), Options::default()).expect("the folder is empty"));
        let node = Descriptor::new(MediaType::ImageLayer, BLOB.len() as u64, sha256(BLOB));
        let fetcher = from_fn(move |_, from| async move { Ok(pieces(from, most)) });
        let handler = FetchHandler::new(Arc::new(fetcher), store.clone());

        let answer = handler.handle(&node).await;

        assert_eq!(answer.ok(), whole.then(|| Next::Visit(vec![])), "{most} bytes at a time");
        assert_eq!(store.read(&node, 100).await.ok(), whole.then_some(Bytes::from_static(BLOB)));
    }
}

#[tokio::test]
async fn what_is_there_is_not_fetched() {
    let folder = tempfile::tempdir().expect("there is room");
    let store = Arc::new(LocalStore::open(folder.path(), Options::default()).expect("the folder is empty"));
    let node = Descriptor::new(MediaType::ImageLayer, BLOB.len() as u64, sha256(BLOB));
    let once = from_fn(|_, from| async move { Ok(pieces(from, BLOB.len())) });
    FetchHandler::new(Arc::new(once), store.clone()).handle(&node).await.expect("the bytes are right");
    let never = from_fn(|_, _| async move { panic!("nobody should ask") });

    let answer = FetchHandler::new(Arc::new(never), store).handle(&node).await;

    assert_eq!(answer.expect("it is there"), Next::Visit(vec![]));
}

#[tokio::test]
async fn a_wrong_part_that_an_earlier_pull_left_does_not_fail_the_next_one() {
    // Given an ingest of which the first ten bytes are wrong.
    let (_folder, store) = crate::support::store();
    let node = Descriptor::new(MediaType::ImageLayer, BLOB.len() as u64, sha256(BLOB));
    let calls = Arc::new(AtomicUsize::new(0));
    let (counter, broken) = (calls.clone(), || Err(io::ErrorKind::ConnectionReset.into()));
    let fetcher = from_fn(move |_, from| {
        let call = counter.fetch_add(1, Ordering::Relaxed);
        let body = match call {
            0 => stream::iter(vec![Ok(Bytes::from_static(b"ten wrong!")), broken()]).boxed(),
            1 => stream::iter(vec![broken()]).boxed(),
            _ => pieces(from, BLOB.len()),
        };
        async move { Ok(body) }
    });
    let handler = FetchHandler::new(Arc::new(fetcher), store.clone());
    handler.handle(&node).await.expect_err("the second stream gives nothing");

    handler.handle(&node).await.expect("it starts over");

    assert_eq!(store.read(&node, 100).await.expect("it is there"), BLOB);
    assert_eq!(calls.load(Ordering::Relaxed), 4, "the rest, and then all of it");
}

#[tokio::test]
async fn wrong_bytes_are_asked_for_no_more_than_once() {
    let (_folder, store) = crate::support::store();
    let node = Descriptor::new(MediaType::ImageLayer, BLOB.len() as u64, sha256(b"another blob"));
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let fetcher = from_fn(move |_, from| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move { Ok(pieces(from, BLOB.len())) }
    });

    let error = FetchHandler::new(Arc::new(fetcher), store).handle(&node).await.expect_err("it is another");

    assert!(error.to_string().contains("is damaged"), "{error}");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}
