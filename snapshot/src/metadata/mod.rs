//! Which snapshots there are, in SQLite: shared by all processes that use one root.

mod schema;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, TransactionBehavior, ffi, params};

use crate::{Commit, Error, Info, Kind, Result, Usage};

const COLUMNS: &str =
    "s.id, s.name, s.kind, s.created, s.updated, s.labels, s.inodes, s.bytes, s.parent, p.name, s.flat";

/// The table of snapshots. A row without a name is one that is being made, or whose files are still to be removed.
#[derive(Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    /// None once it is closed.
    connection: Mutex<Option<Connection>>,
}

/// One named snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) parent: Option<i64>,
    /// The tree that shows all of it, if there is one.
    pub(crate) flat: Option<i64>,
    pub(crate) info: Info,
    /// What it takes, once committed.
    pub(crate) usage: Usage,
}

impl Row {
    /// Refuses another parent than the one it was prepared on, as its tree holds that one's files.
    pub(crate) fn keeps(&self, parent: &str, driver: &'static str) -> Result<()> {
        if self.info.parent.as_deref() == Some(parent) {
            return Ok(());
        }
        let reason = format!("{:?} was not prepared on {parent:?}, and is a full copy", self.info.name);
        Err(Error::Unsupported { driver, op: "change the parent", reason })
    }
}

