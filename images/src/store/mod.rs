mod answers;
mod filter;
mod migrate;
mod record;

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oci_spec::image::{Descriptor, Digest};
use rusqlite::{
    Connection, OptionalExtension, Transaction, TransactionBehavior, ffi, params, params_from_iter,
};

pub(crate) use self::record::json;
pub use self::{
    answers::{Create, Found, Swap, Update},
    filter::Filter,
    record::Record,
};
use self::{
    migrate::{VERSION, migrate},
    record::{COLUMNS, record},
};
use crate::{Error, Result};

/// The list of images: which name stands for which content; and the [leases](Self::lease) on content.
///
/// A SQLite database that several processes may use at once. Cheap to clone; clones are the same store. What is not
/// `async` blocks on the disk for a moment, and is durable when it returns.
///
/// Whoever records a target holds a lease on it, from before they looked whether it is there until after it is
/// recorded. Otherwise a garbage collection may take it in between: see [`gc`](crate::gc).
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    folder: PathBuf,
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens a database, and creates it if it is missing. Tables of an older version are brought to ours.
    ///
    /// Beside it are the folder `leases` and the files `gc.*`: they belong to it.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], and [`Error::TooNew`] if a newer version of this library wrote it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let failed =
            |source| Error::Database { op: "open tables", path: path.clone(), source: plain(source) };
        // SQLite does not wait when two switch a new database to WAL; we do, until this function ends.
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let lock = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
        let _lock = lock.map_err(|source| Error::Io { op: "lock", path: folder.to_owned(), source })?;
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(30)).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        connection.set_prepared_statement_cache_capacity(64);
        let version = migrate(&mut connection).map_err(failed)?;
        if version > VERSION {
            return Err(Error::TooNew { path, version });
        }
        let folder = folder.to_owned();
        Ok(Self { inner: Arc::new(Inner { path, folder, connection: Mutex::new(connection) }) })
    }

    /// Records what a new name stands for. A name that is there stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn create(
        &self,
        name: &str,
        target: &Descriptor,
        labels: &BTreeMap<String, String>,
    ) -> Result<Create> {
        self.write("record an image", |it| {
            if let Some(there) = find(it, name)? {
                return Ok(Create::Exists(there.into()));
            }
            put(it, name, target)?;
            set_labels(it, name, labels)?;
            Ok(Create::Created)
        })
    }

    /// Records what a name stands for, in the place of what it stood for before. Its labels stay.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn put(&self, name: &str, target: &Descriptor) -> Result<()> {
        self.write("record an image", |it| put(it, name, target))
    }

    /// Records that `name` stands for what `source` stands for now, with its labels, in one step: no lease is needed.
    /// What `name` had before is replaced. Returns whether `source` is there.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn tag(&self, source: &str, name: &str) -> Result<bool> {
        self.write("tag an image", |it| {
            let Some(source) = find(it, source)? else { return Ok(false) };
            put(it, name, &source.target)?;
            it.prepare_cached("DELETE FROM labels WHERE image = ?1")?.execute([name])?;
            set_labels(it, name, &source.labels)?;
            Ok(true)
        })
    }

    /// Changes what `update` names, and nothing else. Gives the image as it is then; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn update(&self, name: &str, update: &Update) -> Result<Option<Record>> {
        self.write("update an image", |it| {
            if find(it, name)?.is_none() {
                return Ok(None);
            }
            for key in &update.remove_labels {
                it.prepare_cached("DELETE FROM labels WHERE image = ?1 AND key = ?2")?
                    .execute([name, key])?;
            }
            set_labels(it, name, &update.set_labels)?;
            match &update.target {
                Some(target) => put(it, name, target)?,
                None => {
                    it.prepare_cached("UPDATE images SET updated = ?2 WHERE name = ?1")?
                        .execute(params![name, now()])?;
                }
            }
            find(it, name)
        })
    }

    /// Lets a name stand for `target`, if it stands for `expected` until then.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn swap(&self, name: &str, expected: &Digest, target: &Descriptor) -> Result<Swap> {
        self.write("swap an image", |it| match find(it, name)? {
            None => Ok(Swap::Missing),
            Some(there) if there.target.digest() != expected => Ok(Swap::Differs(there.into())),
            Some(_) => put(it, name, target).map(|()| Swap::Swapped),
        })
    }

    /// Notes that an image was pulled, unpacked or run just now. Returns whether it is there.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn touch(&self, name: &str) -> Result<bool> {
        // A power cut may make us forget it: it only orders what a policy drops.
        self.relaxed("note a use of an image", |it| {
            it.prepare_cached("UPDATE images SET used = ?2 WHERE name = ?1")?.execute(params![name, now()])
        })
        .map(|rows| rows > 0)
    }

    /// What a name stands for; `None` if it is not in the list.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn get(&self, name: &str) -> Result<Option<Record>> {
        self.run("look up an image", |it| find(it, name))
    }

    /// The images that fit, by name.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn list(&self, filter: &Filter) -> Result<Vec<Record>> {
        let (query, values) = filter.query(COLUMNS);
        self.run("list images", |it| {
            it.prepare_cached(&query)?.query_map(params_from_iter(values), record)?.collect()
        })
    }

    /// The target whose digest starts with `prefix`: `sha256:0123`, or only `0123`, of any algorithm.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn find_digest(&self, prefix: &str) -> Result<Found> {
        let prefixes = match prefix.contains(':') {
            true => vec![prefix.to_owned()],
            false => ["sha256", "sha384", "sha512"].map(|it| format!("{it}:{prefix}")).to_vec(),
        };
        let statement = "SELECT DISTINCT digest FROM images INDEXED BY images_by_digest
            WHERE digest >= ?1 AND digest < ?2 ORDER BY digest LIMIT 2";
        let mut found: Vec<String> = Vec::new();
        self.run("find a digest", |it| {
            for prefix in &prefixes {
                let end = filter::successor(prefix).unwrap_or_default();
                let rows = it
                    .prepare_cached(statement)?
                    .query_map([prefix, &end], |row| row.get(0))?
                    .collect::<rusqlite::Result<Vec<_>>>()?;
                found.extend(rows);
            }
            Ok(())
        })?;
        let found: Vec<Digest> = found.iter().filter_map(|it| it.parse().ok()).collect();
        Ok(match &found[..] {
            [] => Found::Nothing,
            [one] => Found::One(one.clone()),
            _ => Found::Several,
        })
    }

    /// Takes a name off the list. Returns whether it was there. The content stays, until a garbage collection.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn delete(&self, name: &str) -> Result<bool> {
        self.write("delete an image", |it| it.execute("DELETE FROM images WHERE name = ?1", [name]))
            .map(|rows| rows > 0)
    }

    /// Takes a name off the list, if it stands for this target. Returns whether it did.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn delete_target(&self, name: &str, target: &Digest) -> Result<bool> {
        let statement = "DELETE FROM images WHERE name = ?1 AND digest = ?2";
        self.write("delete an image", |it| it.execute(statement, [name, target.as_ref()]))
            .map(|rows| rows > 0)
    }

    /// A number that grows with every name that is added, deleted or given another target.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn generation(&self) -> Result<u64> {
        self.run("read the generation", generation).map(i64::unsigned_abs)
    }

    /// The folder of the database, for the locks that go with it.
    pub(crate) fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// Reads.
    pub(crate) fn run<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.named(op, work(&self.connection()))
    }

    /// Changes something in one step, which is durable then.
    pub(crate) fn write<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        self.named(op, transact(&mut self.connection(), work))
    }

    /// As [`write`](Self::write), but a power cut (not a crash) may undo it.
    pub(crate) fn relaxed<T>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = self.connection();
        let relaxed = || {
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            let answer = transact(&mut connection, work);
            connection.pragma_update(None, "synchronous", "FULL")?;
            answer
        };
        self.named(op, relaxed())
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.inner.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named<T>(&self, op: &'static str, answer: rusqlite::Result<T>) -> Result<T> {
        answer.map_err(|source| Error::Database { op, path: self.inner.path.clone(), source: plain(source) })
    }
}

