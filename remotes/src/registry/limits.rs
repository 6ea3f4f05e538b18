//! How much may be in flight at once, to each host and in total.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Counts operations: a body that is read, a request for a manifest, an upload.
///
/// Downloads and uploads are counted apart, so that a copy, which has one of each, never waits for itself. An operation
/// keeps its turn while it tries again.
#[derive(Debug)]
pub(super) struct Limits {
    per_host: usize,
    downloads: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    hosts: Mutex<HashMap<(String, Direction), Arc<Semaphore>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Download,
    Upload,
}

/// A turn. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _host: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

impl Limits {
    pub(super) fn new(total: NonZeroUsize, per_host: NonZeroUsize) -> Self {
        let most = |limit: NonZeroUsize| limit.get().min(Semaphore::MAX_PERMITS);
        Self {
            per_host: most(per_host),
            downloads: Arc::new(Semaphore::new(most(total))),
            uploads: Arc::new(Semaphore::new(most(total))),
            hosts: Mutex::default(),
        }
    }

    /// Waits for a turn. First come, first served.
    pub(super) async fn turn(&self, host: &str, direction: Direction) -> Turn {
        // The host's limit comes first: whoever waits for a slow host takes no one else's turn.
        let host = self.host(host, direction).acquire_owned().await.expect("no semaphore is ever closed");
        let total = self.total(direction).acquire_owned().await.expect("no semaphore is ever closed");
        Turn { _host: host, _total: total }
    }

    /// A further turn for somebody who has one, if nobody needs to wait for it.
    pub(super) fn another(&self, host: &str, direction: Direction) -> Option<Turn> {
        let host = self.host(host, direction).try_acquire_owned().ok()?;
        let total = self.total(direction).try_acquire_owned().ok()?;
        Some(Turn { _host: host, _total: total })
    }

    fn total(&self, direction: Direction) -> Arc<Semaphore> {
        match direction {
            Direction::Download => self.downloads.clone(),
            Direction::Upload => self.uploads.clone(),
        }
    }

    fn host(&self, host: &str, direction: Direction) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(self.per_host));
        hosts.entry((host.to_owned(), direction)).or_insert_with(new).clone()
    }
}
