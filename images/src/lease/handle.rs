use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    process,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Resource, file};
use crate::{
    Error, Result, Store,
    gate::{self, blocking},
    store::{generation, millis, now, time},
};

/// Settings of a new lease. The default one lives as long as its handle, under a name of its own.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LeaseOptions {
    id: Option<String>,
    expires: Option<Duration>,
    labels: BTreeMap<String, String>,
}

impl LeaseOptions {
    /// Names the lease: letters, digits, `.`, `_` and `-`, at most 128, and no `.` first. A unique name if not set.
    ///
    /// A lease of that name that still protects, but has no handle, is taken over with all that it holds.
    pub fn id(self, id: impl Into<String>) -> Self {
        Self { id: Some(id.into()), ..self }
    }

    /// Lets the lease protect for this long even if its process dies. While there is a handle, it protects anyway.
    /// Not at all if not set.
    pub fn expires(self, expires: Duration) -> Self {
        Self { expires: Some(expires), ..self }
    }

    /// Notes something on the lease, for whoever lists them.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }
}

/// Holds content, snapshots and ingests until it is released or dropped, or its process dies.
///
/// Cheap to clone; clones are the same lease. Dropping the last one releases it, which blocks on the disk for a moment.
///
/// What is held **before** one looks whether it is there stays there.
#[derive(Clone, Debug)]
pub struct Lease {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    id: String,
    file: File,
    /// The generation of the image list when it was made.
    began: i64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: HashSet<Resource>,
    expiry: Option<Expiry>,
    /// Whether it outlives its handle.
    kept: bool,
    /// Whether it was released. Another lease may have its name now.
    ended: bool,
}

/// When a lease expires, and how long it had until then when that was set.
#[derive(Clone, Copy, Debug)]
struct Expiry {
    at: SystemTime,
    after: Duration,
}

impl Expiry {
    fn after(after: Duration) -> Self {
        let far = || SystemTime::UNIX_EPOCH + Duration::from_secs(u32::MAX.into());
        Self { at: SystemTime::now().checked_add(after).unwrap_or_else(far), after }
    }

    fn is_half_over(&self) -> bool {
        SystemTime::now() + self.after / 2 > self.at
    }
}

impl Store {
    /// Makes a lease, that holds nothing yet.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseId`] if the id cannot be one, [`Error::LeaseHeld`] if another handle has it, [`Error::Database`],
    /// [`Error::Io`].
    pub async fn lease(&self, options: LeaseOptions) -> Result<Lease> {
        let id = options.id.clone().unwrap_or_else(unique);
        if !file::is_id(&id) {
            return Err(Error::LeaseId { id });
        }
        let store = self.clone();
        gate::inside(self.folder(), move || {
            let Some(file) = file::take(store.folder(), &id)? else { return Err(Error::LeaseHeld { id }) };
            let expiry = options.expires.map(Expiry::after);
            let insert =
                |it: &Transaction<'_>| Ok((generation(it)?, insert(it, &id, expiry, &options.labels)?));
            let (began, kept) = match expiry {
                // After a power cut nobody has the handle: no need to find the lease then.
                None => store.relaxed("make a lease", insert),
                Some(_) => store.write("make a lease", insert),
            }?;
            let state = State { held: HashSet::new(), expiry, kept, ended: false };
            Ok(Lease { inner: Arc::new(Inner { store, id, file, began, state: Mutex::new(state) }) })
        })
        .await
    }
}

impl Lease {
    /// Its name among the leases of the store.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    pub(crate) fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The generation of the image list when it was made.
    pub(crate) fn began(&self) -> i64 {
        self.inner.began
    }

    /// Holds one thing more. As [`hold_all`](Self::hold_all).
    ///
    /// # Errors
    ///
    /// As [`hold_all`](Self::hold_all).
    pub async fn hold(&self, resource: &Resource) -> Result<()> {
        self.hold_all(std::slice::from_ref(resource)).await
    }

