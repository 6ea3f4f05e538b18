use std::{os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, unlinkat},
    io::Errno,
};

use super::{Descent, names, open_folder};
use crate::{Result, folders::io};

/// Removes a tree. One that is not there, or that somebody else is removing too, is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    remove_with(path, |_| {})
}

/// As [`remove`]; `prepare` sees each folder before anything in it is removed.
pub(crate) fn remove_with(path: &Path, prepare: fn(BorrowedFd<'_>)) -> Result<()> {
    let result = match open_folder(CWD, path) {
        Ok(folder) => Descent::new(folder)
            .and_then(|at| remove_below(at, prepare))
            .and_then(|()| gone(unlinkat(CWD, path, AtFlags::REMOVEDIR))),
        Err(err) => gone(Err(err)),
    };
    result.map_err(|err| io("remove", path, err.into()))
}

fn remove_below(mut at: Descent, prepare: fn(BorrowedFd<'_>)) -> rustix::io::Result<()> {
    prepare(at.here());
    // For each folder above, what is left to remove there: its last name is that of the folder below it.
    let mut left = vec![names(at.here())?];
    while let Some(folder) = left.last_mut() {
        let Some(name) = folder.pop() else {
            left.pop();
            if let Some(name) = left.last_mut().and_then(Vec::pop) {
                at.leave()?;
                gone(unlinkat(at.here(), &name, AtFlags::REMOVEDIR))?;
            }
            continue;
        };
        match unlinkat(at.here(), &name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => match at.enter(&name) {
                Ok(()) => {
                    prepare(at.here());
                    folder.push(name);
                    left.push(names(at.here())?);
                }
                Err(Errno::NOTDIR | Errno::LOOP) => return Err(Errno::PERM),
                Err(err) => gone(Err(err))?,
            },
            other => gone(other)?,
        }
    }
    Ok(())
}

fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
