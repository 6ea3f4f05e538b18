//! What the layers below have where a layer has something. Paths in here are real ones: no links are in them.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, FileType, Stat, statat},
    io::Errno,
};

use super::{remove::list, tree::parent, walk::open_real};

/// The merged tree of the layers below.
#[derive(Debug)]
pub(super) struct Lower<'a> {
    pub(super) root: &'a OwnedFd,
    /// What was looked up last: much of a layer asks for the same.
    last: Option<(PathBuf, Option<Rc<OwnedFd>>)>,
}

/// Which file it is, whatever its name.
pub(super) type Inode = (u64, u64);

impl<'a> Lower<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// The folder of a path, if there is one.
    pub(super) fn folder(&mut self, path: &Path) -> Result<Option<Rc<OwnedFd>>, Errno> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(folder.clone());
        }
        let folder = match open_real(self.root, path) {
            Ok(folder) => Some(Rc::new(folder)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(errno) => return Err(errno),
        };
        self.last = Some((path.to_owned(), folder.clone()));
        Ok(folder)
    }

    /// What a path is, with the folder that it is in; `None` if nothing is there.
    pub(super) fn look(&mut self, path: &Path) -> Result<Option<(Rc<OwnedFd>, Stat)>, Errno> {
        let Some((folder, name)) = self.folder(parent(path))?.zip(path.file_name()) else { return Ok(None) };
        match statat(&*folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((folder, stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// All names of the files that have several. Looks at the whole tree.
    pub(super) fn names(&self) -> Result<HashMap<Inode, Vec<PathBuf>>, Errno> {
        let mut names: HashMap<_, Vec<_>> = HashMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(path) = open.pop() {
            let folder = open_real(self.root, &path)?;
            for (name, _) in list(&folder)? {
                let stat = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if kind(&stat) == FileType::Directory {
                    open.push(path.join(name));
                } else if stat.st_nlink > 1 {
                    names.entry((stat.st_dev, stat.st_ino)).or_default().push(path.join(name));
                }
            }
        }
        Ok(names)
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}
