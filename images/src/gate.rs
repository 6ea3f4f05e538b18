//! The lock between those who hold content and the garbage collection that removes it.
//!
//! Only one is inside at a time, in whatever process, and only for a moment. Who waits is not overtaken: one has to pass
//! the file `gc.next` to wait for `gc.lock`, and whoever is waiting has the former.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
};

use tokio::{sync::oneshot, task::spawn_blocking};

use crate::{Error, Result};

/// Being inside, until it is dropped. The kernel ends it when the process dies.
#[derive(Debug)]
pub(crate) struct Inside {
    _file: File,
}

/// Waits until nobody else is inside, and does blocking `work` there.
///
/// The wait needs none of the runtime's threads: who is inside may need them.
pub(crate) async fn inside<T: Send + 'static>(
    folder: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let inside = enter(folder).await?;
    blocking(move || {
        let answer = work();
        drop(inside);
        answer
    })
    .await
}

/// Waits until nobody else is inside.
pub(crate) async fn enter(folder: &Path) -> Result<Inside> {
    let folder = folder.to_owned();
    waiting(move |patience| {
        let Some(_next) = lock(&folder.join("gc.next"), patience)? else { return Ok(None) };
        Ok(lock(&folder.join("gc.lock"), patience)?.map(|file| Inside { _file: file }))
    })
    .await
}

/// Waits until no other garbage collection runs; gives its lock.
pub(crate) async fn collecting(folder: &Path) -> Result<File> {
    let path = folder.join("gc.run");
    waiting(move |patience| lock(&path, patience)).await
}

/// The lock of a garbage collection, if no other one runs.
pub(crate) async fn try_collecting(folder: &Path) -> Result<Option<File>> {
    let path = folder.join("gc.run");
    blocking(move || lock(&path, Patience::None)).await
}

/// What to do about a lock that somebody else has.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Endless,
}

/// Tries once at no cost, and then on a thread of its own.
async fn waiting<T: Send + 'static>(
    attempt: impl Fn(Patience) -> Result<Option<T>> + Clone + Send + 'static,
) -> Result<T> {
    let first = attempt.clone();
    if let Some(locked) = blocking(move || first(Patience::None)).await? {
        return Ok(locked);
    }
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may have gone meanwhile; then the lock goes with the message.
    let wait = move || drop(sender.send(attempt(Patience::Endless)));
    thread::Builder::new().name("windlass-lock".into()).spawn(wait).map_err(|source| Error::Io {
        op: "start a thread that waits for",
        path: PathBuf::from("gc.lock"),
        source,
    })?;
    let locked = receiver.await.expect("the thread always answers")?;
    Ok(locked.expect("who waits without end gets the lock"))
}

fn lock(path: &Path, patience: Patience) -> Result<Option<File>> {
    let failed = |source| Error::Io { op: "lock", path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    loop {
        let locked = match patience {
            Patience::Endless => file.lock(),
            Patience::None => match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Ok(()),
            },
        };
        match locked {
            Ok(()) => return Ok(Some(file)),
            // A signal came to this thread; the wait is not over.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(failed(source)),
        }
    }
}

/// Runs disk work off the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.expect("disk work neither panics nor is aborted")
}
