//! What a collection notes, on the disk: it may be more than fits into memory.

use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use oci_spec::image::Digest;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::key::Key;
use crate::{Error, Result, gate::blocking};

/// How much of it is in memory at most, in KiB.
const CACHE: i64 = 128;
/// How much is read or written at once.
pub(super) const PAGE: usize = 1000;

/// What is marked, what is still to be looked into, and what may have to go.
///
/// Cheap to clone; clones are the same. While it is small it stays in memory.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
}

/// Something to mark with all that is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) digest: Digest,
    /// In bytes; `None` if one has to look.
    pub(super) size: Option<u64>,
    /// Whether something may be below it.
    pub(super) deep: bool,
}

/// A blob that was there, and is not marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Where it is among the others.
    pub(super) row: i64,
    pub(super) digest: Digest,
    /// In bytes.
    pub(super) size: u64,
}

impl Marks {
    /// Nothing yet, with a file in this folder that goes when it is dropped, or its process dies.
    ///
    /// Only one may be made at a time. The file has a name for a moment: if the process dies just then, it is left for
    /// the next call to remove.
    pub(super) async fn on_disk(folder: &Path) -> Result<Self> {
        let path = folder.join("gc.marks");
        Self::open(path, |path| {
            let failed = |op| move |source| Error::Io { op, path: path.to_owned(), source };
            remove(path).map_err(failed("remove"))?;
            // SQLite would not tell a full disk from others.
            OpenOptions::new().write(true).create_new(true).open(path).map_err(failed("create"))?;
            let connection = Connection::open(path).and_then(|it| tables(&it).map(|()| it));
            remove(path).map_err(failed("remove"))?;
            connection.map_err(|source| database("begin to note what is needed", path, source))
        })
        .await
    }

    /// Nothing yet, and never on the disk.
    pub(super) async fn in_memory() -> Result<Self> {
        Self::open(PathBuf::from(":memory:"), |path| {
            let connection = Connection::open_in_memory().and_then(|it| tables(&it).map(|()| it));
            connection.map_err(|source| database("begin to note what is needed", path, source))
        })
        .await
    }

    async fn open(
        path: PathBuf,
        open: impl FnOnce(&Path) -> Result<Connection> + Send + 'static,
    ) -> Result<Self> {
        blocking(move || {
            let connection = Arc::new(Mutex::new(open(&path)?));
            Ok(Self { connection, path })
        })
        .await
    }

    /// Marks nodes. Those that are deep, and were not yet looked into in this round, are [open](Self::take_open) then. So are the
    /// referrers of what was not marked before.
    pub(super) async fn mark(&self, nodes: Vec<Node>, round: u32) -> Result<()> {
        if nodes.is_empty() {
            return Ok(());
        }
        self.run("note what is needed", move |it| mark(it, nodes, round)).await
    }

    /// Marks what has nothing below it, and is no blob.
    pub(super) async fn mark_keys(&self, keys: Vec<Key>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        self.run("note what is needed", move |it| {
            let mut add = it.prepare_cached("INSERT OR IGNORE INTO marked (key, round) VALUES (?1, 0)")?;
            keys.iter().try_for_each(|key| add.execute([key.as_bytes()]).map(drop))
        })
        .await
    }

    /// Which of these are marked, in the same order.
    pub(super) async fn are_marked(&self, keys: Vec<Key>) -> Result<Vec<bool>> {
        self.run("look up what is needed", move |it| keys.iter().map(|key| is_marked(it, key)).collect())
            .await
    }

    /// Some of what is to be looked into, which is taken out. Nothing if nothing is left.
    pub(super) async fn take_open(&self, round: u32) -> Result<Vec<Node>> {
        self.run("look up what to look into", move |it| take_open(it, round)).await
    }

    /// Whether something is to be looked into.
    pub(super) async fn is_open(&self) -> Result<bool> {
        let statement = "SELECT EXISTS (SELECT 1 FROM open)";
        self.run("look up what to look into", |it| {
            it.prepare_cached(statement)?.query_row([], |row| row.get(0))
        })
        .await
    }

