//! Blobs that are just being written, for those who read them at the same time.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use oci_spec::image::Digest;
use tokio::sync::{Notify, futures::Notified};

use crate::{Error, ReadAt};

/// What this process is taking in, by digest. Only what has not ended is in it.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    by_digest: Mutex<HashMap<Digest, Arc<Arrival>>>,
    changed: Notify,
}

impl Arrivals {
    /// Lets readers find a blob, of which `available` bytes are there already.
    pub(super) fn begin(&self, digest: &Digest, file: File, available: u64) -> Arc<Arrival> {
        let state = Mutex::new(State { available, end: None });
        let arrival = Arc::new(Arrival { digest: digest.clone(), file, state, changed: Condvar::new() });
        lock(&self.by_digest).insert(digest.clone(), arrival.clone());
        self.announce();
        arrival
    }

    /// The blob, if it is just arriving. A committed one is found on the disk, unless it was deleted since.
    pub(super) fn find(&self, digest: &Digest) -> Option<Arc<Arrival>> {
        lock(&self.by_digest).get(digest).cloned()
    }

    /// No more bytes will come. Only the first end of an arrival counts.
    pub(super) fn end(&self, arrival: &Arc<Arrival>, end: End) {
        {
            let mut by_digest = lock(&self.by_digest);
            // Another key may be bringing the same blob meanwhile.
            if by_digest.get(&arrival.digest).is_some_and(|current| Arc::ptr_eq(current, arrival)) {
                by_digest.remove(&arrival.digest);
            }
        }
        arrival.end(end);
        self.announce();
    }

    /// Resolves after the next [`announce`](Self::announce).
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Makes everybody who waits for a blob look again.
    pub(super) fn announce(&self) {
        self.changed.notify_waiters();
    }
}

/// One blob that is being written.
#[derive(Debug)]
pub(super) struct Arrival {
    digest: Digest,
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    available: u64,
    end: Option<End>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Committed,
    Abandoned,
}

impl Arrival {
    /// More bytes are in the file.
    pub(super) fn advance(&self, available: u64) {
        lock(&self.state).available = available;
        self.changed.notify_all();
    }

    fn end(&self, end: End) {
        lock(&self.state).end.get_or_insert(end);
        self.changed.notify_all();
    }
}

impl ReadAt for Arrival {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = lock(&self.state);
        while state.available <= offset && state.end.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let ready = state.available.saturating_sub(offset);
        if state.end == Some(End::Abandoned) {
            return Err(io::Error::other(Error::Abandoned { digest: self.digest.clone() }));
        }
        drop(state);
        let wanted = buf.len().min(usize::try_from(ready).unwrap_or(usize::MAX));
        match FileExt::read_at(&self.file, &mut buf[..wanted], offset)? {
            // The bytes were there, and were taken back since: this is no end.
            0 if wanted > 0 => Err(io::Error::other(Error::Abandoned { digest: self.digest.clone() })),
            read => Ok(read),
        }
    }
}

/// State that a panic cannot leave half changed needs no poisoning.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
