//! One unpacker at a time for each chain of layers, whoever shares the snapshots.
//!
//! **No two wait for each other.** Chains are a tree: each has one below it. Who waits for a chain has locked only chains of more
//! layers than that one (see [`stack`](super::stack)), so in a circle of those who wait for each other, each would wait for a shorter
//! chain than the one before.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use windlass_content::{
    hash::sha256,
    lock::{Patience, Turn, Turns, patiently},
};

use super::range_lock;
use crate::{Error, Result};

/// Who is next in this process.
static TURNS: Turns<(PathBuf, String)> = Turns::new();

/// The locks of a snapshotter's chains. One open file, however many are locked.
#[derive(Clone, Debug)]
pub(super) struct ChainLocks {
    path: PathBuf,
    file: Arc<File>,
}

/// The right to make the snapshot of a chain, until it is dropped. The kernel takes it back when the process dies.
#[derive(Debug)]
pub(super) struct ChainLock {
    locks: ChainLocks,
    place: i64,
    /// Goes last: whoever is next in this process finds the chain unlocked.
    _turn: Arc<Turn>,
}

impl ChainLocks {
    /// Opens the file that the locks are in, which is made if it is missing. Blocks on the disk.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|source| Error::Io { op: "open", path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file) })
    }

    /// Locks a chain, unless somebody else has it. Blocks on the disk.
    pub(super) fn take(&self, chain: &str) -> Result<Option<ChainLock>> {
        match TURNS.take(self.name(chain)) {
            Some(turn) => self.lock(chain, Arc::new(turn), Patience::None),
            None => Ok(None),
        }
    }

    /// Waits until nobody else has a chain, and locks it. Holds up none of the runtime's threads.
    pub(super) async fn wait(&self, chain: &str) -> Result<ChainLock> {
        // It goes where the waiting goes, also if this future is dropped: only one thread waits for each chain.
        let turn = Arc::new(TURNS.wait(self.name(chain)).await);
        let (this, chain) = (self.clone(), chain.to_owned());
        let no_thread = this.failed("start a thread that waits for");
        patiently(move |patience| this.lock(&chain, turn.clone(), patience), no_thread).await
    }

    fn lock(&self, chain: &str, turn: Arc<Turn>, patience: Patience) -> Result<Option<ChainLock>> {
        let place = place(chain);
        let locked = range_lock::lock(&self.file, place, patience).map_err(self.failed("lock"))?;
        Ok(locked.then(|| ChainLock { locks: self.clone(), place, _turn: turn }))
    }

    fn name(&self, chain: &str) -> (PathBuf, String) {
        (self.path.clone(), chain.to_owned())
    }

    fn failed(&self, op: &'static str) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.path.clone();
        move |source| Error::Io { op, path, source }
    }
}

impl Drop for ChainLock {
    fn drop(&mut self) {
        if let Err(error) = range_lock::unlock(&self.locks.file, self.place) {
            // Closing the file, when all is unpacked, does it as well.
            tracing::warn!(%error, "a chain of layers stays locked for a while");
        }
    }
}

/// Which byte of the file is a chain's own: 62 bits of its hash.
fn place(chain: &str) -> i64 {
    let hash = sha256(chain.as_bytes());
    let high = u64::from_str_radix(&hash.digest()[..16], 16).expect("a SHA-256 is hexadecimal");
    (high >> 2).cast_signed()
}
