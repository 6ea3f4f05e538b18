//! The folders from the root of a tree to where a walk is.

use std::{
    ffi::{CStr, CString, OsStr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, FileType, Mode, OFlags, Stat, fstat, openat},
    io::Errno,
};

use super::{changed, failed};
use crate::Result;

/// How many folders are open at once, of one tree.
const OPEN: usize = 16;
/// How a folder is opened.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A device and inode number: which file it is.
pub(super) type Id = (u64, u64);

/// The folders from a root down to one below it. However deep it is, only some of them are open; the others are opened again by
/// name when they are needed, and must be the same then. No link is followed.
pub(super) struct Track {
    root: OwnedFd,
    folders: Vec<Folder>,
}

struct Folder {
    name: CString,
    id: Id,
    handle: Option<OwnedFd>,
}

impl Track {
    pub(super) fn new(root: &OwnedFd) -> Result<Self> {
        let root = openat(root, ".", FOLDER, Mode::empty()).map_err(failed("open", Path::new("/")))?;
        Ok(Self { root, folders: Vec::new() })
    }

    /// The innermost folder. [`settle`](Self::settle) must have come since the last [`pop`](Self::pop).
    pub(super) fn top(&self) -> BorrowedFd<'_> {
        match self.folders.last() {
            None => self.root.as_fd(),
            Some(folder) => folder.handle.as_ref().expect("settle has opened it").as_fd(),
        }
    }

    /// Opens a folder in the innermost one.
    pub(super) fn open(&self, name: &CStr) -> Result<OwnedFd, Errno> {
        openat(self.top(), name, FOLDER, Mode::empty())
    }

    /// Goes into a folder that was opened.
    pub(super) fn push(&mut self, name: &CStr, handle: OwnedFd, stat: &Stat) {
        self.folders.push(Folder { name: name.to_owned(), id: id(stat), handle: Some(handle) });
        if let Some(far) = self.folders.len().checked_sub(OPEN + 1) {
            self.folders[far].handle = None;
        }
    }

    /// Goes back to the folder above.
    pub(super) fn pop(&mut self) {
        self.folders.pop();
    }

    /// Opens the innermost folder again, if it was closed meanwhile, and those above it that will be next.
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.folders.last().is_none_or(|folder| folder.handle.is_some()) {
            return Ok(());
        }
        let kept = self.folders.len().saturating_sub(OPEN);
        let mut path = PathBuf::new();
        let mut passed: Option<OwnedFd> = None;
        for at in 0..self.folders.len() {
            let (above, rest) = self.folders.split_at_mut(at);
            let above = above.last().and_then(|folder| folder.handle.as_ref()).or(passed.as_ref());
            let folder = &mut rest[0];
            path.push(OsStr::from_bytes(folder.name.to_bytes()));
            let inner = openat(above.unwrap_or(&self.root), &folder.name, FOLDER, Mode::empty());
            let inner = inner.map_err(|errno| match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP => changed(&path),
                errno => failed("open", &path)(errno),
            })?;
            if id(&fstat(&inner).map_err(failed("look at", &path))?) != folder.id {
                return Err(changed(&path));
            }
            match at < kept {
                true => passed = Some(inner),
                false => folder.handle = Some(inner),
            }
        }
        Ok(())
    }

    /// The names in the innermost folder, sorted, each with its type if the file system tells.
    pub(super) fn names(&self) -> Result<Vec<(CString, FileType)>, Errno> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.top())? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        names.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
        Ok(names)
    }
}

pub(super) fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}
