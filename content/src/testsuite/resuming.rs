//! Checks of going back, starting over, and going on from sources of all kinds.

use std::{
    io::{Cursor, Read, Seek, SeekFrom},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::{descriptor, writer};
use crate::{Blob, ByteStream, Error, Labels, ProviderExt, Store, WriterExt};

const BYTES: &[u8] = b"one two three four five six seven eight nine ten";

/// What was taken back is neither in the blob nor in its hash.
pub async fn a_truncated_ingest_goes_on_from_there(store: Arc<dyn Store>) {
    let want = descriptor(BYTES);
    let mut writer = writer(&store, "key", &want).await;
    writer.write(Bytes::from_static(b"one two THREE")).await.expect("the bytes fit");

    writer.truncate(8).await.expect("it has more");

    assert_eq!(writer.offset(), 8);
    assert_eq!(writer.status().offset, 8);
    writer.write(Bytes::from_static(&BYTES[8..])).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.read(&want, want.size()).await.expect("committed"), BYTES);
}

/// By another writer than the one that wrote them.
pub async fn what_an_earlier_writer_left_can_be_truncated(store: Arc<dyn Store>) {
    let want = descriptor(BYTES);
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"one two THREE")).await.expect("the bytes fit");
    drop(first);
    let mut second = writer(&store, "key", &want).await;
    assert_eq!(second.offset(), 13);
    second.truncate(8).await.expect("it has more");
    drop(second);

    let mut third = writer(&store, "key", &want).await;

    assert_eq!(third.offset(), 8, "it stays truncated");
    third.write(Bytes::from_static(&BYTES[8..])).await.expect("the bytes fit");
    third.commit(Labels::new()).await.expect("the bytes are right");
}

/// As often as somebody wants to.
pub async fn an_ingest_can_start_over(store: Arc<dyn Store>) {
    let want = descriptor(BYTES);
    let mut writer = writer(&store, "key", &want).await;
    for _ in 0..3 {
        writer.write(vec![0; BYTES.len()].into()).await.expect("the length is right");
        writer.truncate(0).await.expect("it has more");
        assert_eq!(writer.offset(), 0);
    }

    writer.write(Bytes::from_static(BYTES)).await.expect("there is room for all bytes again");
    writer.commit(Labels::new()).await.expect("the bytes are right");

    assert_eq!(store.read(&want, want.size()).await.expect("committed"), BYTES);
}

/// Truncating never adds bytes.
pub async fn a_truncation_beyond_the_end_changes_nothing(store: Arc<dyn Store>) {
    let want = descriptor(BYTES);
    let mut writer = writer(&store, "key", &want).await;
    writer.write(Bytes::from_static(&BYTES[..3])).await.expect("the bytes fit");

    let err = writer.truncate(4).await.expect_err("it has three bytes");

    assert!(matches!(err, Error::Truncate { size: 4, offset: 3, .. }), "{err:?}");
    writer.truncate(3).await.expect("that is where it is");
    writer.write(Bytes::from_static(&BYTES[3..])).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
}

/// Wherever the chunks end.
pub async fn a_source_without_access_is_read_past_what_is_there(store: Arc<dyn Store>) {
    for chunk in [1, 2, 7, 10, BYTES.len()] {
        let source = stream::iter(BYTES.chunks(chunk).map(|chunk| Ok(Bytes::from_static(chunk))));
        let mut writer = begun(&store).await;

        writer.append_from_start(source.boxed()).await.expect("nothing comes twice");

        assert_eq!(writer.offset(), BYTES.len() as u64, "chunks of {chunk}");
        writer.commit(Labels::new()).await.expect("the bytes are right");
        store.delete(descriptor(BYTES).digest()).await.expect("committed");
    }
}

/// A file, for instance.
pub async fn a_source_with_a_position_goes_on_from_the_offset(store: Arc<dyn Store>) {
    let mut writer = begun(&store).await;
    let mut source = Cursor::new(BYTES);
    source.seek(SeekFrom::Start(writer.offset())).expect("it can be moved anywhere");
    let mut rest = Vec::new();
    source.read_to_end(&mut rest).expect("it is in memory");

    writer.write(rest.into()).await.expect("the bytes fit");

    writer.commit(Labels::new()).await.expect("the bytes are right");
}

/// A blob of another store, for instance.
pub async fn a_source_with_random_access_goes_on_from_the_offset(store: Arc<dyn Store>) {
    let mut writer = begun(&store).await;
    let source = Blob::new(Arc::new(Bytes::from_static(BYTES)), BYTES.len() as u64);
    let rest: ByteStream = source.stream(writer.offset());

    writer.append(rest).await.expect("the bytes fit");

    writer.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(store.read(&descriptor(BYTES), source.size()).await.expect("committed"), BYTES);
}

/// A writer of [`BYTES`] that was interrupted after ten of them.
async fn begun(store: &Arc<dyn Store>) -> Box<dyn crate::Writer> {
    let want = descriptor(BYTES);
    let mut first = writer(store, "key", &want).await;
    first.write(Bytes::from_static(&BYTES[..10])).await.expect("the bytes fit");
    drop(first);
    let second = writer(store, "key", &want).await;
    assert_eq!(second.offset(), 10);
    second
}
