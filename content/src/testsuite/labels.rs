//! Checks of labels, and of finding blobs by them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::Descriptor;

use super::{descriptor, put, writer};
use crate::{Error, Filter, Labels, Store, WriterExt};

/// They are there from the first moment on, wherever the blob is seen.
pub async fn labels_come_with_the_commit(store: Arc<dyn Store>) {
    let want = put_labelled(&store, b"content", &[("kind", "layer"), ("empty", "")]).await;

    let info = store.info(want.digest()).await.expect("committed");

    assert_eq!(info.labels, labels(&[("kind", "layer"), ("empty", "")]));
    assert_eq!(walk(&store, Filter::default()).await, [want.digest().to_string()].into());
    let plain = put(&store, b"plain").await;
    assert_eq!(store.info(plain.digest()).await.expect("committed").labels, Labels::new());
}

/// All of them; nothing else changes.
pub async fn an_update_replaces_the_labels(store: Arc<dyn Store>) {
    let want = put_labelled(&store, b"content", &[("one", "1"), ("two", "2")]).await;
    let before = store.info(want.digest()).await.expect("committed");

    for new in [labels(&[("two", "zwei"), ("three", "3")]), Labels::new(), labels(&[("four", "4")])] {
        let info = store.update(want.digest(), new.clone()).await.expect("it is there");

        assert_eq!(info.labels, new);
        assert_eq!((&info.digest, info.size, info.committed), (&before.digest, 7, before.committed));
        assert_eq!(store.info(want.digest()).await.expect("committed"), info);
    }
}

/// What the first committer wrote stays.
pub async fn a_second_commit_adds_its_labels(store: Arc<dyn Store>) {
    let want = descriptor(b"content");
    let mut late = writer(&store, "late", &want).await;
    late.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    put_labelled(&store, b"content", &[("one", "first"), ("two", "first")]).await;

    late.commit(labels(&[("two", "late"), ("three", "late")])).await.expect("the bytes are right");

    let info = store.info(want.digest()).await.expect("committed");
    assert_eq!(info.labels, labels(&[("one", "first"), ("two", "late"), ("three", "late")]));
}

/// They do not come back with it.
pub async fn labels_go_with_the_blob(store: Arc<dyn Store>) {
    let want = put_labelled(&store, b"content", &[("key", "value")]).await;
    store.delete(want.digest()).await.expect("it is there");

    put(&store, b"content").await;

    assert_eq!(store.info(want.digest()).await.expect("committed").labels, Labels::new());
}

/// Neither a commit nor an update with such labels changes anything.
pub async fn labels_out_of_bounds_are_refused(store: Arc<dyn Store>) {
    let kept = put_labelled(&store, b"kept", &[("key", "value")]).await;
    let fits = [("key", "x".repeat(4093))];
    for bad in [("", String::new()), ("key", "x".repeat(4094))] {
        let bad = Labels::from([(bad.0.to_owned(), bad.1)]);
        let err = store.update(kept.digest(), bad.clone()).await.expect_err("they are out of bounds");
        assert!(matches!(err, Error::Label { .. }), "{err:?}");
        assert_eq!(store.info(kept.digest()).await.expect("committed").labels, labels(&[("key", "value")]));

        let want = descriptor(b"content");
        let mut hasty = writer(&store, "key", &want).await;
        let missing = usize::try_from(hasty.offset()).expect("it is small");
        hasty.write(Bytes::from_static(&b"content"[missing..])).await.expect("the bytes fit");
        let err = hasty.commit(bad).await.expect_err("they are out of bounds");
        assert!(matches!(err, Error::Label { .. }), "{err:?}");
        assert_eq!(writer(&store, "key", &want).await.offset(), 7, "the bytes are kept");
    }

    let next = writer(&store, "key", &descriptor(b"content")).await;
    next.commit(fits.map(|(key, value)| (key.to_owned(), value)).into())
        .await
        .expect("they are at the bound");
}

/// Every condition of a filter counts.
pub async fn walk_shows_what_the_filter_lets_through(store: Arc<dyn Store>) {
    let small = put_labelled(&store, b"small", &[("kind", "config")]).await;
    let large = put_labelled(&store, b"much larger", &[("kind", "layer")]).await;
    let plain = put(&store, b"plain text").await;
    let committed = store.info(small.digest()).await.expect("committed").committed;
    let day = Duration::from_secs(24 * 60 * 60);
    let prefix = &plain.digest().as_ref()[..20];

    for (filter, blobs) in [
        (Filter::default(), vec![&small, &large, &plain]),
        (Filter::default().label("kind"), vec![&small, &large]),
        (Filter::default().label_value("kind", "layer"), vec![&large]),
        (Filter::default().label("kind").max_size(5), vec![&small]),
        (Filter::default().digest_prefix(prefix), vec![&plain]),
        (Filter::default().min_size(10), vec![&large, &plain]),
        (Filter::default().committed_after(committed - day), vec![&small, &large, &plain]),
        (Filter::default().committed_before(committed - day), vec![]),
        (Filter::default().label("other"), vec![]),
    ] {
        let wanted: BTreeSet<_> = blobs.iter().map(|blob| blob.digest().to_string()).collect();
        assert_eq!(walk(&store, filter.clone()).await, wanted, "{filter:?}");
    }
}

async fn put_labelled(store: &Arc<dyn Store>, bytes: &'static [u8], pairs: &[(&str, &str)]) -> Descriptor {
    let want = descriptor(bytes);
    let mut writer = writer(store, "put labelled", &want).await;
    writer.write(Bytes::from_static(bytes)).await.expect("the bytes fit");
    writer.commit(labels(pairs)).await.expect("the bytes are right");
    want
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn walk(store: &Arc<dyn Store>, filter: Filter) -> BTreeSet<String> {
    store.walk(filter).map_ok(|info| info.digest.to_string()).try_collect().await.expect("walk")
}
