//! The local store keeps every promise of the suite, shares its folder, and stays an OCI image layout.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use oci_spec::image::{ImageIndex, OciLayout};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::time::timeout;
use windlass_content::{
    Durability, Error, Filter, Ingest, Ingester, Labels, LocalStore, Options, Provider, ProviderExt, Store,
    WriterExt,
    testsuite::{self, descriptor, put, writer},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_local_store_passes_the_suite() {
    testsuite::run_all(&|root| Arc::new(open(root))).await;
}

#[tokio::test]
async fn the_local_store_passes_the_suite_on_one_thread_without_syncs() {
    let fast = |root: &Path| {
        let options = Options::default().durability(Durability::Fast);
        Arc::new(LocalStore::open(root, options).expect("an empty folder")) as Arc<dyn Store>
    };
    testsuite::run_all(&fast).await;
}

/// Two stores on one folder share no memory: what holds between them holds between processes.
#[tokio::test]
async fn a_second_process_waits_for_the_first_and_finds_the_blob() {
    let (_folder, here, there) = two_stores();
    let want = descriptor(b"content");
    let mut first = writer(&here, "key", &want).await;
    let mut second = pin!(there.ingest("key", &want));

    assert!(timeout(MOMENT, &mut second).await.is_err(), "the first one has the lock");
    first.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    first.commit(Labels::new()).await.expect("the bytes are right");

    assert!(matches!(second.await, Ok(Ingest::Present)));
    assert_eq!(there.active().await.expect("active"), []);
}

#[tokio::test]
async fn a_second_process_resumes_what_the_first_left() {
    let (_folder, here, there) = two_stores();
    let want = descriptor(b"content");
    let mut first = writer(&here, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    let mut second = pin!(writer(&there, "key", &want));
    assert!(timeout(MOMENT, &mut second).await.is_err(), "the first one has the lock");

    drop(first);

    let mut second = second.await;
    assert_eq!(second.offset(), 3);
    second.write(Bytes::from_static(b"tent")).await.expect("the bytes fit");
    second.commit(Labels::new()).await.expect("the bytes are right");
    assert_eq!(here.read(&want, 7).await.expect("committed"), "content");
}

/// The folder of the ingest comes and goes under those who wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn many_processes_write_a_blob_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for round in 0..20 {
        let bytes = Bytes::from(format!("content {round}"));
        let tasks: Vec<_> = (0..8)
            .map(|_| (open(folder.path()), bytes.clone()))
            .map(|(store, bytes)| {
                tokio::spawn(async move {
                    match store.ingest("key", &descriptor(&bytes)).await.expect("it can be opened") {
                        Ingest::Present => 0,
                        Ingest::Open(mut writer) => {
                            writer.write(bytes).await.expect("the bytes fit");
                            writer.commit(Labels::new()).await.expect("the bytes are right");
                            1
                        }
                    }
                })
            })
            .collect();
        let mut written = 0;
        for task in tasks {
            written += task.await.expect("no task panics");
        }
        assert_eq!(written, 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_opened_by_many_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for round in 0..20 {
        let root = folder.path().join(round.to_string());
        let threads: Vec<_> = (0..8)
            .map(|_| root.clone())
            .map(|root| std::thread::spawn(move || LocalStore::open(root, Options::default()).map(drop)))
            .collect();
        for thread in threads {
            thread.join().expect("no thread panics").expect("the folder can be opened");
        }
        assert_eq!(fs::read_dir(&root).expect("it is there").count(), 4, "nothing else is left in it");
    }
}

/// Removing or replacing the good blob would let one bad manifest harm every other image.
#[tokio::test]
async fn a_descriptor_with_a_wrong_size_does_not_harm_the_blob() {
    let (_folder, store) = store();
    let right = put(&store, b"content").await;
    let mut wrong = right.clone();
    wrong.set_size(8);
    let mut liar = writer(&store, "key", &wrong).await;
    liar.write(Bytes::from_static(b"content!")).await.expect("the length is as announced");

    liar.commit(Labels::new()).await.expect_err("the digest is wrong");

    assert_eq!(store.read(&right, 7).await.expect("it is as it was"), "content");
}

#[tokio::test]
async fn a_blob_of_a_wrong_size_is_damaged_and_written_anew() {
    let (_folder, store) = store();
    let want = put(&store, b"content").await;
    fs::remove_file(store.path(want.digest())).expect("it is there");
    fs::write(store.path(want.digest()), "cont").expect("the folder can be written");

    assert!(matches!(store.open(&want).await, Err(Error::NotFound { .. })));
    put(&store, b"content").await;

    assert_eq!(store.read(&want, 7).await.expect("it is whole again"), "content");
}

#[tokio::test]
async fn a_crash_just_before_the_rename_is_resumed() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"content")).await.expect("the bytes fit");
    drop(first);
    drop(writer(&store, "key", &want).await);
    let data = ingest_folder(&store, "key").join("data");
    fs::set_permissions(&data, PermissionsExt::from_mode(0o444)).expect("it is there");

    let next = writer(&store, "key", &want).await;

    assert_eq!(fs::metadata(&data).expect("it is there").permissions().mode() & 0o200, 0o200);
    next.commit(Labels::new()).await.expect("the bytes are right");
}

