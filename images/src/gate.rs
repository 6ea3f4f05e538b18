//! The lock between those who hold content and the garbage collection that removes it.
//!
//! Only one is inside at a time, in whatever process, and only for a moment. Who waits is not overtaken: one has to pass
//! the file `gc.next` to wait for `gc.lock`, and whoever is waiting has the former.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use windlass_content::lock::{Patience, flock, patiently};

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

/// Waits on a thread that nobody else needs.
async fn waiting<T: Send + 'static>(
    attempt: impl Fn(Patience) -> Result<Option<T>> + Clone + Send + 'static,
) -> Result<T> {
    let no_thread =
        |source| Error::Io { op: "start a thread that waits for", path: PathBuf::from("gc.lock"), source };
    patiently(attempt, no_thread).await
}

fn lock(path: &Path, patience: Patience) -> Result<Option<File>> {
    let failed = |source| Error::Io { op: "lock", path: path.to_owned(), source };
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    Ok(flock(&file, patience).map_err(failed)?.then_some(file))
}

/// Runs disk work off the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.expect("disk work neither panics nor is aborted")
}
