//! Where paths lead in the tree of the layers below.

use std::{
    ffi::OsString,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{Mode, openat, readlinkat},
    io::Errno,
};

use super::{
    rules::FOLDER,
    walk::{LINKS, names_of, open_real},
};

/// The merged tree of the layers below.
#[derive(Debug)]
pub(super) struct Lower<'a> {
    pub(super) root: &'a OwnedFd,
    /// What was looked up last: much of a layer asks for the same.
    last: Option<(PathBuf, Rc<Resolved>)>,
}

/// Where a path leads.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The path without links. Some of it may not be there.
    pub(super) real: PathBuf,
    /// The folder there, if there is one.
    pub(super) folder: Option<OwnedFd>,
}

impl<'a> Lower<'a> {
    pub(super) fn new(root: &'a OwnedFd) -> Self {
        Self { root, last: None }
    }

    /// Follows a path, links as they lead inside the root. Links in a circle are an [`Errno::LOOP`].
    pub(super) fn resolve(&mut self, path: &Path) -> Result<Rc<Resolved>, Errno> {
        match &self.last {
            Some((last, resolved)) if last == path => Ok(resolved.clone()),
            _ => {
                let resolved = Rc::new(self.look_up(path)?);
                self.last = Some((path.to_owned(), resolved.clone()));
                Ok(resolved)
            }
        }
    }

    fn look_up(&self, path: &Path) -> Result<Resolved, Errno> {
        let open = |path: &Path| open_real(self.root, path);
        let mut rest: Vec<OsString> = names_of(path).into_iter().rev().collect();
        let mut real = PathBuf::new();
        let mut folder = Some(open(&real)?);
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == ".." {
                real.pop();
                folder = found(open(&real))?;
                continue;
            }
            let Some(here) = &folder else {
                real.push(name);
                continue;
            };
            match openat(here, &name, FOLDER, Mode::empty()) {
                Ok(inner) => {
                    real.push(name);
                    folder = Some(inner);
                }
                Err(Errno::NOENT) => {
                    real.push(name);
                    folder = None;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => match readlinkat(here, &name, Vec::new()) {
                    Ok(_) if links == LINKS => return Err(Errno::LOOP),
                    Ok(target) => {
                        links += 1;
                        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                        if target.is_absolute() {
                            real.clear();
                            folder = Some(open(&real)?);
                        }
                        rest.extend(names_of(&target).into_iter().rev());
                    }
                    Err(Errno::INVAL) => {
                        real.push(name);
                        folder = None;
                    }
                    Err(errno) => return Err(errno),
                },
                Err(errno) => return Err(errno),
            }
        }
        Ok(Resolved { real, folder })
    }
}

fn found(answer: Result<OwnedFd, Errno>) -> Result<Option<OwnedFd>, Errno> {
    match answer {
        Ok(folder) => Ok(Some(folder)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}
