//! Checks of one writer: resuming, and every way in which a blob may come wrong.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::timeout;

use super::{descriptor, put, writer};
use crate::{Error, Ingest, Labels, ProviderExt, Store, WriterExt};

/// Under whatever key.
pub async fn a_committed_blob_is_not_written_again(store: Arc<dyn Store>) {
    let want = put(&store, b"content").await;

    let answers = [store.ingest("put", &want).await, store.ingest("other", &want).await];

    assert!(answers.iter().all(|answer| matches!(answer, Ok(Ingest::Present))), "{answers:?}");
    assert_eq!(store.active().await.expect("active"), [], "asking leaves nothing behind");
}

/// As often as it is dropped.
pub async fn a_dropped_writer_is_resumed(store: Arc<dyn Store>) {
    let want = descriptor(b"one two three");
    for (offset, part) in [(0, "one"), (3, " two"), (7, " three")] {
        let mut writer = writer(&store, "key", &want).await;
        assert_eq!(writer.offset(), offset);
        writer.write(Bytes::from_static(part.as_bytes())).await.expect("the bytes fit");
    }

    let writer = writer(&store, "key", &want).await;
    assert_eq!(writer.offset(), want.size());
    writer.commit(Labels::new()).await.expect("the bytes are right");

    assert_eq!(store.read(&want, 13).await.expect("committed"), "one two three");
}

/// The writer itself stays of use, and its offset is where the next byte goes.
pub async fn a_dropped_append_keeps_what_came(store: Arc<dyn Store>) {
    let want = descriptor(b"one two");
    let mut writer = writer(&store, "key", &want).await;
    let stalls = stream::once(async { Ok(Bytes::from_static(b"one")) }).chain(stream::pending());

    let append = timeout(Duration::from_millis(50), writer.append(stalls.boxed())).await;

    assert!(append.is_err(), "the source never ends");
    assert_eq!(writer.offset(), 3);
    writer.write(Bytes::from_static(b" two")).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.read(&want, 7).await.expect("committed"), "one two");
}

/// Another digest, or another size, is other content.
pub async fn a_key_that_was_for_other_content_starts_anew(store: Arc<dyn Store>) {
    let mut first = writer(&store, "key", &descriptor(b"first content")).await;
    first.write(Bytes::from_static(b"first")).await.expect("the bytes fit");
    drop(first);
    let want = descriptor(b"second");

    let mut second = writer(&store, "key", &want).await;

    assert_eq!(second.offset(), 0);
    second.write(Bytes::from_static(b"second")).await.expect("the bytes fit");
    second.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.read(&want, 6).await.expect("committed"), "second");
}

/// What came is not lost with the writer that was too hasty.
pub async fn a_short_commit_keeps_what_came(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut hasty = writer(&store, "key", &want).await;
    hasty.write(Bytes::from_static(b"cont")).await.expect("the bytes fit");

    let err = hasty.commit(Labels::new()).await.expect_err("three bytes are missing");

    assert!(matches!(err, Error::SizeMismatch { expected: 7, actual: 4, .. }), "{err:?}");
    assert!(matches!(store.open(&want).await, Err(Error::NotFound { .. })));
    let mut next = writer(&store, "key", &want).await;
    assert_eq!(next.offset(), 4);
    next.write(Bytes::from_static(b"ent")).await.expect("the bytes fit");
    next.commit(Labels::new()).await.expect("the bytes are right");
}

/// The same writer can go on with another source.
pub async fn a_source_that_fails_keeps_what_came(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut writer = writer(&store, "key", &want).await;
    let breaks = stream::iter([Ok(Bytes::from_static(b"con")), Err(io::ErrorKind::ConnectionReset.into())]);

    let err = writer.append(breaks.boxed()).await.expect_err("the source breaks");

    assert!(matches!(&err, Error::Source { source, .. } if source.kind() == io::ErrorKind::ConnectionReset));
    assert_eq!(writer.offset(), 3);
    writer.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.read(&want, 7).await.expect("committed"), "content");
}

/// An endless source is cut off at the announced size, not found too long at its end.
pub async fn more_than_was_announced_is_refused_while_it_comes(store: Arc<dyn Store>) {
    let want = descriptor(&[7; 2500]);
    let mut first = writer(&store, "key", &want).await;
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = taken.clone();
    let endless = stream::repeat_with(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Bytes::from_static(&[7; 1000]))
    });

    let err = first.append(endless.boxed()).await.expect_err("the source is endless");

    assert!(matches!(err, Error::SizeMismatch { expected: 2500, actual: 3000, .. }), "{err:?}");
    assert_eq!(taken.load(Ordering::Relaxed), 3, "nothing is taken after the chunk that was too much");
    assert!(first.offset() <= want.size());
    drop(first);
    let mut next = writer(&store, "key", &want).await;
    let missing = usize::try_from(want.size() - next.offset()).expect("at most the size");
    next.write(vec![7; missing].into()).await.expect("the bytes fit");
    next.commit(Labels::new()).await.expect("no byte of the excess was stored");
}

/// Wrong bytes are neither readable nor in the way of the right ones.
pub async fn wrong_bytes_are_discarded(store: Arc<dyn Store>) {
    let want = descriptor(b"right");
    let mut poisoned = writer(&store, "key", &want).await;
    poisoned.write(Bytes::from_static(b"wrong")).await.expect("the length is right");

    let err = poisoned.commit(Labels::new()).await.expect_err("the digest is wrong");

    assert!(matches!(&err, Error::DigestMismatch { expected, .. } if expected == want.digest()), "{err:?}");
    assert!(matches!(store.open(&want).await, Err(Error::NotFound { .. })));
    assert_eq!(store.active().await.expect("active"), []);
    assert_eq!(writer(&store, "key", &want).await.offset(), 0, "the next writer starts over");
}

/// And what can be resumed keeps its offset.
pub async fn every_error_of_a_commit_frees_the_key(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let bad = Labels::from([(String::new(), String::new())]);
    for (bytes, labels, kept) in [
        ("con", Labels::new(), 3),
        ("con", Labels::new(), 3),
        ("content", bad, 7),
        ("CONTENT", Labels::new(), 0),
        ("cont", Labels::new(), 4),
    ] {
        let mut hasty = writer(&store, "key", &want).await;
        hasty.truncate(0).await.expect("it is at least there");
        hasty.write(Bytes::from_static(bytes.as_bytes())).await.expect("the bytes fit");

        hasty.commit(labels).await.expect_err("something is wrong");

        let next = timeout(Duration::from_secs(20), store.ingest("key", &want)).await;
        let Ok(Ok(Ingest::Open(next))) = next else { panic!("the key is not free: {next:?}") };
        assert_eq!(next.offset(), kept, "{bytes}");
    }
}