/// SQLite says no more than that it is an I/O error when a full disk has no room for the file that its processes share.
fn plain(error: rusqlite::Error) -> rusqlite::Error {
    match error.sqlite_error() {
        Some(it) if it.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
            let full = ffi::Error::new(ffi::SQLITE_FULL);
            rusqlite::Error::SqliteFailure(full, Some("the disk is full".into()))
        }
        _ => error,
    }
}

/// Now, as the tables have it: in milliseconds since 1970.
pub(crate) fn now() -> i64 {
    millis(SystemTime::now())
}

pub(crate) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time, as [`now`] wrote it.
pub(crate) fn time(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The generation of the image list.
pub(crate) fn generation(connection: &Connection) -> rusqlite::Result<i64> {
    let statement = "SELECT value FROM counters WHERE name = 'generation'";
    connection.prepare_cached(statement)?.query_row([], |row| row.get(0))
}

fn transact<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    // Immediate: it waits for other writers now, when nothing has been read that could be outdated.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let answer = work(&transaction)?;
    transaction.commit()?;
    Ok(answer)
}

fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<Record>> {
    let statement = format!("SELECT {COLUMNS} FROM images i WHERE i.name = ?1");
    connection.prepare_cached(&statement)?.query_row([name], record).optional()
}

fn put(transaction: &Transaction<'_>, name: &str, target: &Descriptor) -> rusqlite::Result<()> {
    let target = serde_json::to_string(target).expect("a descriptor can always be serialised");
    let statement = "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, ?3, ?3)
        ON CONFLICT (name) DO UPDATE SET target = excluded.target, updated = excluded.updated";
    transaction.prepare_cached(statement)?.execute(params![name, target, now()]).map(drop)
}

fn set_labels(
    transaction: &Transaction<'_>,
    name: &str,
    labels: &BTreeMap<String, String>,
) -> rusqlite::Result<()> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO labels (image, key, value) VALUES (?1, ?2, ?3)
            ON CONFLICT (image, key) DO UPDATE SET value = excluded.value",
    )?;
    labels.iter().try_for_each(|(key, value)| statement.execute([name, key, value]).map(drop))
}
