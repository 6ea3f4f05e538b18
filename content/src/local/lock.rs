//! One writer per ingest folder: an async turn inside the process, a `flock` between processes.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::disk::{self, io_error};
use crate::{
    Result,
    lock::{Patience, Turn, Turns, flock, patiently},
};

/// The locks that this process holds or waits for.
#[derive(Debug, Default)]
pub(super) struct Locks {
    turns: Turns<PathBuf>,
}

/// The right to write an ingest folder, until it is dropped. The kernel takes it back when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    folder: PathBuf,
    /// Before the turn: whoever is next in this process finds the file unlocked.
    _file: File,
    _turn: Turn,
}

impl Locks {
    /// Waits for the lock of a folder, which is made if it is missing.
    pub(super) async fn take(&self, folder: &Path) -> Result<Lock> {
        let turn = self.turns.wait(folder.to_owned()).await;
        let tried = folder.to_owned();
        let attempt = move |patience| lock_folder(&tried, patience);
        let file = patiently(attempt, io_error("start a thread that waits for", folder)).await?;
        Ok(Lock { folder: folder.to_owned(), _file: file, _turn: turn })
    }
}

impl Lock {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the folder and all that is in it.
    pub(super) fn discard(self) -> Result<()> {
        disk::remove_folder(&self.folder)
    }
}

/// Makes the folder and locks it; `None` if that would take patience.
///
/// The folder that was locked may have been removed by its last owner meanwhile: then the lock is of no use, and
/// the wait begins again on the new one.
fn lock_folder(folder: &Path, patience: Patience) -> Result<Option<File>> {
    loop {
        make(folder)?;
        let file = match File::open(folder) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(io_error("open", folder)(source)),
        };
        if !flock(&file, patience).map_err(io_error("lock", folder))? {
            return Ok(None);
        }
        if is_at(&file, folder)? {
            return Ok(Some(file));
        }
    }
}

/// Whether an open folder is still the one at this path.
pub(super) fn is_at(file: &File, folder: &Path) -> Result<bool> {
    let ours = file.metadata().map_err(io_error("read", folder))?;
    match fs::metadata(folder) {
        Ok(there) => Ok(disk::is_same(&there, &ours)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(io_error("read", folder)(source)),
    }
}

/// Not `create_dir_all`: that fails if the folder is removed while it looks what is in its way.
fn make(folder: &Path) -> Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("create", folder)(error)),
        _ => Ok(()),
    }
}
