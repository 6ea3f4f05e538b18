//! The tables, and how those of an older version become ours.

use rusqlite::{Connection, TransactionBehavior};

/// The version of the tables that this library writes.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// Each step makes the next version of the one before it; the first makes version 1 of nothing.
///
/// A step that was released never changes.
const STEPS: [&str; 2] = [
    "
    CREATE TABLE images (
        name    TEXT PRIMARY KEY,
        target  TEXT NOT NULL,
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL
    ) STRICT;
    ",
    // Times are milliseconds since 1970. The generation is counted by triggers, so that no change goes past it. While
    // garbage is collected, what a lease held outlives it, as a resource of no lease.
    "
    ALTER TABLE images ADD COLUMN used INTEGER;
    ALTER TABLE images ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE images ADD COLUMN digest TEXT AS (json_extract(target, '$.digest'));
    CREATE INDEX images_by_digest ON images (digest, name);
    CREATE INDEX images_by_change ON images (changed);

    CREATE TABLE labels (
        image TEXT NOT NULL REFERENCES images (name) ON DELETE CASCADE,
        key   TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (image, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX labels_by_key ON labels (key, image);
    CREATE INDEX labels_by_value ON labels (key, value, image);

    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO counters VALUES ('generation', 1), ('collecting', 0);
    CREATE TRIGGER image_added AFTER INSERT ON images BEGIN
        UPDATE counters SET value = value + 1 WHERE name = 'generation';
        UPDATE images SET changed = (SELECT value FROM counters WHERE name = 'generation')
            WHERE name = new.name;
    END;
    CREATE TRIGGER image_changed AFTER UPDATE OF name, target ON images BEGIN
        UPDATE counters SET value = value + 1 WHERE name = 'generation';
        UPDATE images SET changed = (SELECT value FROM counters WHERE name = 'generation')
            WHERE name = new.name;
    END;
    CREATE TRIGGER image_deleted AFTER DELETE ON images BEGIN
        UPDATE counters SET value = value + 1 WHERE name = 'generation';
    END;

    CREATE TABLE leases (
        id      TEXT PRIMARY KEY,
        created INTEGER NOT NULL,
        expires INTEGER,
        kept    INTEGER NOT NULL DEFAULT 0,
        labels  TEXT NOT NULL DEFAULT '{}'
    ) STRICT;
    CREATE TABLE resources (
        seq    INTEGER PRIMARY KEY AUTOINCREMENT,
        lease  TEXT REFERENCES leases (id) ON DELETE CASCADE,
        kind   TEXT NOT NULL,
        driver TEXT NOT NULL,
        name   TEXT NOT NULL,
        UNIQUE (lease, kind, driver, name)
    ) STRICT;
    CREATE TRIGGER lease_ended BEFORE DELETE ON leases
    WHEN (SELECT value FROM counters WHERE name = 'collecting') = 1 BEGIN
        UPDATE resources SET lease = NULL WHERE lease = old.id;
    END;
    ",
];

/// Brings the tables to our version, if they are older; gives the version they have.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<i64> {
    // Immediate: two processes that open the same database do this one after the other.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version >= VERSION {
        return Ok(version);
    }
    for step in &STEPS[usize::try_from(version).unwrap_or(0)..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(VERSION)
}
