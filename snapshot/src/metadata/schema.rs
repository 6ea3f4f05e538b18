use std::{fs::File, path::Path, time::Duration};

use rusqlite::{Connection, TransactionBehavior};

use super::plain;
use crate::{Error, Result};

const VERSION: i64 = 2;

const FIRST: &str = "
    CREATE TABLE snapshots (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT UNIQUE,
        parent INTEGER,
        kind INTEGER NOT NULL DEFAULT 0,
        created INTEGER NOT NULL DEFAULT 0,
        updated INTEGER NOT NULL DEFAULT 0,
        labels TEXT NOT NULL DEFAULT '{}',
        inodes INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX snapshots_parent ON snapshots (parent);";

/// `flat` is the id of a tree without a name that shows all of a snapshot.
const SECOND: &str = "
    ALTER TABLE snapshots ADD COLUMN flat INTEGER;
    CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);";

/// Before the second version, all overlays were root's.
const SETTINGS_OF_FIRST: &str = "INSERT INTO settings VALUES ('xattrs', 'trusted');";

/// Opens or creates the database, and brings it to our version.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let fail = |source| Error::Database { op: "open", path: path.to_owned(), source: plain(source) };
    // SQLite does not wait when two switch a new database to WAL; we do, until this function ends.
    let folder = path.parent().unwrap_or(Path::new("."));
    let lock = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    let _lock = lock.map_err(|source| Error::Io { op: "lock", path: folder.to_owned(), source })?;
    let mut connection = Connection::open(path).map_err(fail)?;
    connection.busy_timeout(Duration::from_secs(30)).map_err(fail)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    let version: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    if version > VERSION {
        return Err(Error::Newer { path: path.to_owned(), version, known: VERSION });
    }
    let steps: &[&str] = match version {
        0 => &[FIRST, SECOND],
        1 => &[SECOND, SETTINGS_OF_FIRST],
        _ => &[],
    };
    for step in steps {
        transaction.execute_batch(step).map_err(fail)?;
    }
    transaction.pragma_update(None, "user_version", VERSION).map_err(fail)?;
    transaction.commit().map_err(fail)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Metadata;

    #[test]
    fn metadata_of_a_newer_version_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metadata.db");
        let newer = Connection::open(&path).expect("a database");
        newer.pragma_update(None, "user_version", VERSION + 1).expect("a version");

        let err = Metadata::open(&path).expect_err("it is newer");

        assert!(err.to_string().ends_with("has version 3, this program knows 2: upgrade it"), "{err}");
    }

    #[test]
    fn metadata_of_the_first_version_is_kept() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metadata.db");
        let first = Connection::open(&path).expect("a database");
        first.execute_batch(FIRST).expect("the first version");
        let snapshot = "INSERT INTO snapshots (name, kind) VALUES ('old', 3); PRAGMA user_version = 1;";
        first.execute_batch(snapshot).expect("a snapshot");
        drop(first);

        let metadata = Metadata::open(&path).expect("it is brought to our version");

        assert_eq!(metadata.find("old").expect("a look").map(|row| row.flat), Some(None));
    }
}
