//! Checks of committed blobs: reading, listing, deleting.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::{descriptor, put, writer};
use crate::{Error, Filter, Labels, ProviderExt, Store, WriterExt, hash::Hasher};

/// Not before, under any of the store's views.
pub async fn a_blob_is_visible_once_it_is_committed(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut writer = writer(&store, "key", &want).await;
    writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");

    assert!(matches!(store.open(&want).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.info(want.digest()).await, Err(Error::NotFound { .. })));
    assert_eq!(store.walk(Filter::default()).try_collect::<Vec<_>>().await.expect("walk"), []);

    writer.commit(Labels::new()).await.expect("the bytes are right");

    assert_eq!(store.read(&want, 7).await.expect("committed"), "content");
    let info = store.info(want.digest()).await.expect("committed");
    assert_eq!((&info.digest, info.size), (want.digest(), 7));
    assert_eq!(store.walk(Filter::default()).try_collect::<Vec<_>>().await.expect("walk"), [info]);
    assert_eq!(store.active().await.expect("active"), [], "the commit ends the ingest");
}

/// Empty, tiny, and around the sizes that buffers have.
pub async fn blobs_of_any_size_come_back(store: Arc<dyn Store>) {
    for size in [0, 1, 4095, 4096, 65_537, (1 << 20) - 1, (5 << 20) + 1] {
        let bytes: Bytes = (0..size).map(|at: u32| (at ^ (at >> 8)) as u8).collect::<Vec<_>>().into();
        let want = descriptor(&bytes);
        let mut writer = writer(&store, "key", &want).await;
        writer.write(bytes.clone()).await.expect("the bytes fit");
        writer.commit(Labels::new()).await.expect("the bytes are right");

        let read = store.read(&want, size.into()).await.expect("committed");
        let blob = store.open(&want).await.expect("committed");
        let middle: Vec<Bytes> = blob.stream(u64::from(size / 2)).try_collect().await.expect("a stream");

        assert!(read == bytes, "a blob of {size} bytes came back changed");
        assert!(middle.concat() == bytes[size as usize / 2..], "its second half of {size} bytes differs");
    }
}

/// SHA-384 and SHA-512 are as good as SHA-256.
pub async fn a_blob_is_kept_under_the_algorithm_of_its_digest(store: Arc<dyn Store>) {
    for zeros in ["sha384:".to_owned() + &"0".repeat(96), "sha512:".to_owned() + &"0".repeat(128)] {
        let algorithm: Digest = zeros.parse().expect("it has the form of a digest");
        let mut hasher = Hasher::new(&algorithm).expect("the algorithm is supported");
        hasher.update(b"content");
        let want = Descriptor::new(MediaType::ImageLayer, 7, hasher.finish());
        let mut writer = writer(&store, "key", &want).await;
        writer.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
        writer.commit(Labels::new()).await.expect("the bytes are right");

        assert_eq!(store.read(&want, 7).await.expect("committed"), "content");
    }
}

/// Before anything is written.
pub async fn an_unknown_algorithm_is_refused(store: Arc<dyn Store>) {
    let digest: Digest = "md5:d41d8cd98f00b204e9800998ecf8427e".parse().expect("it has the form of a digest");
    let want = Descriptor::new(MediaType::ImageLayer, 0, digest);

    let err = store.ingest("key", &want).await.expect_err("md5 proves nothing");

    assert!(matches!(err, Error::UnsupportedDigest { .. }), "{err:?}");
    assert_eq!(store.active().await.expect("active"), []);
}

/// Whether it is opened, asked about, or deleted.
pub async fn a_missing_blob_is_not_found(store: Arc<dyn Store>) {
    let missing = descriptor(b"missing");

    assert!(matches!(store.open(&missing).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.info(missing.digest()).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.update(missing.digest(), Labels::new()).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.delete(missing.digest()).await, Err(Error::NotFound { .. })));
}

/// Each one once, and no ingest among them.
pub async fn walk_shows_every_committed_blob(store: Arc<dyn Store>) {
    let mut stored = BTreeMap::new();
    for bytes in [&b"one"[..], b"three", b"seventeen"] {
        stored.insert(put(&store, bytes).await.digest().to_string(), bytes.len() as u64);
    }
    let mut unfinished = writer(&store, "unfinished", &descriptor(b"unfinished")).await;
    unfinished.write(Bytes::from_static(b"un")).await.expect("the bytes fit");

    let infos: Vec<_> = store.walk(Filter::default()).try_collect().await.expect("walk");

    assert_eq!(infos.len(), stored.len());
    let seen: BTreeMap<_, _> = infos.iter().map(|info| (info.digest.to_string(), info.size)).collect();
    assert_eq!(seen, stored);
}

/// A blob outlives its name.
pub async fn a_deleted_blob_stays_with_those_who_have_it_open(store: Arc<dyn Store>) {
    let want = put(&store, b"content").await;
    let blob = store.open(&want).await.expect("committed");

    store.delete(want.digest()).await.expect("it is there");

    assert_eq!(blob.bytes(want.digest(), 7).await.expect("still open"), "content");
    assert!(matches!(store.open(&want).await, Err(Error::NotFound { .. })));
    assert_eq!(store.walk(Filter::default()).try_collect::<Vec<_>>().await.expect("walk"), []);
}

/// Nothing of it is left that would answer `Present`.
pub async fn a_deleted_blob_can_be_written_again(store: Arc<dyn Store>) {
    let want = put(&store, b"content").await;
    store.delete(want.digest()).await.expect("it is there");

    put(&store, b"content").await;

    assert_eq!(store.read(&want, 7).await.expect("committed"), "content");
}
