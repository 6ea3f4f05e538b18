//! Ingests that nobody goes on with, and what else a crash has left, are removed.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use super::{
    Inner, LocalStore,
    disk::{self, io_error},
    ingests::IngestFolder,
    lock, names,
};
use crate::Result;

/// What [`LocalStore::expire`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Expired {
    /// How many ingests.
    pub ingests: usize,
    /// How many bytes of blobs they had.
    pub bytes: u64,
}

impl LocalStore {
    /// Removes the ingests that got no bytes for [`Options::ingest_expiry`](super::Options::ingest_expiry) and have no
    /// writer, in any process. The labels of blobs that are gone go with them.
    ///
    /// [`open`](Self::open) does the same in the background.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io); what was removed before stays removed.
    pub async fn expire(&self) -> Result<Expired> {
        self.expire_idle(self.inner.ingest_expiry).await
    }

    /// As [`expire`](Self::expire), for ingests that got no bytes for `idle`. Zero leaves only those with a writer, and
    /// [`Duration::MAX`] removes only what a crash left that is of no use to anybody.
    ///
    /// # Errors
    ///
    /// As [`expire`](Self::expire).
    pub async fn expire_idle(&self, idle: Duration) -> Result<Expired> {
        self.blocking(move |this| expire(&this.inner, idle)).await
    }
}

/// Expires on a thread of its own, so that nobody waits for a folder with thousands of ingests.
pub(super) fn in_background(store: &Arc<Inner>) {
    let empty = fs::read_dir(store.root.join("ingest")).is_ok_and(|mut entries| entries.next().is_none());
    if empty {
        return;
    }
    let store = Arc::downgrade(store);
    let work = move || {
        if let Some(store) = store.upgrade() {
            // Whoever wants to know calls `expire`.
            let _ = expire(&store, store.ingest_expiry);
        }
    };
    // A system that has no thread left has other worries.
    let _ = thread::Builder::new().name("windlass-expire".into()).spawn(work);
}

fn expire(store: &Inner, idle: Duration) -> Result<Expired> {
    let mut expired = Expired::default();
    for folder in disk::entries(&store.root.join("ingest"))? {
        if !folder.is_dir() || !is_idle(&folder, idle) {
            continue;
        }
        let Some(_lock) = try_lock(&folder)? else { continue };
        // Its writer may have come back and gone before we had the lock.
        if is_idle(&folder, idle) {
            expired.bytes += fs::metadata(IngestFolder::new(&folder).data()).map_or(0, |data| data.len());
            expired.ingests += 1;
            disk::remove_folder(&folder)?;
        }
    }
    names::sweep(store)?;
    Ok(expired)
}

/// Whether nothing happened to an ingest for so long. One from the future, as clocks go, is not idle.
///
/// One without bytes is so at once: its process died just before it wrote any, or just after they became a blob.
fn is_idle(folder: &Path, idle: Duration) -> bool {
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let data = IngestFolder::new(folder).data();
    let last = changed(folder).max(changed(&data));
    idle.is_zero()
        || !data.exists()
        || last.is_some_and(|last| SystemTime::now().duration_since(last).is_ok_and(|since| since >= idle))
}

/// The lock of an ingest, if nobody has it and it is still there.
fn try_lock(folder: &Path) -> Result<Option<File>> {
    let file = match File::open(folder) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("open", folder)(source)),
    };
    match file.try_lock() {
        Ok(()) => Ok(lock::is_at(&file, folder)?.then_some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(io_error("lock", folder)(source)),
    }
}
