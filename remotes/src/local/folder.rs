use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
};

use super::files::{Files, Span};
use crate::{Error, Result};

/// A folder that is never left, whatever symbolic links are in it.
#[derive(Debug)]
pub(super) struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens a folder.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = open(path, flags, Mode::empty()).map_err(|errno| cannot_open(path, errno.into()))?;
        // So that `.` has a name.
        let path = path.canonicalize().map_err(|source| cannot_open(path, source))?;
        Ok(Self { handle, path })
    }
}

impl Files for Folder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str) -> Result<Option<Span>> {
        let path = self.path.join(name);
        let refused = |reason: &str| Error::File { path: path.clone(), line: None, reason: reason.into() };
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = match openat2(&self.handle, name, REGULAR, Mode::empty(), inside) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => return Err(refused("it leads out of the image's folder")),
            Err(Errno::LOOP) => return Err(refused("its symbolic links lead nowhere")),
            Err(errno) => return Err(cannot_open(&path, errno.into())),
        };
        let size = regular(&file, &path)?;
        Ok(Some(Span { file: Arc::new(file), start: 0, size, path }))
    }
}

/// How to open what should be a regular file: a pipe must not make the caller wait.
const REGULAR: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a regular file, wherever it is, and tells its size in bytes.
pub(super) fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = open(path, REGULAR, Mode::empty()).map_err(|errno| cannot_open(path, errno.into()))?;
    let file = File::from(file);
    let size = regular(&file, path)?;
    Ok((file, size))
}

/// The size of a regular file, in bytes.
fn regular(file: &File, path: &Path) -> Result<u64> {
    let metadata =
        file.metadata().map_err(|source| Error::Io { op: "read the size of", path: path.into(), source })?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => {
            let reason = "it is not a regular file".into();
            Err(Error::File { path: path.into(), line: None, reason })
        }
    }
}

fn cannot_open(path: &Path, source: io::Error) -> Error {
    Error::Io { op: "open", path: path.into(), source }
}
