//! What every driver that keeps one folder per snapshot shares: ids, files and rows in the right order.

use std::{
    fs::File,
    num::NonZeroUsize,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use rustix::fs::{FlockOperation, syncfs};

use crate::{
    Commit, Durability, Error, Info, Kind, Mount, Result, Usage,
    metadata::{Check, Flat, Metadata, Row},
    root::{Root, names},
    tree,
};

/// `<root>/metadata.db`, and `<root>/snapshots/<id>/fs` for each row.
///
/// A folder is made before its row gets a name, and removed after the row lost it; so a crash leaves only folders that
/// nobody sees. Whoever makes one, or a folder to try something in, holds `<root>/lock` shared. Cleanup takes it alone while it
/// looks for what is left over, and as ids and names are never used twice, needs no lock while it removes that.
#[derive(Debug)]
pub(crate) struct Folders {
    root: Root,
    lock_file: PathBuf,
    durability: Durability,
    files: Files,
    pub(crate) metadata: Metadata,
}

/// What drivers do with files in ways of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    /// What a tree takes that is on top of a parent's.
    pub(crate) usage: fn(&Path, Option<&Path>) -> Result<Usage>,
    /// Removes a folder, with all trees in it.
    pub(crate) remove: fn(&Path) -> Result<()>,
    /// Whether the files of a snapshot are there, given where its tree would be.
    pub(crate) whole: fn(&Path) -> bool,
}

impl Default for Files {
    fn default() -> Self {
        Self { usage: |tree, _parent| tree::usage(tree), remove: tree::remove, whole: Path::is_dir }
    }
}

impl Folders {
    /// Opens or creates the snapshots in a root.
    pub(crate) fn open(root: Root, durability: Durability, files: Files) -> Result<Self> {
        let snapshots = root.path().join("snapshots");
        Root::open(&snapshots)?;
        let metadata = Metadata::open(&root.path().join("metadata.db"))?;
        let lock_file = root.path().join("unpack.lock");
        Ok(Self { root, lock_file, durability, files, metadata })
    }

    /// Where those who unpack lock what they are making.
    pub(crate) fn lock_file(&self) -> &Path {
        &self.lock_file
    }

    #[cfg(feature = "erofs")]
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The folder of a snapshot: `fs` in it is its tree.
    pub(crate) fn folder(&self, id: i64) -> PathBuf {
        self.root.path().join("snapshots").join(id.to_string())
    }

    pub(crate) fn tree(&self, id: i64) -> PathBuf {
        self.folder(id).join("fs")
    }

