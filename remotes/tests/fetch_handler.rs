//! What the fetch handler promises, with a fetcher that breaks on demand.

use std::{io, sync::Arc};

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
