//! What every driver that keeps one folder per snapshot shares: ids, files and rows in the right order.

use std::{
    fs::File,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, syncfs};

use crate::{
    Commit, Durability, Error, Info, Kind, Result, Usage, files,
    metadata::{Check, Metadata, Row},
};

/// What the names of folders begin with in which something is tried.
const ATTEMPT: &str = "probe-";

/// `<root>/metadata.db`, and `<root>/snapshots/<id>/fs` for each row.
///
/// A folder is made before its row gets a name, and removed after the row lost it; so a crash leaves only folders that
/// nobody sees. Whoever makes one, or a folder to try something in, holds `<root>/lock` shared. Cleanup takes it alone while it
/// looks for what is left over, and as ids and names are never used twice, needs no lock while it removes that.
#[derive(Debug)]
pub(crate) struct Folders {
    root: PathBuf,
    lock_file: PathBuf,
    durability: Durability,
    pub(crate) metadata: Metadata,
}

impl Folders {
    /// Opens or creates the root.
    pub(crate) fn open(root: &Path, durability: Durability) -> Result<Self> {
        let snapshots = root.join("snapshots");
        std::fs::DirBuilder::new()
            .recursive(true)
            // Layers have set-user-id files: only their owner may come near them.
            .mode(0o700)
            .create(&snapshots)
            .map_err(|source| io("create", &snapshots, source))?;
        // Mounts name their folders in full, wherever the program is when it mounts them.
        let root = root.canonicalize().map_err(|source| io("resolve", root, source))?;
        let metadata = Metadata::open(&root.join("metadata.db"))?;
        let lock_file = root.join("unpack.lock");
        Ok(Self { root, lock_file, durability, metadata })
    }

    #[cfg(feature = "overlay")]
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where those who unpack lock what they are making.
    pub(crate) fn lock_file(&self) -> &Path {
        &self.lock_file
    }

    /// The folder of a snapshot: `fs` in it is its tree.
    pub(crate) fn folder(&self, id: i64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    pub(crate) fn tree(&self, id: i64) -> PathBuf {
        self.folder(id).join("fs")
    }

    /// Makes a snapshot; `fill` makes what is in its folder, given that of the parent.
    pub(crate) fn create(
        &self,
        key: &str,
        kind: Kind,
        parent: Option<&str>,
        fill: impl FnOnce(&Path, Option<&Path>) -> Result<()>,
    ) -> Result<Row> {
        if self.metadata.find(key)?.is_some() {
            return Err(Error::Exists { name: key.to_owned() });
        }
        let below = parent.map(|name| self.metadata.get(name)).transpose()?;
        if let Some(row) = below.as_ref().filter(|row| row.info.kind != Kind::Committed) {
            return Err(Error::NotCommitted { name: row.info.name.clone() });
        }
        let _lock = self.lock(FlockOperation::LockShared)?;
        let id = self.metadata.reserve()?;
        let folder = self.folder(id);
        let made = (|| {
            mkdir(&folder, 0o700)?;
            fill(&folder, below.map(|row| self.folder(row.id)).as_deref())?;
            self.metadata.publish(id, key, kind, parent)
        })();
        if let Err(err) = made {
            self.discard(id);
            return Err(err);
        }
        self.metadata.get(key)
    }

    /// A snapshot whose files somebody removed is as good as none: [`commit`](Self::commit) makes it whole again.
    pub(crate) fn stat(&self, name: &str) -> Result<Option<Info>> {
        Ok(self.metadata.find(name)?.filter(|row| self.is_whole(row)).map(|row| row.info))
    }

    fn is_whole(&self, row: &Row) -> bool {
        self.tree(row.id).is_dir()
    }

    pub(crate) fn usage(&self, name: &str) -> Result<Usage> {
        let row = self.metadata.get(name)?;
        if row.info.kind == Kind::Committed { Ok(row.usage) } else { files::usage(&self.tree(row.id)) }
    }

    pub(crate) fn commit(&self, commits: &[Commit<'_>], check: Check) -> Result<()> {
        let mut usages = Vec::with_capacity(commits.len());
        let mut repairs = Vec::new();
        for commit in commits {
            let row = self.metadata.get(commit.key)?;
            if row.info.kind != Kind::Active {
                return Err(Error::NotActive { name: commit.key.to_owned() });
            }
            usages.push(files::usage(&self.tree(row.id))?);
            if let Some(damaged) = self.metadata.find(commit.name)?.filter(|there| !self.is_whole(there)) {
                repairs.push((self.folder(row.id), self.folder(damaged.id)));
            }
        }
        if self.durability == Durability::Safe && !commits.is_empty() {
            let root = File::open(&self.root).map_err(|source| io("open", &self.root, source))?;
            syncfs(&root).map_err(|err| io("sync", &self.root, err.into()))?;
        }
        for id in self.metadata.commit(commits, &usages, check)? {
            if let Some((folder, damaged)) = repairs.iter().find(|(folder, _)| *folder == self.folder(id)) {
                repair(folder, damaged)?;
            }
            self.discard(id);
        }
        Ok(())
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let id = self.metadata.remove(name)?;
        self.discard(id);
        Ok(())
    }

    pub(crate) fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        let mut rows = self.metadata.all()?;
        let mut seen = std::collections::HashSet::new();
        while !rows.is_empty() {
            let (ready, rest): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| row.parent.is_none_or(|parent| seen.contains(&parent)));
            if ready.is_empty() {
                break;
            }
            for row in ready {
                seen.insert(row.id);
                if visit(row.info).is_break() {
                    return Ok(());
                }
            }
            rows = rest;
        }
        Ok(())
    }