#[tokio::test]
async fn a_torn_note_starts_anew() {
    let (_folder, store) = store();
    let want = descriptor(b"content");
    let mut first = writer(&store, "key", &want).await;
    first.write(Bytes::from_static(b"con")).await.expect("the bytes fit");
    first.commit(Labels::new()).await.expect_err("four bytes are missing");
    fs::write(ingest_folder(&store, "key").join("expected"), "{\"mediaTy").expect("it can be written");

    assert_eq!(store.active().await.expect("a torn note is in nobody's way"), []);
    assert_eq!(writer(&store, "key", &want).await.offset(), 0);
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_names_the_file() {
    let (_folder, store) = store();
    let want = descriptor(&[7; 1 << 20]);
    drop(writer(&store, "key", &want).await);
    drop(writer(&store, "key", &want).await);
    let data = ingest_folder(&store, "key").join("data");
    fs::remove_file(&data).expect("it is there");
    symlink("/dev/full", &data).expect("the folder can be written");
    let mut writer = writer(&store, "key", &want).await;

    let append = writer.write(vec![7; 1 << 20].into()).await;
    let err = match append {
        Ok(()) => writer.commit(Labels::new()).await.expect_err("nothing was written"),
        Err(err) => err,
    };

    assert_eq!(err.to_string(), format!("cannot write {}", data.display()));
}

#[tokio::test]
async fn the_folder_is_an_oci_image_layout() {
    let (folder, store) = store();
    let want = put(&store, b"content").await;

    let layout = OciLayout::from_file(folder.path().join("oci-layout")).expect("it parses");
    let index = ImageIndex::from_file(folder.path().join("index.json")).expect("it parses");
    let blob = folder.path().join("blobs/sha256").join(want.digest().digest());

    assert_eq!(layout.image_layout_version(), "1.0.0");
    assert_eq!(index.manifests().len(), 0);
    assert_eq!(store.path(want.digest()), blob);
    assert_eq!(fs::read(&blob).expect("it is there"), b"content");
    assert_eq!(fs::metadata(&blob).expect("it is there").permissions().mode() & 0o777, 0o444);
}

#[tokio::test]
async fn opening_again_keeps_what_is_there() {
    let (folder, store) = store();
    let want = put(&store, b"content").await;
    let index = r#"{"schemaVersion":2,"manifests":[],"annotations":{"by":"somebody else"}}"#;
    fs::write(folder.path().join("index.json"), index).expect("it can be written");

    let again = open(folder.path());

    assert_eq!(again.read(&want, 7).await.expect("committed"), "content");
    assert_eq!(fs::read_to_string(folder.path().join("index.json")).expect("it is there"), index);
}

#[tokio::test]
async fn files_that_are_no_blobs_are_passed_over() {
    let (folder, store) = store();
    fs::create_dir(folder.path().join("blobs/md5")).expect("the folder can be written");
    let unsupported = "blobs/md5/d41d8cd98f00b204e9800998ecf8427e";
    for name in ["blobs/README", "blobs/sha256/.hidden", unsupported, "ingest/stray"] {
        fs::write(folder.path().join(name), "not ours").expect("the folder can be written");
    }

    let blobs: Vec<_> =
        futures::TryStreamExt::try_collect(store.walk(Filter::default())).await.expect("walk");

    assert_eq!(blobs, []);
    assert_eq!(store.active().await.expect("active"), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Chunks of any size, with the writer dropped and opened again after any of them.
    #[test]
    fn any_chunks_and_any_interruptions_give_the_same_blob(
        chunks in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..9000), any::<bool>()), 0..12),
    ) {
        let bytes: Vec<u8> = chunks.iter().flat_map(|(chunk, _)| chunk.clone()).collect();
        let want = descriptor(&bytes);
        let run = async {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let options = Options::default().durability(Durability::Fast);
            let store = LocalStore::open(folder.path(), options).expect("an empty folder");
            let mut current = writer(&store, "key", &want).await;
            for (chunk, interrupted) in chunks {
                if interrupted {
                    let before = current.offset();
                    drop(current);
                    current = writer(&store, "key", &want).await;
                    assert_eq!(current.offset(), before);
                }
                current.write(chunk.into()).await.expect("the bytes fit");
            }
            current.commit(Labels::new()).await.expect("the bytes are right");
            store.read(&want, want.size()).await.expect("committed")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        prop_assert_eq!(runtime.block_on(run), bytes);
    }
}

/// Long enough to see that somebody waits.
const MOMENT: Duration = Duration::from_millis(50);

fn open(root: &Path) -> LocalStore {
    LocalStore::open(root, Options::default()).expect("the folder can be opened")
}

fn store() -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = open(folder.path());
    (folder, store)
}

fn two_stores() -> (TempDir, LocalStore, LocalStore) {
    let (folder, here) = store();
    let there = open(folder.path());
    (folder, here, there)
}

fn ingest_folder(store: &LocalStore, key: &str) -> std::path::PathBuf {
    let name = windlass_content::hash::sha256(key.as_bytes());
    let blob = store.path(&name);
    let root = blob.ancestors().nth(3).expect("blobs, the algorithm and the name are below the root");
    root.join("ingest").join(name.digest())
}
