//! The file that a lease's process has locked while it lives.
//!
//! New ones are made, and looked at, only [inside](crate::gate). A lease that ends removes its own at any time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

pub(super) fn path(folder: &Path, id: &str) -> PathBuf {
    folder.join("leases").join(id)
}

/// Makes and locks the file of a lease; `None` if another handle has it.
pub(super) fn take(folder: &Path, id: &str) -> Result<Option<File>> {
    let path = path(folder, id);
    let failed = |op, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { op, path, source }
    };
    let leases = folder.join("leases");
    match fs::create_dir(&leases) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("create", &leases)(error));
        }
        _ => {}
    }
    loop {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        // A lease that ended just now may have removed it before we had the lock.
        let ours = file.metadata().map_err(failed("read", &path))?;
        match fs::metadata(&path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(Some(file)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("read", &path)(source)),
        }
    }
}

/// Whether the process of a lease lives, and has it.
pub(super) fn is_held(folder: &Path, id: &str) -> Result<bool> {
    let path = path(folder, id);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Error::Io { op: "open", path, source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(Error::Io { op: "lock", path, source }),
    }
}

/// Removes the file of a lease that has ended; none there is fine.
pub(super) fn remove(folder: &Path, id: &str) -> Result<()> {
    let path = path(folder, id);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { op: "remove", path, source })
        }
        _ => Ok(()),
    }
}

/// The ids of all files, those of no lease included: a crash leaves them.
pub(super) fn ids(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("leases");
    let read = || fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(names) => Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::Io { op: "list", path, source }),
    }
}

/// Whether an id can be a file's name: letters, digits, `.`, `_`, `-`, at most 128, and no `.` first.
pub(super) fn is_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.bytes().all(plain)
}