    /// Tries something in a folder of its own, which is gone afterwards. If we die, cleanup removes it.
    #[cfg(feature = "overlay")]
    pub(crate) fn attempt<T>(&self, attempt: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        // A name that neither a crashed process nor one in another container has left.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let id = format!("{ATTEMPT}{}-{:?}-{now}", std::process::id(), std::thread::current().id())
            .replace(['(', ')'], "");
        let folder = self.root.join(id);
        mkdir(&folder, 0o700)?;
        let answer = attempt(&folder);
        files::remove(&folder)?;
        answer
    }

    pub(crate) fn cleanup(&self) -> Result<u64> {
        let mut freed = 0;
        let (ids, attempts) = self.leftovers()?;
        for folder in attempts {
            freed += files::usage(&folder).map_or(0, |usage| usage.bytes);
            files::remove(&folder)?;
        }
        for id in ids {
            let folder = self.folder(id);
            if folder.exists() {
                // Somebody else may be removing it; then they free it.
                freed += files::usage(&folder).map_or(0, |usage| usage.bytes);
                files::remove(&folder)?;
            }
            self.metadata.delete(id)?;
        }
        Ok(freed)
    }

    /// The snapshots that nobody sees, and the folders in which something was tried.
    fn leftovers(&self) -> Result<(Vec<i64>, Vec<PathBuf>)> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut ids = self.metadata.nameless()?;
        let known: std::collections::HashSet<i64> =
            self.metadata.all()?.iter().map(|row| row.id).chain(ids.iter().copied()).collect();
        let folders = names(&self.root.join("snapshots"))?;
        ids.extend(folders.iter().filter_map(|name| name.parse().ok()).filter(|id| !known.contains(id)));
        let mut attempts = names(&self.root)?;
        attempts.retain(|name| name.starts_with(ATTEMPT));
        Ok((ids, attempts.into_iter().map(|name| self.root.join(name)).collect()))
    }

    /// Removes the files of a snapshot that nobody sees. What cannot be removed now is left to cleanup.
    fn discard(&self, id: i64) {
        if let Err(err) = files::remove(&self.folder(id)).and_then(|()| self.metadata.delete(id)) {
            tracing::warn!(
                id,
                error = &err as &dyn std::error::Error,
                "files of a removed snapshot are left to cleanup"
            );
        }
    }

    fn lock(&self, operation: FlockOperation) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| io("open", &path, source))?;
        flock(&file, operation).map_err(|err| io("lock", &path, err.into()))?;
        Ok(file)
    }
}

/// The names in a folder that are text, as all of ours are.
fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    read().map_err(|source| io("read", folder, source))
}

/// Puts a tree in the place of the same tree, of which files were lost. What is on top of it is whole again, too.
fn repair(folder: &Path, damaged: &Path) -> Result<()> {
    files::remove(damaged)?;
    std::fs::rename(folder, damaged).map_err(|source| io("put a new tree in the place of", damaged, source))
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