    /// Notes those of these blobs, with their sizes in bytes, that are not marked.
    pub(super) async fn add_candidates(&self, blobs: Vec<(Digest, u64)>) -> Result<()> {
        self.run("note what is not needed", move |it| {
            let mut add = it.prepare_cached(
                "INSERT INTO candidates (key, size)
                    SELECT ?1, ?2 WHERE NOT EXISTS (SELECT 1 FROM marked WHERE key = ?1)",
            )?;
            // In the order of the keys, neighbours are found where the one before was.
            let mut blobs: Vec<_> = blobs.iter().map(|(digest, size)| (Key::blob(digest), size)).collect();
            blobs.sort_unstable();
            blobs.iter().try_for_each(|(key, size)| {
                add.execute(params![key.as_bytes(), size.cast_signed()]).map(drop)
            })
        })
        .await
    }

    /// The first `most` candidates behind `after` that are not marked.
    pub(super) async fn candidates(&self, after: i64, most: usize) -> Result<Vec<Candidate>> {
        self.run("look up what is not needed", move |it| {
            it.prepare_cached(
                "SELECT row, key, size FROM candidates c
                    WHERE row > ?1 AND NOT EXISTS (SELECT 1 FROM marked m WHERE m.key = c.key)
                    ORDER BY row LIMIT ?2",
            )?
            .query_map(params![after, most.cast_signed()], |row| {
                let (key, size) = (Key::of_bytes(row.get(1)?), row.get::<_, i64>(2)?);
                Ok(Candidate { row: row.get(0)?, digest: key.digest(), size: size.cast_unsigned() })
            })?
            .collect()
        })
        .await
    }

    /// Notes blobs that are about others: each with its subject first. They are marked when their subject is; now, if it is
    /// already.
    pub(super) async fn add_referrers(&self, referrers: Vec<(Digest, Digest)>, round: u32) -> Result<()> {
        self.run("note what is about others", move |it| {
            let mut nodes = Vec::new();
            for (subject, referrer) in referrers {
                let subject = Key::blob(&subject);
                if is_marked(it, &subject)? {
                    nodes.push(Node { digest: referrer, size: None, deep: true });
                } else {
                    it.prepare_cached("INSERT OR IGNORE INTO referrers (subject, referrer) VALUES (?1, ?2)")?
                        .execute([subject.as_bytes(), Key::blob(&referrer).as_bytes()])?;
                }
            }
            mark(it, nodes, round)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        op: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        blocking(move || {
            let connection = this.connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&connection).map_err(|source| database(op, &this.path, source))
        })
        .await
    }
}

/// Whether the disk has no room for marks.
pub(super) fn is_full(error: &Error) -> bool {
    match error {
        Error::Database { source, .. } => source.sqlite_error_code() == Some(ErrorCode::DiskFull),
        Error::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
        _ => false,
    }
}

fn database(op: &'static str, path: &Path, source: rusqlite::Error) -> Error {
    Error::Database { op, path: path.to_owned(), source }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Nothing of this has to survive anything. All is one transaction that never ends, so that nothing is written but what does not
/// fit into the cache.
fn tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "journal_mode", "OFF")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -CACHE)?;
    connection.execute_batch(
        "BEGIN EXCLUSIVE;
        -- With the last round in which it was looked into; 0 if it never was.
        CREATE TABLE marked (key BLOB PRIMARY KEY, round INTEGER NOT NULL) WITHOUT ROWID;
        CREATE TABLE open (row INTEGER PRIMARY KEY, key BLOB NOT NULL, size INTEGER);
        CREATE TABLE candidates (row INTEGER PRIMARY KEY, key BLOB NOT NULL, size INTEGER NOT NULL);
        -- Only of subjects that are not marked.
        CREATE TABLE referrers (subject BLOB, referrer BLOB, PRIMARY KEY (subject, referrer)) WITHOUT ROWID;",
    )
}

fn is_marked(it: &Connection, key: &Key) -> rusqlite::Result<bool> {
    it.prepare_cached("SELECT 1 FROM marked WHERE key = ?1")?
        .query_row([key.as_bytes()], |_| Ok(()))
        .optional()
        .map(|found| found.is_some())
}

