//! Snapshots as btrfs makes them.

mod ioctl;

use std::{
    collections::BTreeMap,
    io::Error as IoError,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, Stat, fstat, statfs},
    io::Errno,
};

use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, Mount, Result, Snapshotter, Usage, Whiteouts,
    folders::{Files, Folders, io},
    root::Root,
    tree::{self, open_folder},
};

/// What the top folder of every subvolume has as its inode number (`BTRFS_FIRST_FREE_OBJECTID`), and nothing else.
const TOP: u64 = 256;
const FILES: Files = Files { usage, remove, whole: Path::is_dir };

/// Keeps each snapshot in a subvolume, made as btrfs's own snapshot of its parent: at once, and sharing all blocks.
///
/// A changed file counts whole in [`Snapshotter::usage`], though it shares the blocks that did not change. Subvolumes that somebody
/// makes inside a snapshot would be missing in those on top of it: a commit refuses them.
#[derive(Debug)]
pub struct Btrfs {
    folders: Folders,
}

impl Btrfs {
    /// Opens or creates the snapshots under `root`, and tries whether btrfs's snapshots work there.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where they do not, with the reason, in which case nothing but a lock was created;
    /// [`Error::Io`] and [`Error::Database`] if the root cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self> {
        let root = Root::open(root)?;
        probe(&root)?;
        Ok(Self { folders: Folders::open(root, durability, FILES)? })
    }

    fn begin(&self, key: &str, kind: Kind, parent: Option<&str>) -> Result<Vec<Mount>> {
        let row = self.folders.create(key, kind, parent, |folder, below| {
            match below {
                Some(below) => snapshot(&below.join("fs"), folder),
                None => create(folder),
            }
            .map_err(|err| io("create a subvolume in", folder, err.into()))
        })?;
        Ok(self.folders.bind(&row))
    }
}

impl Snapshotter for Btrfs {
    fn name(&self) -> &str {
        "btrfs"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(false, Whiteouts::Remove)
    }

    fn lock_file(&self) -> &Path {
        self.folders.lock_file()
    }

    fn stat(&self, name: &str) -> Result<Option<Info>> {
        self.folders.stat(name)
    }

    fn update(&self, name: &str, labels: BTreeMap<String, String>) -> Result<Info> {
        self.folders.metadata.label(name, &labels)
    }

    fn usage(&self, name: &str) -> Result<Usage> {
        self.folders.usage(name)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        Ok(self.folders.bind(&self.folders.metadata.active(key)?))
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.begin(key, Kind::Active, parent)
    }

    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.begin(key, Kind::View, parent)
    }

    fn stacked(&self, _keys: &[&str], _base: Option<&str>) -> Result<Vec<Mount>> {
        let reason = "its snapshots show their parents' files: prepare each on top of its parent".to_owned();
        Err(Error::Unsupported { driver: "btrfs", op: "stack snapshots", reason })
    }

    fn write_back(&self) -> Result<()> {
        self.folders.sync()
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        self.folders.commit(commits, &[], |row, parent| row.keeps(parent, "btrfs"))?;
        // Afterwards, so that what is still active after a failure or a crash can be written. Nobody is to write to what is
        // committed: this is for those who do not know.
        for commit in commits {
            let protect = |row: crate::metadata::Row| {
                open_folder(CWD, self.folders.tree(row.id)).and_then(|top| ioctl::set_read_only(&top, true))
            };
            if let Some(Err(err)) = self.folders.metadata.find(commit.name)?.map(protect) {
                let error = IoError::from(err);
                tracing::warn!(name = commit.name, %error, "a committed snapshot is not protected from writers");
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.folders.remove(name)
    }

    fn forget(&self, name: &str) -> Result<()> {
        self.folders.metadata.remove(name).map(drop)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.folders.walk(visit)
    }

    fn cleanup(&self) -> Result<u64> {
        self.folders.cleanup()
    }

    fn close(&self) -> Result<()> {
        self.folders.metadata.close()
    }
}

fn create(folder: &Path) -> rustix::io::Result<()> {
    ioctl::create(open_folder(CWD, folder)?, "fs")?;
    rustix::fs::chmod(folder.join("fs"), 0o755.into())
}

/// Of a committed subvolume, which is read-only, as a writable one.
fn snapshot(of: &Path, folder: &Path) -> rustix::io::Result<()> {
    ioctl::snapshot(open_folder(CWD, of)?.as_fd(), open_folder(CWD, folder)?, "fs")
}

fn usage(tree: &Path, parent: Option<&Path>) -> Result<Usage> {
    let top = rustix::fs::lstat(tree).map_err(|err| io("look at", tree, err.into()))?.st_dev;
    let nested =
        |stat: &Stat| if stat.st_ino == TOP && stat.st_dev != top { Err(Errno::XDEV) } else { Ok(()) };
    tree::usage_beside(tree, parent, nested).map_err(|err| match err {
        Error::Io { op, path, source } if source.kind() == std::io::ErrorKind::CrossesDevices => {
            let reason =
                "somebody made a subvolume in it, which snapshots on top of it would not have: remove that";
            Error::Io { op, path, source: IoError::new(source.kind(), reason) }
        }
        other => other,
    })
}

/// Removes a snapshot's folder.
fn remove(folder: &Path) -> Result<()> {
    // What cannot be done so (it needs privilege, and a subvolume without others in it) is done file by file.
    let destroyed = open_folder(CWD, folder).and_then(|folder| ioctl::destroy(folder, "fs"));
    if let Err(err) = destroyed {
        tracing::debug!(folder = %folder.display(), error = %IoError::from(err), "no subvolume is destroyed at once");
    }
    tree::remove_with(folder, writable)
}

fn writable(folder: BorrowedFd<'_>) {
    if fstat(folder).is_ok_and(|stat| stat.st_ino == TOP) {
        // Where this fails, the removal does, and says why.
        let _ = ioctl::set_read_only(folder, false);
    }
}

/// Makes and removes a subvolume and a snapshot.
fn probe(root: &Root) -> Result<()> {
    let unsupported = |reason| Error::Unsupported { driver: "btrfs", op: "work here", reason };
    let place = root.path().display();
    let kind = statfs(root.path()).map_err(|err| io("look at", root.path(), err.into()))?.f_type;
    if u64::try_from(kind) != Ok(linux_raw_sys::general::BTRFS_SUPER_MAGIC.into()) {
        return Err(unsupported(format!(
            "{place} is not on btrfs: choose a root that is, or another snapshotter"
        )));
    }
    let attempt = |folder: &Path| {
        let copy = folder.join("copy");
        std::fs::create_dir(&copy).map_err(|source| io("create", &copy, source))?;
        create(folder).and_then(|()| snapshot(&folder.join("fs"), &copy)).map_err(|err| match err {
            Errno::NOSPC | Errno::DQUOT => io("create a subvolume in", folder, err.into()),
            err => unsupported(format!("{err}, when a snapshot was made in {place}: mount it writable")),
        })
    };
    root.attempt(attempt, remove)
}
