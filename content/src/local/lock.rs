//! One writer per ingest folder: an async mutex inside the process, a `flock` between processes.

use std::{
    collections::HashMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot},
    task::spawn_blocking,
};

use super::disk::{self, io_error};
use crate::Result;

/// The locks that this process holds or waits for.
#[derive(Debug, Default)]
pub(super) struct Locks {
    by_folder: Mutex<HashMap<PathBuf, Weak<AsyncMutex<()>>>>,
}

/// The right to write an ingest folder, until it is dropped. The kernel takes it back when the process dies.
#[derive(Debug)]
pub(super) struct Lock {
    folder: PathBuf,
    /// Before the turn: whoever is next in this process finds the file unlocked.
    _file: File,
    _turn: OwnedMutexGuard<()>,
}

impl Locks {
    /// Waits for the lock of a folder, which is made if it is missing.
    pub(super) async fn take(&self, folder: &Path) -> Result<Lock> {
        let turn = self.turn(folder).lock_owned().await;
        let tried = folder.to_owned();
        let free = spawn_blocking(move || lock_folder(&tried, Patience::None))
            .await
            .expect("disk work neither panics nor is aborted")?;
        let file = match free {
            Some(file) => file,
            None => wait_for_folder(folder).await?,
        };
        Ok(Lock { folder: folder.to_owned(), _file: file, _turn: turn })
    }

    /// The mutex of a folder; those that nobody uses any more are forgotten.
    fn turn(&self, folder: &Path) -> Arc<AsyncMutex<()>> {
        let mut by_folder = self.by_folder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = by_folder.get(folder).and_then(Weak::upgrade) {
            return turn;
        }
        by_folder.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(AsyncMutex::new(()));
        by_folder.insert(folder.to_owned(), Arc::downgrade(&turn));
        turn
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

/// What to do about a folder that another process has locked.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Endless,
}

/// Waits while another process has the folder.
async fn wait_for_folder(folder: &Path) -> Result<File> {
    let (sender, receiver) = oneshot::channel();
    let waited = folder.to_owned();
    // A thread of its own: the wait may be long, and must not hold up the runtime when the program ends.
    let wait = move || {
        // Whoever asked may have gone meanwhile; then the lock goes with the message.
        let _ = sender.send(lock_folder(&waited, Patience::Endless));
    };
    thread::Builder::new()
        .name("windlass-lock".into())
        .spawn(wait)
        .map_err(io_error("start a thread that waits for", folder))?;
    let file = receiver.await.expect("the thread always answers")?;
    Ok(file.expect("who waits without end gets the lock"))
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
        let locked = match patience {
            Patience::Endless => file.lock(),
            Patience::None => match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Ok(()),
            },
        };
        match locked {
            Ok(()) => {}
            // A signal came to this thread; the wait is not over.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(io_error("lock", folder)(source)),
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