fn mark(it: &Connection, nodes: Vec<Node>, round: u32) -> rusqlite::Result<()> {
    let mut nodes: Vec<_> = nodes.into_iter().map(|it| (Key::blob(&it.digest), !it.deep, it.size)).collect();
    // In the order of the keys, neighbours are found where the one before was. What is deep comes before itself as a leaf.
    nodes.sort_unstable();
    nodes.dedup_by(|next, before| next.0 == before.0);
    let mut add = it.prepare_cached(
        "INSERT INTO marked (key, round) VALUES (?1, ?2)
            ON CONFLICT (key) DO UPDATE SET round = excluded.round WHERE round < excluded.round",
    )?;
    let mut open = it.prepare_cached("INSERT INTO open (key, size) VALUES (?1, ?2)")?;
    let referrers = has_referrers(it)?;
    for (key, leaf, size) in nodes {
        if add.execute(params![key.as_bytes(), if leaf { 0 } else { round }])? == 0 {
            continue;
        }
        if !leaf {
            open.execute(params![key.as_bytes(), size.map(u64::cast_signed)])?;
        } else if referrers {
            mark_referrers(it, &key, round)?;
        }
    }
    Ok(())
}

fn take_open(it: &Connection, round: u32) -> rusqlite::Result<Vec<Node>> {
    // The newest first: what is below something is looked into before what is beside it, of which there may be more.
    let taken = it
        .prepare_cached("SELECT row, key, size FROM open ORDER BY row DESC LIMIT ?1")?
        .query_map([PAGE.cast_signed()], |row| Ok((row.get(0)?, Key::of_bytes(row.get(1)?), row.get(2)?)))?
        .collect::<rusqlite::Result<Vec<(i64, Key, Option<i64>)>>>()?;
    let Some((last, ..)) = taken.last() else { return Ok(Vec::new()) };
    it.prepare_cached("DELETE FROM open WHERE row >= ?1")?.execute([last])?;
    if has_referrers(it)? {
        taken.iter().try_for_each(|(_, key, _)| mark_referrers(it, key, round))?;
    }
    let node = |(_, key, size): (i64, Key, Option<i64>)| Node {
        digest: key.digest(),
        size: size.map(i64::cast_unsigned),
        deep: true,
    };
    Ok(taken.into_iter().map(node).collect())
}

fn has_referrers(it: &Connection) -> rusqlite::Result<bool> {
    it.prepare_cached("SELECT EXISTS (SELECT 1 FROM referrers)")?.query_row([], |row| row.get(0))
}

/// Marks what is about a blob. The referrers of that follow when it is taken to be looked into.
fn mark_referrers(it: &Connection, subject: &Key, round: u32) -> rusqlite::Result<()> {
    let subject = subject.as_bytes();
    it.prepare_cached(
        "INSERT INTO open (key, size) SELECT referrer, NULL FROM referrers WHERE subject = ?1",
    )?
    .execute([subject])?;
    it.prepare_cached(
        "INSERT INTO marked (key, round) SELECT referrer, ?2 FROM referrers WHERE subject = ?1
            ON CONFLICT (key) DO UPDATE SET round = excluded.round",
    )?
    .execute(params![subject, round])?;
    it.prepare_cached("DELETE FROM referrers WHERE subject = ?1")?.execute([subject]).map(drop)
}

#[cfg(test)]
mod tests {
    use windlass_content::hash::sha256;

    use super::*;

    impl Marks {
        /// Answers as on a disk that is full when this many pages are written.
        pub(in super::super) async fn limit(&self, pages: i64) -> Result<()> {
            self.run("limit", move |it| it.pragma_update(None, "max_page_count", pages)).await
        }
    }

    fn digests(range: std::ops::Range<u32>) -> Vec<Digest> {
        range.map(|it| sha256(&it.to_le_bytes())).collect()
    }

    fn nodes(range: std::ops::Range<u32>, deep: bool) -> Vec<Node> {
        digests(range).into_iter().map(|digest| Node { digest, size: None, deep }).collect()
    }

    fn sorted(mut digests: Vec<Digest>) -> Vec<Digest> {
        digests.sort_by_key(Digest::to_string);
        digests
    }

    /// All that is to be looked into.
    async fn taken(marks: &Marks, round: u32) -> Vec<Digest> {
        let mut taken = Vec::new();
        loop {
            let page = marks.take_open(round).await.expect("it reads");
            if page.is_empty() {
                return sorted(taken);
            }
            taken.extend(page.into_iter().map(|it| it.digest));
        }
    }

