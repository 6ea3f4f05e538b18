//! Checks of several who want the same, and of ingests seen from outside.

use std::{pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{task::JoinSet, time::timeout};

use super::{descriptor, put, writer};
use crate::{Error, Ingest, Labels, ProviderExt, Store, WriterExt};

/// Long enough to see that somebody waits, in a check that passes; never what a check hopes to be fast enough for.
const MOMENT: Duration = Duration::from_millis(50);

/// One download is enough for two.
pub async fn a_second_writer_waits_and_finds_the_blob(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    let mut second = pin!(store.ingest("key", &want));

    assert!(timeout(MOMENT, &mut second).await.is_err(), "there is one writer at any time");
    first.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    first.commit(Labels::new()).await.expect("the bytes are right");

    assert!(matches!(second.await, Ok(Ingest::Present)));
    assert_eq!(store.active().await.expect("active"), []);
}

/// Waiting is not in vain when the first one fails.
pub async fn a_second_writer_goes_on_where_the_first_gave_up(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    let mut second = pin!(writer(&store, "key", &want));

    assert!(timeout(MOMENT, &mut second).await.is_err(), "there is one writer at any time");
    drop(first);

    let mut second = second.await;
    assert_eq!(second.offset(), 3);
    second.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    second.commit(Labels::new()).await.expect("the bytes are right");
}

/// Dropping a wait leaves no lock behind, and nothing to see.
pub async fn who_stops_waiting_is_not_in_the_way(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let first = writer(&store, "key", &want).await;
    for _ in 0..3 {
        assert!(timeout(MOMENT, store.ingest("key", &want)).await.is_err(), "the first is still there");
    }
    drop(first);

    let mut next = writer(&store, "key", &want).await;

    next.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    next.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.active().await.expect("active"), []);
}

/// However many want it.
pub async fn many_tasks_write_a_blob_once(store: Arc<dyn Store>) {
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let store = store.clone();
        tasks.spawn(async move {
            let Ingest::Open(mut writer) =
                store.ingest("key", &descriptor(b"content")).await.expect("the ingest can be opened")
            else {
                return 0;
            };
            writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
            writer.commit(Labels::new()).await.expect("the bytes are right");
            1
        });
    }

    let written: usize = tasks.join_all().await.into_iter().sum();

    assert_eq!(written, 1);
    assert_eq!(store.read(&descriptor(b"content"), 7).await.expect("committed"), "content");
}

/// The second commit finds the blob there, and succeeds.
pub async fn two_keys_may_bring_the_same_blob(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut writers = [writer(&store, "one", &want).await, writer(&store, "two", &want).await];
    for writer in &mut writers {
        writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    }

    for writer in writers {
        writer.commit(Labels::new()).await.expect("the bytes are right");
    }

    assert_eq!(store.read(&want, 7).await.expect("committed"), "content");
    assert_eq!(store.active().await.expect("active"), []);
}

/// Whoever asks: the writer itself, or the store.
pub async fn the_status_moves_with_the_bytes(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    assert!(matches!(store.status("key").await, Err(Error::NoIngest { .. })));
    let mut writer = writer(&store, "key", &want).await;
    let mut last = writer.status();
    assert_eq!((&*last.key, &last.expected, last.offset, last.total), ("key", want.digest(), 0, 7));

    for (part, offset) in [("con", 3), ("te", 5), ("nt", 7)] {
        writer.write(Bytes::from_static(part.as_bytes())).await.expect("the bytes fit");

        let status = writer.status();
        assert_eq!((status.offset, status.total, status.started), (offset, 7, last.started));
        assert!(status.updated >= last.updated);
        last = status;
    }
    // The bytes may still be on their way.
    let seen = store.status("key").await.expect("it is in progress");
    assert_eq!((&*seen.key, &seen.expected, seen.total), ("key", want.digest(), 7));
    assert!(seen.offset <= 7);
    drop(writer);
    let resumed = super::writer(&store, "key", &want).await;
    assert_eq!(store.status("key").await.expect("it is in progress").offset, 7);
    resumed.commit(Labels::new()).await.expect("the bytes are right");
    assert!(matches!(store.status("key").await, Err(Error::NoIngest { .. })));
}

/// Also when its writer is gone, and whatever characters its key has.
pub async fn active_shows_what_is_unfinished(store: Arc<dyn Store>) {
    put(&store, b"finished").await;
    let want = descriptor(b"content");
    let key = "layer-sha256:../../ünfinished\n";
    let mut unfinished = writer(&store, key, &want).await;
    unfinished.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    unfinished.commit(Labels::new()).await.expect_err("four bytes are missing");

    let active = store.active().await.expect("active");

    let [status] = &active[..] else { panic!("one is unfinished, not {active:?}") };
    assert_eq!((&*status.key, &status.expected), (key, want.digest()));
    assert_eq!((status.offset, status.total), (3, 7));
    assert!(status.started <= status.updated);
}

/// And a key that nobody uses cannot be aborted.
pub async fn an_aborted_ingest_starts_anew(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    {
        let mut abort = pin!(store.abort("key"));
        assert!(timeout(MOMENT, &mut abort).await.is_err(), "its writer is still there");
        drop(first);
        abort.await.expect("the ingest is there");
    }

    assert_eq!(store.active().await.expect("active"), []);
    assert!(matches!(store.abort("key").await, Err(Error::NoIngest { .. })));
    assert!(matches!(store.abort("never").await, Err(Error::NoIngest { .. })));
    assert_eq!(writer(&store, "key", &want).await.offset(), 0);
}
