use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use oci_spec::image::Descriptor;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{Error, Result};

/// The version of the tables below.
const VERSION: i64 = 1;

const TABLES: &str = "
    CREATE TABLE images (
        name    TEXT PRIMARY KEY,
        target  TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT;
    PRAGMA user_version = 1;
";

/// The list of images: which name stands for which content.
///
/// A SQLite database that several processes may use at once. Calls block on the disk, and are durable when they return.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// An image in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The name, as the resolver gave it.
    pub name: String,
    /// What it stands for: a manifest or an index.
    pub target: Descriptor,
    /// When the name was first recorded.
    pub created: SystemTime,
    /// When it was last recorded.
    pub updated: SystemTime,
}

impl Store {
    /// Opens a database, and creates it if it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Database`], and [`Error::TooNew`] if a newer version of this library wrote it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let failed = |source| Error::Database { op: "open tables", path: path.clone(), source };
        // SQLite does not wait when two switch a new database to WAL; we do, until this function ends.
        let folder = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let lock = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
        let _lock = lock.map_err(|source| Error::Io { op: "lock", path: folder.to_owned(), source })?;
        let mut connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(30)).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        let version = migrate(&mut connection).map_err(failed)?;
        if version > VERSION {
            return Err(Error::TooNew { path, version });
        }
        Ok(Self { path, connection: Mutex::new(connection) })
    }

    /// Records what a name stands for, in the place of what it stood for before.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn put(&self, name: &str, target: &Descriptor) -> Result<()> {
        let target = serde_json::to_string(target).expect("a descriptor can always be serialised");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let statement = "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, ?3, ?3)
            ON CONFLICT (name) DO UPDATE SET target = excluded.target, updated = excluded.updated";
        self.run("record an image", |it| it.execute(statement, params![name, target, now])).map(drop)
    }

    /// What a name stands for; `None` if it is not in the list.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn get(&self, name: &str) -> Result<Option<Record>> {
        let statement = "SELECT name, target, created, updated FROM images WHERE name = ?1";
        self.run("look up an image", |it| it.query_row(statement, [name], record).optional())
    }

    /// All images, by name.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn list(&self) -> Result<Vec<Record>> {
        let statement = "SELECT name, target, created, updated FROM images ORDER BY name";
        self.run("list images", |it| it.prepare_cached(statement)?.query_map([], record)?.collect())
    }

    /// Takes a name off the list. Returns whether it was there. The content stays.
    ///
    /// # Errors
    ///
    /// [`Error::Database`].
    pub fn delete(&self, name: &str) -> Result<bool> {
        self.run("delete an image", |it| it.execute("DELETE FROM images WHERE name = ?1", [name]))
            .map(|rows| rows > 0)
    }

    fn run<T>(&self, op: &'static str, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&connection).map_err(|source| Error::Database { op, path: self.path.clone(), source })
    }
}

/// Brings the tables to our version, if they are older; gives the version they have.
fn migrate(connection: &mut Connection) -> rusqlite::Result<i64> {
    // Immediate: two processes that open a new database do this one after the other.
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version > 0 {
        return Ok(version);
    }
    transaction.execute_batch(TABLES)?;
    transaction.commit()?;
    Ok(VERSION)
}

fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    let target: String = row.get(1)?;
    let target = serde_json::from_str(&target).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, error.into())
    })?;
    let time = |column| {
        row.get(column)
            .map(|millis: i64| UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
    };
    Ok(Record { name: row.get(0)?, target, created: time(2)?, updated: time(3)? })
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use windlass_content::hash::sha256;

    use super::*;

    #[test]
    fn what_one_process_records_another_sees() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let path = dir.path().join("images.db");
        let (one, other) =
            (Store::open(&path).expect("it opens"), Store::open(&path).expect("it opens twice"));
        let target = |text: &[u8]| Descriptor::new(MediaType::ImageManifest, text.len() as u64, sha256(text));

        one.put("b", &target(b"old")).expect("it is recorded");
        one.put("a", &target(b"a")).expect("it is recorded");
        one.put("b", &target(b"new")).expect("it is replaced");

        let names: Vec<_> = other.list().expect("it lists").into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["a", "b"]);
        let found = other.get("b").expect("it looks").expect("it is there");
        assert_eq!(found.target, target(b"new"));
        assert!(other.delete("b").expect("it deletes"));
        assert!(!one.delete("b").expect("it looks"));
        assert_eq!(one.get("b").expect("it looks"), None);
    }

    #[test]
    fn a_list_of_a_newer_version_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let path = dir.path().join("images.db");
        Connection::open(&path)
            .and_then(|it| it.pragma_update(None, "user_version", 99))
            .expect("it can be written");
        assert!(matches!(Store::open(&path), Err(Error::TooNew { version: 99, .. })));
    }
}