    /// A mount of a snapshot whose tree shows all that it is to show.
    pub(crate) fn bind(&self, row: &Row) -> Vec<Mount> {
        let access = if row.info.kind == Kind::View { "ro" } else { "rw" };
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { fstype: "bind".to_owned(), source: self.tree(row.id), options }]
    }

    /// Makes a snapshot; `fill` makes what is in its folder, given that of the parent.
    pub(crate) fn create(
        &self,
        key: &str,
        kind: Kind,
        parent: Option<&str>,
        fill: impl Fn(&Path, Option<&Path>) -> Result<()>,
    ) -> Result<Row> {
        Ok(self.create_all(&[key], kind, parent, fill)?.swap_remove(0))
    }

    /// Makes snapshots, all or none. However many there are, the disk is waited for as for one.
    pub(crate) fn create_all(
        &self,
        keys: &[&str],
        kind: Kind,
        parent: Option<&str>,
        fill: impl Fn(&Path, Option<&Path>) -> Result<()>,
    ) -> Result<Vec<Row>> {
        for key in keys {
            if self.metadata.find(key)?.is_some() {
                return Err(Error::Exists { name: (*key).to_owned() });
            }
        }
        let below = parent.map(|name| self.metadata.get(name)).transpose()?;
        if let Some(row) = below.as_ref().filter(|row| row.info.kind != Kind::Committed) {
            return Err(Error::NotCommitted { name: row.info.name.clone() });
        }
        let below = below.map(|row| self.folder(row.id));
        let _lock = self.root.lock(FlockOperation::LockShared)?;
        let ids = self.metadata.reserve(keys.len())?;
        let made = (|| {
            for id in &ids {
                let folder = self.folder(*id);
                mkdir(&folder, 0o700)?;
                fill(&folder, below.as_deref())?;
            }
            self.metadata.publish(&ids, keys, kind, parent)
        })();
        if let Err(err) = made {
            ids.into_iter().for_each(|id| self.discard(id));
            return Err(err);
        }
        keys.iter().map(|key| self.metadata.get(key)).collect()
    }

    /// A snapshot whose files somebody removed is as good as none: [`commit`](Self::commit) makes it whole again.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Info>> {
        Ok(self.metadata.find(name)?.filter(|row| self.is_whole(row)).map(|row| row.info))
    }

    pub(crate) fn is_whole(&self, row: &Row) -> bool {
        (self.files.whole)(&self.tree(row.id)) && row.flat.is_none_or(|flat| self.tree(flat).is_dir())
    }

    pub(crate) fn usage(&self, name: &str) -> Result<Usage> {
        let row = self.metadata.get(name)?;
        if row.info.kind == Kind::Committed { Ok(row.usage) } else { self.count(&row) }
    }

    fn count(&self, row: &Row) -> Result<Usage> {
        (self.files.usage)(&self.tree(row.id), row.parent.map(|parent| self.tree(parent)).as_deref())
    }

    /// Makes a tree without a name, to be named by a commit. Whoever calls this holds the lock until then.
    #[cfg(feature = "overlay")]
    pub(crate) fn spare(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<i64> {
        let id = self.metadata.reserve(1)?.swap_remove(0);
        let filled = mkdir(&self.folder(id), 0o700)
            .and_then(|()| mkdir(&self.tree(id), 0o755))
            .and_then(|()| fill(&self.tree(id)));
        if let Err(err) = filled {
            self.discard(id);
            return Err(err);
        }
        Ok(id)
    }

    /// Keeps cleanup away from what has no name yet, as long as the file is open.
    #[cfg(feature = "overlay")]
    pub(crate) fn hold(&self) -> Result<File> {
        self.root.lock(FlockOperation::LockShared)
    }

    pub(crate) fn commit(&self, commits: &[Commit<'_>], flats: &[Flat], check: Check) -> Result<()> {
        let mut counted = Vec::with_capacity(commits.len());
        let mut repairs = Vec::new();
        for commit in commits {
            let row = self.metadata.get(commit.key)?;
            if row.info.kind != Kind::Active {
                return Err(Error::NotActive { name: commit.key.to_owned() });
            }
            let flat = flats.iter().find(|flat| flat.key == commit.key).map(|flat| flat.id);
            if let Some(damaged) = self.metadata.find(commit.name)?.filter(|there| !self.is_whole(there)) {
                repairs.push((row.id, damaged.id));
                repairs.extend(flat.zip(damaged.flat));
            }
            counted.push((row, flat));
        }
        let count = |(row, flat): &(Row, Option<i64>)| {
            let mut usage = self.count(row)?;
            if let Some(flat) = flat {
                usage += tree::usage(&self.tree(*flat))?;
            }
            Ok(usage)
        };
        let usages =
            if commits.is_empty() { Vec::new() } else { self.sync_while(|| side_by_side(&counted, count))? };
        for id in self.metadata.commit(commits, &usages, flats, check)? {
            if let Some((_, damaged)) = repairs.iter().find(|(new, _)| *new == id) {
                self.repair(id, *damaged)?;
            }
            self.discard(id);
        }
        Ok(())
    }

    /// Waits until all that was written is on the disk, unless nobody wants that, and does something that only reads meanwhile.
    fn sync_while<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.durability == Durability::Fast {
            return work();
        }
        thread::scope(|scope| {
            let sync =
                thread::Builder::new().name("windlass-sync".into()).spawn_scoped(scope, || self.sync());
            let sync = sync.map_err(|source| io("start the thread that syncs", self.root.path(), source))?;
            let done = work();
            sync.join().expect("a sync does not panic").and(done)
        })
    }

    /// Waits until all that was written is on the disk, unless nobody wants that.
    pub(crate) fn sync(&self) -> Result<()> {
        if self.durability == Durability::Safe {
            let path = self.root.path();
            let root = File::open(path).map_err(|source| io("open", path, source))?;
            syncfs(&root).map_err(|err| io("sync", path, err.into()))?;
        }
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        for id in self.metadata.remove(name)? {
            self.discard(id);
        }
        Ok(())
    }

    /// Shows what was there when it began; what is asked of the driver meanwhile does not matter.
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let mut rows = self.metadata.all()?;
        let mut seen = std::collections::HashSet::new();
        loop {
            let mut later = Vec::new();
            let before = seen.len();
            for row in rows {
                if row.parent.is_some_and(|parent| !seen.contains(&parent)) {
                    later.push(row);
                    continue;
                }
                seen.insert(row.id);
                if visit(row.info).is_break() {
                    return Ok(());
                }
            }
            if seen.len() == before {
                return Ok(());
            }
            rows = later;
        }
    }

    pub(crate) fn cleanup(&self) -> Result<u64> {
        let mut freed = 0;
        let (ids, attempts) = self.leftovers()?;
        for folder in attempts {
            freed += tree::usage(&folder).map_or(0, |usage| usage.bytes);
            (self.files.remove)(&folder)?;
        }
        for id in ids {
            let folder = self.folder(id);
            if folder.exists() {
                // Somebody else may be removing it; then they free it.
                freed += tree::usage(&folder).map_or(0, |usage| usage.bytes);
                (self.files.remove)(&folder)?;
            }
            self.metadata.delete(id)?;
        }
        Ok(freed)
    }

    /// The snapshots that nobody sees, and the folders in which something was tried.
    fn leftovers(&self) -> Result<(Vec<i64>, Vec<PathBuf>)> {
        let _lock = self.root.lock(FlockOperation::LockExclusive)?;
        let mut ids = self.metadata.nameless()?;
        let mut known: std::collections::HashSet<i64> = ids.iter().copied().collect();
        known.extend(self.metadata.all()?.iter().flat_map(|row| [Some(row.id), row.flat]).flatten());
        let folders = names(&self.root.path().join("snapshots"))?;
        ids.extend(folders.iter().filter_map(|name| name.parse().ok()).filter(|id| !known.contains(id)));
        Ok((ids, self.root.attempts()?))
    }

    /// Removes the files of a snapshot that nobody sees. What cannot be removed now is left to cleanup.
    pub(crate) fn discard(&self, id: i64) {
        if let Err(err) = (self.files.remove)(&self.folder(id)).and_then(|()| self.metadata.delete(id)) {
            tracing::warn!(
                id,
                error = &err as &dyn std::error::Error,
                "files of a removed snapshot are left to cleanup"
            );
        }
    }

    /// Puts a tree in the place of the same tree, of which files were lost. What is on top of it is whole again, too.
    fn repair(&self, new: i64, damaged: i64) -> Result<()> {
        let (new, damaged) = (self.folder(new), self.folder(damaged));
        (self.files.remove)(&damaged)?;
        std::fs::rename(new, &damaged)
            .map_err(|source| io("put a new tree in the place of", &damaged, source))
    }
}

/// Does the same work for each, on as many threads as there are processors, and gives what it made in their order.
fn side_by_side<T: Sync, R: Send>(of: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let some = || {
        let indices = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)));
        let mine = indices.map_while(|index| Some((index, work(of.get(index)?))));
        mine.collect::<Vec<_>>()
    };
    let mut done = thread::scope(|scope| {
        let helpers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(of.len());
        // Where no thread can be started, fewer do it all.
        let start = |_| thread::Builder::new().name("windlass-count".into()).spawn_scoped(scope, some).ok();
        let helpers: Vec<_> = (1..helpers).filter_map(start).collect();
        let mine = some();
        let theirs = helpers.into_iter().flat_map(|helper| helper.join().expect("counting does not panic"));
        mine.into_iter().chain(theirs).collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Makes a folder with exactly that mode, whatever the umask.
pub(crate) fn mkdir(path: &Path, mode: u32) -> Result<()> {
    rustix::fs::mkdir(path, mode.into())
        .and_then(|()| rustix::fs::chmod(path, mode.into()))
        .map_err(|err| io("create", path, err.into()))
}

pub(crate) fn io(op: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { op, path: path.to_owned(), source }
}
