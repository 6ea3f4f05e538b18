use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use oci_spec::image::Descriptor;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params, types::Type};

use crate::{Error, Result};

/// The schema that this version reads and writes.
const SCHEMA: u32 = 1;

/// How long a call waits for another process that is writing.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The names of images, and what they stand for, in a SQLite database.
///
/// Several processes may share it. Calls block on the disk for a moment; what a call wrote survives a power cut.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
}

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The normalised name.
    pub name: String,
    /// The root of the image: a manifest or an index.
    pub target: Descriptor,
    /// When the name was first recorded.
    pub created: SystemTime,
    /// When it was last recorded.
    pub updated: SystemTime,
}

impl Store {
    /// Opens the database, and creates it if it is missing. Its folder must exist.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] if a newer version wrote it, [`Error::Database`] if it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        connect(path)
            .map_err(|source| Error::Database { op: format!("open {}", path.display()), source })?
            .map(|connection| Self { connection: Mutex::new(connection) })
            .map_err(|found| Error::Schema { path: PathBuf::from(path), found, known: SCHEMA })
    }

    /// Records what a name stands for now. An older record is replaced; its time of creation stays.
    ///
    /// # Errors
    ///
    /// [`Error::Database`]; nothing has changed then.
    pub fn put(&self, name: &str, target: &Descriptor) -> Result<()> {
        let target = serde_json::to_string(target).expect("a descriptor has no map with other keys than text");
        let statement = "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, ?3, ?3)
            ON CONFLICT (name) DO UPDATE SET target = excluded.target, updated = excluded.updated";
        self.connection().execute(statement, params![name, target, now()]).map_err(cannot("record", name))?;
        Ok(())
    }

    /// What a name stands for.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if it cannot be read.
    pub fn get(&self, name: &str) -> Result<Option<Record>> {
        self.connection()
            .query_row("SELECT name, target, created, updated FROM images WHERE name = ?1", [name], record)
            .optional()
            .map_err(cannot("look up", name))
    }

    /// All names, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if they cannot be read.
    pub fn list(&self) -> Result<Vec<Record>> {
        let connection = self.connection();
        let list = || {
            connection
                .prepare("SELECT name, target, created, updated FROM images ORDER BY name")?
                .query_map([], record)?
                .collect::<rusqlite::Result<_>>()
        };
        list().map_err(cannot("list", "names"))
    }

    /// Forgets a name, and says whether it was there. Its content stays.
    ///
    /// # Errors
    ///
    /// [`Error::Database`]; nothing has changed then.
    pub fn delete(&self, name: &str) -> Result<bool> {
        let deleted =
            self.connection().execute("DELETE FROM images WHERE name = ?1", [name]).map_err(cannot("delete", name))?;
        Ok(deleted > 0)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("no call panics while it holds the connection")
    }
}

/// Opens the database with our schema, or gives the newer schema that it has.
fn connect(path: &Path) -> rusqlite::Result<Result<Connection, u32>> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match transaction.pragma_query_value(None, "user_version", |row| row.get(0))? {
        SCHEMA => {}
        0 => {
            transaction.execute_batch(
                "CREATE TABLE images (
                    name TEXT PRIMARY KEY,
                    target TEXT NOT NULL, -- the descriptor, as JSON
                    created INTEGER NOT NULL, -- nanoseconds since 1970
                    updated INTEGER NOT NULL
                ) STRICT, WITHOUT ROWID",
            )?;
            transaction.pragma_update(None, "user_version", SCHEMA)?;
        }
        newer => return Ok(Err(newer)),
    }
    transaction.commit()?;
    Ok(Ok(connection))
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let target: String = row.get(1)?;
    let target = serde_json::from_str(&target)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, Type::Text, error.into()))?;
    let time = |nanos: i64| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos.unsigned_abs());
    Ok(Record { name: row.get(0)?, target, created: time(row.get(2)?), updated: time(row.get(3)?) })
}

/// Nanoseconds since 1970; 0 if the clock stands before that.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn cannot(verb: &str, object: &str) -> impl FnOnce(rusqlite::Error) -> Error {
    let op = format!("{verb} {object}");
    |source| Error::Database { op, source }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::testing::descriptor;

    #[test]
    fn a_name_is_recorded_replaced_listed_and_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        let store = Store::open(dir.path().join("images.db")).expect("a new database");
        let (first, second) = (descriptor(MediaType::ImageManifest), descriptor(MediaType::ImageIndex));

        store.put("b", &first).expect("room");
        let created = store.get("b").expect("readable").expect("recorded").created;
        store.put("b", &second).expect("room");
        store.put("a", &first).expect("room");

        let list = store.list().expect("readable");
        assert_eq!(list.iter().map(|record| &*record.name).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((&list[1].target, list[1].created), (&second, created));
        assert!(list[1].updated >= created);
        assert_eq!((store.delete("b").expect("writable"), store.delete("b").expect("writable")), (true, false));
        assert_eq!(store.get("b").expect("readable"), None);
    }

    #[test]
    fn many_connections_share_a_database_from_its_first_moment() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("images.db");

        std::thread::scope(|scope| {
            for worker in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let store = Store::open(path).expect("others open it too");
                    for n in 0..5 {
                        let name = format!("{worker}-{n}");
                        store.put(&name, &descriptor(MediaType::ImageManifest)).expect("others write too");
                    }
                });
            }
        });

        assert_eq!(Store::open(&path).expect("it exists").list().expect("readable").len(), 40);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("images.db");
        Connection::open(&path).expect("new").pragma_update(None, "user_version", 9).expect("writable");

        let err = Store::open(&path).expect_err("it is newer").to_string();

        assert!(err.contains("schema 9, newer than 1"), "{err}");
    }
}
