//! The folder of a driver: locked while something is made in it or cleaned up, and where the driver tries what works.

use std::{
    fs::File,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{Result, folders::io};

/// What the names of folders begin with in which something is tried.
const ATTEMPT: &str = "probe-";

/// A driver's folder.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
}

impl Root {
    /// Opens or creates it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        std::fs::DirBuilder::new()
            .recursive(true)
            // Layers have set-user-id files: only their owner may come near them.
            .mode(0o700)
            .create(path)
            .map_err(|source| io("create", path, source))?;
        // Mounts name their folders in full, wherever the program is when it mounts them.
        Ok(Self { path: path.canonicalize().map_err(|source| io("resolve", path, source))? })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its path can stand in mount options as it is; if not, why, and what to do.
    #[cfg(feature = "overlay")]
    pub(crate) fn can_be_mounted(&self) -> Result<(), String> {
        match self.path.to_str().is_some_and(|path| !path.contains([':', ',', '\\'])) {
            true => Ok(()),
            false => Err(format!(
                "{} holds `:`, `,`, `\\` or bytes that are not UTF-8, which mount options cannot say: choose another root",
                self.path.display()
            )),
        }
    }

    /// Waits for the lock, which ends with the file.
    pub(crate) fn lock(&self, operation: FlockOperation) -> Result<File> {
        let path = self.path.join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|source| io("open", &path, source))?;
        flock(&file, operation).map_err(|err| io("lock", &path, err.into()))?;
        Ok(file)
    }

    /// Tries something in a folder of its own, which is gone afterwards. If we die, cleanup removes it.
    #[cfg(any(feature = "overlay", feature = "btrfs"))]
    pub(crate) fn attempt<T>(
        &self,
        attempt: impl FnOnce(&Path) -> Result<T>,
        remove: fn(&Path) -> Result<()>,
    ) -> Result<T> {
        let _lock = self.lock(FlockOperation::LockShared)?;
        // A name that neither a crashed process nor one in another container has left.
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let id = format!("{ATTEMPT}{}-{:?}-{now}", std::process::id(), std::thread::current().id())
            .replace(['(', ')'], "");
        let folder = self.path.join(id);
        crate::folders::mkdir(&folder, 0o700)?;
        let answer = attempt(&folder);
        // On a full disk nothing works, and overlayfs shows a folder that cannot be written: that says nothing of the driver.
        let room = match &answer {
            Err(crate::Error::Unsupported { .. }) => has_room(&folder),
            _ => Ok(()),
        };
        remove(&folder)?;
        room.and(answer)
    }

    /// The folders of attempts that are over, as whoever holds the lock alone sees them.
    pub(crate) fn attempts(&self) -> Result<Vec<PathBuf>> {
        let mut attempts = names(&self.path)?;
        attempts.retain(|name| name.starts_with(ATTEMPT));
        Ok(attempts.into_iter().map(|name| self.path.join(name)).collect())
    }
}

/// The names in a folder that are text, as all of ours are.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder)? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    read().map_err(|source| io("read", folder, source))
}

/// Whether what is tried in a folder would find room.
#[cfg(any(feature = "overlay", feature = "btrfs"))]
fn has_room(folder: &Path) -> Result<()> {
    let path = folder.join("room");
    let write = || {
        let mut file = File::create_new(&path)?;
        std::io::Write::write_all(&mut file, &[7; 64 << 10])?;
        // Some file systems look for the room only then.
        file.sync_all()
    };
    write().map_err(|source| io("write", &path, source))
}
