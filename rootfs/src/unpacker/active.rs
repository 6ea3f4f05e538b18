//! Snapshots that are being filled, and do not outlive a failure.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::task::spawn_blocking;
use windlass_snapshot::{Mount, Snapshotter};

use crate::Result;

/// What the keys of snapshots begin with into which layers are being unpacked. One of them that no lease holds was left by
/// a crash, or belongs to an [`Unpacker`](crate::Unpacker) without a lease.
pub const UNPACK_PREFIX: &str = "unpack-";

/// The threads that remove what was dropped in the middle, for those who wait for them.
pub(super) type Removals = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// A key for the snapshot of a chain that nobody else has.
pub(super) fn unique_key(chain: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{UNPACK_PREFIX}{}-{count}-{now}-{chain}", std::process::id())
}

/// Active snapshots, removed unless they are committed.
#[derive(Debug)]
pub(super) struct Active {
    snapshotter: Arc<dyn Snapshotter>,
    keys: Mutex<Vec<String>>,
    removals: Removals,
}

impl Active {
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>, removals: Removals) -> Self {
        Self { snapshotter, keys: Mutex::default(), removals }
    }

    pub(super) async fn prepare(&self, key: String, parent: Option<String>) -> Result<Vec<Mount>> {
        // First the key, then the snapshot: it is removed also if this future is dropped meanwhile.
        self.keys().push(key.clone());
        let snapshotter = self.snapshotter.clone();
        let prepare = move || snapshotter.prepare(&key, parent.as_deref());
        Ok(spawn_blocking(prepare).await.expect("the work neither panics nor is aborted")?)
    }

    /// Prepares snapshots of layers that are applied alone.
    pub(super) async fn prepare_all(&self, keys: Vec<String>) -> Result<Vec<Vec<Mount>>> {
        self.keys().extend(keys.iter().cloned());
        let snapshotter = self.snapshotter.clone();
        let prepare = move || snapshotter.prepare_all(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(spawn_blocking(prepare).await.expect("the work neither panics nor is aborted")?)
    }

    /// They stay.
    pub(super) fn committed(&self, committed: &[String]) {
        self.keys().retain(|key| !committed.contains(key));
    }

    /// Removes what was not committed, before anybody looks.
    pub(super) async fn end(self) {
        let keys = std::mem::take(&mut *self.keys());
        if !keys.is_empty() {
            let snapshotter = self.snapshotter.clone();
            let removal = spawn_blocking(move || remove(&*snapshotter, &keys));
            removal.await.expect("the work neither panics nor is aborted");
        }
    }

    fn keys(&self) -> MutexGuard<'_, Vec<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let (snapshotter, keys) = (self.snapshotter.clone(), std::mem::take(&mut *self.keys()));
        if !keys.is_empty() {
            // Dropped in the middle: the runtime may be ending, and must not wait for this.
            let removal = thread::spawn(move || remove(&*snapshotter, &keys));
            self.removals.lock().unwrap_or_else(PoisonError::into_inner).push(removal);
        }
    }
}

fn remove(snapshotter: &dyn Snapshotter, keys: &[String]) {
    for key in keys {
        match snapshotter.remove(key) {
            Ok(()) | Err(windlass_snapshot::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(key, %error, "a snapshot that was not finished is left behind"),
        }
    }
}