    /// Holds more things, in one step. Those that it holds already cost nothing.
    ///
    /// An expiring lease is also renewed, when half of its time is over.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseGone`] if it was released, [`Error::Database`], [`Error::Io`]. It holds none of them then.
    pub async fn hold_all(&self, resources: &[Resource]) -> Result<()> {
        let (new, renewed, expires) = {
            let state = self.inner.state();
            let new: Vec<_> = resources.iter().filter(|it| !state.held.contains(it)).cloned().collect();
            let renewed = state.expiry.filter(Expiry::is_half_over).map(|it| Expiry::after(it.after));
            (new, renewed, state.expiry.is_some())
        };
        if new.is_empty() && renewed.is_none() {
            return Ok(());
        }
        let this = self.clone();
        gate::inside(self.inner.store.folder(), move || {
            let Inner { store, id, .. } = &*this.inner;
            let insert = |it: &Transaction<'_>| {
                if !this.inner.is_there(it)? {
                    return Ok(false);
                }
                if let Some(expiry) = renewed {
                    set_expiry(it, id, expiry)?;
                }
                let mut insert = it.prepare_cached(
                    "INSERT OR IGNORE INTO resources (lease, kind, driver, name) VALUES (?1, ?2, ?3, ?4)",
                )?;
                for [kind, driver, name] in new.iter().map(Resource::columns) {
                    insert.execute([id, kind, driver, name])?;
                }
                Ok(true)
            };
            let held = match expires {
                true => store.write("hold content", insert),
                false => store.relaxed("hold content", insert),
            }?;
            if !held {
                return Err(Error::LeaseGone { id: id.clone() });
            }
            let mut state = this.inner.state();
            state.expiry = renewed.or(state.expiry);
            state.held.extend(new);
            Ok(())
        })
        .await
    }

    /// Lets it expire this long from now, and no earlier or later.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseGone`] if it was released, [`Error::Database`].
    pub async fn renew(&self, expires: Duration) -> Result<()> {
        self.set_expiry(expires, false).await
    }

    /// Lets it outlive its handle and this process, until it expires this long from now.
    ///
    /// Whoever has a handle still has it; dropping it no longer releases the lease.
    ///
    /// # Errors
    ///
    /// [`Error::LeaseGone`] if it was released, [`Error::Database`].
    pub async fn keep(&self, expires: Duration) -> Result<()> {
        self.set_expiry(expires, true).await
    }

    /// Ends the lease now, for all clones of the handle. Ending it twice is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], [`Error::Io`].
    pub async fn release(&self) -> Result<()> {
        let this = self.clone();
        blocking(move || this.inner.end()).await
    }

    async fn set_expiry(&self, expires: Duration, keep: bool) -> Result<()> {
        let this = self.clone();
        blocking(move || {
            let Inner { store, id, .. } = &*this.inner;
            let expiry = Expiry::after(expires);
            let done = store.write("renew a lease", |it| {
                if !this.inner.is_there(it)? {
                    return Ok(false);
                }
                if keep {
                    it.execute("UPDATE leases SET kept = 1 WHERE id = ?1", [id])?;
                }
                set_expiry(it, id, expiry)
            })?;
            if !done {
                return Err(Error::LeaseGone { id: id.clone() });
            }
            let mut state = this.inner.state();
            state.expiry = Some(expiry);
            state.kept |= keep;
            Ok(())
        })
        .await
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_there(&self, transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
        let statement = "SELECT 1 FROM leases WHERE id = ?1";
        Ok(!self.state().ended && transaction.prepare_cached(statement)?.exists([&self.id])?)
    }

    /// The order matters: the file stays locked until nothing of the lease is left.
    fn end(&self) -> Result<()> {
        let ended = self.store.relaxed("release a lease", |it| {
            Ok(!std::mem::replace(&mut self.state().ended, true) && delete(it, &self.id)?)
        })?;
        match ended {
            true => file::remove(self.store.folder(), &self.id),
            false => Ok(()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.state().kept
            && let Err(error) = self.end()
        {
            // Nothing is lost: it is dead, and the next collection finds it.
            tracing::warn!(lease = self.id, %error, "cannot release a lease");
        }
        // Not left to closing the file: a child process that is just being started has it, too.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(lease = self.id, %error, "cannot unlock a lease");
        }
    }
}

/// Makes a lease, or takes over one that still protects. Gives whether it outlives its handle.
fn insert(
    transaction: &Transaction<'_>,
    id: &str,
    expiry: Option<Expiry>,
    labels: &BTreeMap<String, String>,
) -> rusqlite::Result<bool> {
    let found = "SELECT expires, kept FROM leases WHERE id = ?1";
    let found: Option<(Option<i64>, bool)> =
        transaction.query_row(found, [id], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let kept = match found {
        Some((Some(expires), kept)) if time(expires) > SystemTime::now() => kept,
        // Its process died. What it held may be gone.
        Some(_) => {
            delete(transaction, id)?;
            false
        }
        None => false,
    };
    let statement = "INSERT INTO leases (id, created, labels) VALUES (?1, ?2, ?3)
        ON CONFLICT (id) DO UPDATE SET labels = json_patch(labels, excluded.labels)";
    let labels = serde_json::to_string(labels).expect("texts can always be serialised");
    transaction.execute(statement, params![id, now(), labels])?;
    if let Some(expiry) = expiry {
        set_expiry(transaction, id, expiry)?;
    }
    Ok(kept)
}

fn set_expiry(transaction: &Transaction<'_>, id: &str, expiry: Expiry) -> rusqlite::Result<bool> {
    let statement = "UPDATE leases SET expires = ?2 WHERE id = ?1";
    transaction.prepare_cached(statement)?.execute(params![id, millis(expiry.at)]).map(|rows| rows > 0)
}

/// Deletes a lease and all that it holds. Returns whether it was there.
pub(super) fn delete(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<bool> {
    transaction.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([id]).map(|rows| rows > 0)
}

/// A name that no other lease has.
fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{:x}-{:x}-{count:x}", now(), process::id())
}