    #[tokio::test]
    async fn what_is_larger_than_the_cache_is_all_found_again_and_leaves_no_file() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        fs::write(dir.path().join("gc.marks"), "left by a crash").expect("it is written");
        let marks = Marks::on_disk(dir.path()).await.expect("it opens");
        let (marked, others) = (0..20_000, 20_000..22_500);
        marks.mark(nodes(marked.clone(), true), 1).await.expect("it marks");
        let all = digests(marked.start..others.end).into_iter().map(|it| (it, 7)).collect();
        marks.add_candidates(all).await.expect("it adds");

        let keys = digests(0..others.end).iter().map(Key::blob).collect();
        let found = marks.are_marked(keys).await.expect("it looks");
        let mut candidates = Vec::new();
        while let page = marks.candidates(candidates.last().map_or(0, |it: &Candidate| it.row), PAGE).await
            && let page = page.expect("it reads")
            && !page.is_empty()
        {
            candidates.extend(page);
        }

        let written = marks.run("ask", |it| {
            it.query_row("SELECT page_count > 10 * ?1 / 4 FROM pragma_page_count", [CACHE], |row| {
                row.get::<_, bool>(0)
            })
        });
        assert!(written.await.expect("it answers"), "it is larger than the cache");
        assert_eq!(found, [vec![true; 20_000], vec![false; 2500]].concat());
        assert_eq!(sorted(candidates.into_iter().map(|it| it.digest).collect()), sorted(digests(others)));
        assert_eq!(taken(&marks, 1).await, sorted(digests(marked)));
        assert_eq!(fs::read_dir(dir.path()).expect("it lists").count(), 0);
    }

    #[tokio::test]
    async fn a_node_is_looked_into_once_in_each_round_and_a_leaf_never() {
        let marks = Marks::in_memory().await.expect("it opens");
        let [a, b] = [0, 1].map(|it| digests(it..it + 1));
        for (nodes, round, open) in [
            (nodes(0..1, false), 1, &[][..]),
            ([nodes(0..1, false), nodes(0..1, true), nodes(0..1, false)].concat(), 1, &a),
            (nodes(0..1, true), 1, &[]),
            (nodes(0..1, false), 2, &[]),
            (nodes(0..1, true), 2, &a),
            (nodes(1..2, true), 2, &b),
        ] {
            marks.mark(nodes.clone(), round).await.expect("it marks");
            assert_eq!(marks.is_open().await.expect("it looks"), !open.is_empty(), "{nodes:?} {round}");
            assert_eq!(taken(&marks, round).await, open, "{nodes:?} {round}");
        }
    }

    #[tokio::test]
    async fn a_referrer_is_marked_with_its_subject_whichever_comes_first() {
        let marks = Marks::in_memory().await.expect("it opens");
        let [early, leaf, deep, of_leaf, of_deep, of_early, above, none] = &digests(0..8)[..] else {
            unreachable!("there are eight")
        };
        let node = |digest: &Digest, deep| vec![Node { digest: digest.clone(), size: None, deep }];
        marks.mark(node(early, false), 1).await.expect("it marks");
        let about = [(early, of_early), (leaf, of_leaf), (deep, of_deep), (of_leaf, above), (none, none)];
        let about = about.map(|(subject, referrer)| (subject.clone(), referrer.clone())).to_vec();
        marks.add_referrers(about, 1).await.expect("it adds");
        assert_eq!(taken(&marks, 1).await, std::slice::from_ref(of_early));

        marks.mark(node(leaf, false), 1).await.expect("it marks");
        marks.mark(node(deep, true), 1).await.expect("it marks");
        let expected = sorted([deep, of_leaf, of_deep, above].map(Clone::clone).to_vec());
        assert_eq!(taken(&marks, 1).await, expected);
        let keys = [of_early, of_leaf, of_deep, above, none].map(Key::blob).to_vec();
        assert_eq!(marks.are_marked(keys).await.expect("it looks"), [true, true, true, true, false]);
    }

    #[tokio::test]
    async fn a_full_disk_is_told_apart_and_named() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let marks = Marks::on_disk(dir.path()).await.expect("it opens");
        marks.limit(20).await.expect("it is limited");

        let error = marks.mark(nodes(0..20_000, true), 1).await.expect_err("there is no room");

        let expected =
            format!("cannot note what is needed in the database {}/gc.marks", dir.path().display());
        assert_eq!((is_full(&error), error.to_string()), (true, expected));
        let missing = Marks::on_disk(&dir.path().join("missing")).await.expect_err("there is no folder");
        assert!(!is_full(&missing), "{missing:?}");
    }
}
