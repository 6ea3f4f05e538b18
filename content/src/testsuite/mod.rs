//! What every store promises, as checks that take any implementation.
//!
//! Each check gets an empty store of its own, and panics where a promise is broken. The runtime it runs on needs
//! its timer.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use windlass_content::{LocalStore, Options, Store, testsuite};
//!
//! fn local(root: &Path) -> Arc<dyn Store> {
//!     Arc::new(LocalStore::open(root, Options::default()).expect("an empty folder"))
//! }
//!
//! # async fn check() {
//! testsuite::run_all(&local).await;
//! # }
//! ```

mod content;
mod labels;
mod resuming;
mod sharing;
mod writing;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use oci_spec::image::{Descriptor, MediaType};

pub use self::{content::*, labels::*, resuming::*, sharing::*, writing::*};
use crate::{Ingest, Ingester, Labels, Store, Writer, WriterExt, hash::sha256};

/// Opens a store in a folder that is empty or missing.
pub type Open<'a> = &'a (dyn Fn(&Path) -> Arc<dyn Store> + Sync);

/// Runs all checks, each on a store of its own.
///
/// # Panics
///
/// If a promise is broken; the check's name is on standard error.
pub async fn run_all(open: Open<'_>) {
    macro_rules! run {
        ($($check:ident)+) => {$(
            eprintln!("check {}", stringify!($check));
            let folder = tempfile::tempdir().expect("a temporary folder");
            $check(open(&folder.path().join("store"))).await;
        )+};
    }
    run! {
        a_blob_is_visible_once_it_is_committed
        blobs_of_any_size_come_back
        a_blob_is_kept_under_the_algorithm_of_its_digest
        an_unknown_algorithm_is_refused
        a_missing_blob_is_not_found
        walk_shows_every_committed_blob
        a_deleted_blob_stays_with_those_who_have_it_open
        a_deleted_blob_can_be_written_again
        labels_come_with_the_commit
        an_update_replaces_the_labels
        a_second_commit_adds_its_labels
        labels_go_with_the_blob
        labels_out_of_bounds_are_refused
        walk_shows_what_the_filter_lets_through
        a_committed_blob_is_not_written_again
        a_dropped_writer_is_resumed
        a_dropped_append_keeps_what_came
        a_key_that_was_for_other_content_starts_anew
        a_short_commit_keeps_what_came
        a_source_that_fails_keeps_what_came
        more_than_was_announced_is_refused_while_it_comes
        wrong_bytes_are_discarded
        every_error_of_a_commit_frees_the_key
        a_truncated_ingest_goes_on_from_there
        what_an_earlier_writer_left_can_be_truncated
        an_ingest_can_start_over
        a_truncation_beyond_the_end_changes_nothing
        a_source_without_access_is_read_past_what_is_there
        a_source_with_a_position_goes_on_from_the_offset
        a_source_with_random_access_goes_on_from_the_offset
        a_second_writer_waits_and_finds_the_blob
        a_second_writer_goes_on_where_the_first_gave_up
        who_stops_waiting_is_not_in_the_way
        many_tasks_write_a_blob_once
        two_keys_may_bring_the_same_blob
        the_status_moves_with_the_bytes
        active_shows_what_is_unfinished
        an_aborted_ingest_starts_anew
    }
}

/// What a blob of these bytes is called.
pub fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, sha256(bytes))
}

/// Opens a writer.
///
/// # Panics
///
/// If the blob is there already.
pub async fn writer(store: &(impl Ingester + ?Sized), key: &str, want: &Descriptor) -> Box<dyn Writer> {
    match store.ingest(key, want).await.expect("the ingest can be opened") {
        Ingest::Open(writer) => writer,
        Ingest::Present => panic!("{} is there already", want.digest()),
    }
}

/// Stores a blob.
///
/// # Panics
///
/// If it is there already, or is refused.
pub async fn put(store: &(impl Ingester + ?Sized), bytes: &'static [u8]) -> Descriptor {
    let want = descriptor(bytes);
    let mut writer = writer(store, "put", &want).await;
    writer.write(Bytes::from_static(bytes)).await.expect("the bytes fit");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    want
}