impl Metadata {
    /// Opens or creates the database.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), connection: Mutex::new(Some(schema::open(path)?)) })
    }

    /// Ends the use of the database: calls that need it fail from now on. Closing twice is fine.
    pub(crate) fn close(&self) -> Result<()> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = connection.take() else { return Ok(()) };
        // The last one to close it writes what is in the log to the database, and removes the log.
        open.close().map_err(|(_, source)| Error::Database {
            op: "close",
            path: self.path.clone(),
            source: plain(source),
        })
    }

    /// What was noted under a key when the root was made; notes it now if there is nothing yet.
    #[cfg(feature = "overlay")]
    pub(crate) fn setting(&self, key: &str, value: &str) -> Result<String> {
        self.write("note how this root is used", |db| {
            db.execute("INSERT OR IGNORE INTO settings VALUES (?1, ?2)", [key, value])?;
            Ok(db.query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| row.get(0))?)
        })
    }

    /// The snapshot of that name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Row>> {
        self.read("look up a snapshot", |db| Ok(find(db, name)?))
    }

    /// As [`find`](Self::find), with [`Error::NotFound`].
    pub(crate) fn get(&self, name: &str) -> Result<Row> {
        self.find(name)?.ok_or_else(|| missing(name))
    }

    /// The snapshot of that key, which can be mounted.
    pub(crate) fn active(&self, key: &str) -> Result<Row> {
        let row = self.get(key)?;
        if row.info.kind == Kind::Committed {
            return Err(Error::NotActive { name: key.to_owned() });
        }
        Ok(row)
    }

    /// The trees that make up a snapshot's, highest first: its own and those of its parents, down to one that shows all below it.
    #[cfg(feature = "overlay")]
    pub(crate) fn chain(&self, id: i64) -> Result<Vec<i64>> {
        self.read("follow the parents", |db| {
            let mut statement = db.prepare_cached(
                "WITH RECURSIVE chain(tree, next, depth) AS (
                    SELECT coalesce(flat, id), iif(flat IS NULL, parent, NULL), 0 FROM snapshots WHERE id = ?1
                    UNION ALL
                    SELECT coalesce(s.flat, s.id), iif(s.flat IS NULL, s.parent, NULL), depth + 1
                    FROM snapshots s JOIN chain ON s.id = chain.next
                ) SELECT tree FROM chain ORDER BY depth",
            )?;
            let ids = statement.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(ids)
        })
    }

    /// Takes ids for snapshots that are being made. Nobody sees them.
    pub(crate) fn reserve(&self, count: usize) -> Result<Vec<i64>> {
        self.write("reserve a snapshot", |db| {
            let mut insert = db.prepare_cached("INSERT INTO snapshots DEFAULT VALUES")?;
            Ok((0..count).map(|_| insert.insert([])).collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Gives reserved snapshots their keys: from now on they are there, all or none.
    pub(crate) fn publish(&self, ids: &[i64], keys: &[&str], kind: Kind, parent: Option<&str>) -> Result<()> {
        self.write("add a snapshot", |db| {
            let parent = parent.map(|name| committed(db, name)).transpose()?.map(|row| row.id);
            for (id, key) in ids.iter().zip(keys) {
                if find(db, key)?.is_some() {
                    return Err(Failure::Ours(Error::Exists { name: (*key).to_owned() }));
                }
                db.execute(
                    "UPDATE snapshots SET name = ?2, kind = ?3, parent = ?4, created = ?5, updated = ?5 WHERE id = ?1",
                    params![id, key, number(kind), parent, nanos(SystemTime::now())],
                )?;
            }
            Ok(())
        })
    }

    /// Replaces the labels.
    pub(crate) fn label(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<Info> {
        let text = serde_json::to_string(labels).expect("a map of strings is always JSON");
        self.write("label a snapshot", |db| {
            db.execute(
                "UPDATE snapshots SET labels = ?2, updated = ?3 WHERE name = ?1",
                params![name, text, nanos(SystemTime::now())],
            )?;
            Ok(find(db, name)?.ok_or_else(|| missing(name))?.info)
        })
    }

    /// Commits all or none, and gives the ids of what was discarded because its name was there.
    pub(crate) fn commit(
        &self,
        commits: &[Commit<'_>],
        usages: &[Usage],
        flats: &[Flat],
        check: Check,
    ) -> Result<Vec<i64>> {
        self.write("commit snapshots", |db| {
            let mut discarded = Vec::new();
            for (commit, usage) in commits.iter().zip(usages) {
                let row = find(db, commit.key)?.ok_or_else(|| missing(commit.key))?;
                if row.info.kind != Kind::Active {
                    return Err(Failure::Ours(Error::NotActive { name: commit.key.to_owned() }));
                }
                let flat = flats.iter().find(|flat| flat.key == commit.key);
                if find(db, commit.name)?.is_some_and(|other| other.id != row.id) {
                    forget(db, row.id)?;
                    discarded.push(row.id);
                    discarded.extend(flat.map(|flat| flat.id));
                    continue;
                }
                let parent = match commit.parent {
                    Some(name) => {
                        check(&row, name)?;
                        Some(committed(db, name)?.id)
                    }
                    None => row.parent,
                };
                if flat.is_some_and(|flat| Some(flat.parent) != parent) {
                    // Somebody removed the parent meanwhile, and made another of its name.
                    return Err(missing(commit.parent.unwrap_or(commit.name)).into());
                }
                db.execute(
                    "UPDATE snapshots SET name = ?2, kind = ?3, parent = ?4, updated = ?5, inodes = ?6, bytes = ?7,
                     flat = ?8 WHERE id = ?1",
                    params![
                        row.id,
                        commit.name,
                        number(Kind::Committed),
                        parent,
                        nanos(SystemTime::now()),
                        usage.inodes.cast_signed(),
                        usage.bytes.cast_signed(),
                        flat.map(|flat| flat.id),
                    ],
                )?;
            }
            Ok(discarded)
        })
    }

    /// Takes the name from a snapshot, and gives the ids whose files can go.
    pub(crate) fn remove(&self, name: &str) -> Result<Vec<i64>> {
        self.write("remove a snapshot", |db| {
            let row = find(db, name)?.ok_or_else(|| missing(name))?;
            let child: Option<String> = db
                .query_row(
                    "SELECT name FROM snapshots WHERE parent = ?1 AND name IS NOT NULL LIMIT 1",
                    [row.id],
                    |row| row.get(0),
                )
                .optional()?;
            if let Some(child) = child {
                return Err(Failure::Ours(Error::HasChildren { name: name.to_owned(), child }));
            }
            forget(db, row.id)?;
            Ok([row.id].into_iter().chain(row.flat).collect())
        })
    }

    /// Deletes the row of a snapshot whose files are gone. After a power cut it may be there again, and cleanup deletes it: so nobody
    /// waits for the disk.
    pub(crate) fn delete(&self, id: i64) -> Result<()> {
        let work = |db: &Connection| {
            db.execute("DELETE FROM snapshots WHERE id = ?1 AND name IS NULL", [id])?;
            Ok(())
        };
        self.transact("forget a snapshot", TransactionBehavior::Immediate, "NORMAL", work)
    }

    /// All named snapshots.
    pub(crate) fn all(&self) -> Result<Vec<Row>> {
        self.read("list the snapshots", |db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent
                 WHERE s.name IS NOT NULL ORDER BY s.id"
            );
            let mut statement = db.prepare_cached(&sql)?;
            let rows = statement.query_map([], read)?.collect::<rusqlite::Result<_>>()?;
            Ok(rows)
        })
    }

    /// The ids of rows without a name, which are not part of one with a name.
    pub(crate) fn nameless(&self) -> Result<Vec<i64>> {
        self.read("list the removed snapshots", |db| {
            let mut statement = db.prepare_cached(
                "SELECT id FROM snapshots WHERE name IS NULL AND id NOT IN
                 (SELECT flat FROM snapshots WHERE name IS NOT NULL AND flat IS NOT NULL)",
            )?;
            let ids = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            Ok(ids)
        })
    }

    fn read<T>(&self, op: &'static str, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T> {
        self.transact(op, TransactionBehavior::Deferred, "FULL", work)
    }

    fn write<T>(&self, op: &'static str, work: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T> {
        // Immediate, so that what is read in it is still true when it is written.
        self.transact(op, TransactionBehavior::Immediate, "FULL", work)
    }

    fn transact<T>(
        &self,
        op: &'static str,
        behavior: TransactionBehavior,
        synchronous: &str,
        work: impl FnOnce(&Connection) -> Result<T, Failure>,
    ) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = connection.as_mut() else {
            return Err(Error::Closed { path: self.path.clone() });
        };
        // It is FULL whenever nobody has the lock.
        let wait = |connection: &Connection, how| match synchronous {
            "FULL" => Ok(()),
            _ => connection.pragma_update(None, "synchronous", how),
        };
        let mut result = wait(connection, synchronous).map_err(Failure::from).and_then(|()| {
            let transaction = connection.transaction_with_behavior(behavior)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        if let Err(err) = wait(connection, "FULL") {
            result = Err(err.into());
        }
        result.map_err(|failure| match failure {
            Failure::Ours(err) => err,
            Failure::Sql(source) => Error::Database { op, path: self.path.clone(), source: plain(source) },
        })
    }
}

/// A tree that shows all of a snapshot, its parents included, made when it is committed: a row and a folder without a name.
#[derive(Debug)]
pub(crate) struct Flat {
    /// The key of the snapshot.
    pub(crate) key: String,
    pub(crate) id: i64,
    /// What the snapshot will be on top of.
    pub(crate) parent: i64,
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

/// Whether a snapshot may be given that parent at commit.
pub(crate) type Check = fn(&Row, &str) -> Result<()>;

enum Failure {
    Ours(Error),
    Sql(rusqlite::Error),
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        Self::Ours(err)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(err: rusqlite::Error) -> Self {
        Self::Sql(err)
    }
}

fn find(db: &Connection, name: &str) -> rusqlite::Result<Option<Row>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent WHERE s.name = ?1"
    );
    db.prepare_cached(&sql)?.query_row([name], read).optional()
}

fn committed(db: &Connection, name: &str) -> Result<Row, Failure> {
    let row = find(db, name)?.ok_or_else(|| missing(name))?;
    if row.info.kind == Kind::Committed {
        Ok(row)
    } else {
        Err(Error::NotCommitted { name: name.to_owned() }.into())
    }
}

fn forget(db: &Connection, id: i64) -> rusqlite::Result<usize> {
    db.execute("UPDATE snapshots SET name = NULL, parent = NULL WHERE id = ?1", [id])
}

fn missing(name: &str) -> Error {
    Error::NotFound { name: name.to_owned() }
}

fn read(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let labels: String = row.get(5)?;
    let labels = serde_json::from_str(&labels).map_err(|err| {
        rusqlite::Error::FromSqlConversionFailure(5, rusqlite::types::Type::Text, err.into())
    })?;
    let kind = match row.get::<_, i64>(2)? {
        1 => Kind::Active,
        2 => Kind::View,
        3 => Kind::Committed,
        other => return Err(rusqlite::Error::IntegralValueOutOfRange(2, other)),
    };
    Ok(Row {
        id: row.get(0)?,
        parent: row.get(8)?,
        flat: row.get(10)?,
        info: Info {
            name: row.get(1)?,
            parent: row.get(9)?,
            kind,
            created: time(row.get(3)?),
            updated: time(row.get(4)?),
            labels,
        },
        usage: Usage {
            inodes: row.get::<_, i64>(6)?.cast_unsigned(),
            bytes: row.get::<_, i64>(7)?.cast_unsigned(),
        },
    })
}

fn number(kind: Kind) -> i64 {
    match kind {
        Kind::Active => 1,
        Kind::View => 2,
        Kind::Committed => 3,
    }
}

fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn time(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_made_is_not_seen_and_its_id_is_never_used_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let metadata = Metadata::open(&dir.path().join("metadata.db")).expect("a database");

        let ids = metadata.reserve(2).expect("two ids");
        assert_eq!(metadata.all().expect("a list").len(), 0);
        assert_eq!(metadata.nameless().expect("a list"), ids);
        ids.iter().for_each(|id| metadata.delete(*id).expect("deleted"));

        assert!(metadata.reserve(1).expect("an id")[0] > ids[1]);
    }

    #[cfg(feature = "overlay")]
    #[test]
    fn a_second_tree_is_left_over_before_its_snapshot_has_a_name_and_after_it_lost_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let metadata = Metadata::open(&dir.path().join("metadata.db")).expect("a database");
        let commit = |key, name, flats: &[Flat]| {
            let commit = Commit::new(key, name, None);
            metadata.commit(&[commit], &[Usage::default()], flats, |_, _| Ok(()))
        };
        let ids = metadata.reserve(4).expect("four ids");
        let [low, high, flat, stray] = *ids else { panic!("four were asked for: {ids:?}") };
        metadata.publish(&[low], &["low-key"], Kind::Active, None).expect("a free key");
        commit("low-key", "low", &[]).expect("it is active");
        metadata.publish(&[high], &["high-key"], Kind::Active, Some("low")).expect("a free key");
        assert_eq!(metadata.nameless().expect("a list"), [flat, stray]);

        let tree = |parent| [Flat { key: "high-key".to_owned(), id: flat, parent }];
        let moved = commit("high-key", "high", &tree(stray));
        commit("high-key", "high", &tree(low)).expect("it is active");

        assert!(matches!(moved, Err(Error::NotFound { .. })), "the tree shows another parent: {moved:?}");
        assert_eq!(metadata.nameless().expect("a list"), [stray]);
        assert_eq!(metadata.chain(high).expect("a chain"), [flat]);
        assert_eq!(metadata.remove("high").expect("it has no child"), [high, flat]);
        assert_eq!(metadata.nameless().expect("a list"), [high, flat, stray]);
    }
}
