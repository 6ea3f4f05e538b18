//! Removes folders with all that is in them, however deep, with one folder open at a time.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, fstat, openat, unlinkat},
    io::Errno,
};

use super::{
    made::{Gives, Id, Last, Made, times_of},
    rules::{FOLDER, Rules},
};

/// A folder on the way down.
struct Level {
    /// Its device and inode: the way up is `..`, which must lead back.
    inode: (u64, u64),
    name: OsString,
    /// What this layer made of it; `None` if it is to go.
    kept: Option<Id>,
    /// The folders in it that are still to be gone through.
    inner: Vec<(OsString, Option<Id>)>,
}

/// Removes whatever has a name in a folder. Nothing there is fine.
pub(super) fn remove(folder: &OwnedFd, name: &OsStr, rules: &Rules<'_>) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    let (inner, _) = rules.open(folder, name)?;
    walk(inner, None, &mut Made::new(Gives::default()), rules)?;
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// Removes what the layers below have in a folder, and leaves what this layer made there. Each folder is gone through once: a
/// second time there is nothing to find.
pub(super) fn clear(folder: OwnedFd, id: Id, made: &mut Made, rules: &Rules<'_>) -> Result<(), Errno> {
    if made.at(id).cleared {
        return Ok(());
    }
    walk(folder, Some(id), made, rules)
}

fn walk(top: OwnedFd, kept: Option<Id>, made: &mut Made, rules: &Rules<'_>) -> Result<(), Errno> {
    let mut folder = top;
    let mut levels = vec![enter(&folder, OsString::new(), kept, made)?];
    loop {
        let level = levels.last_mut().expect("the loop ends with the last level");
        if let Some((name, kept)) = level.inner.pop() {
            let (inner, had) = rules.open(&folder, &name)?;
            if let Some(id) = kept {
                reset(made, id, &inner, had)?;
            }
            folder = inner;
            levels.push(enter(&folder, name, kept, made)?);
            continue;
        }
        let done = levels.pop().expect("it was looked at");
        let Some(above) = levels.last() else { return Ok(()) };
        let up = openat(&folder, "..", FOLDER, Mode::empty())?;
        let stat = fstat(&up)?;
        if (stat.st_dev, stat.st_ino) != above.inode {
            // Another process has moved it: what is up there now is none of ours.
            return Err(Errno::BUSY);
        }
        folder = up;
        if done.kept.is_none() {
            unlinkat(&folder, &done.name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Removes all in a folder but folders, and notes these.
fn enter(folder: &OwnedFd, name: OsString, kept: Option<Id>, made: &mut Made) -> Result<Level, Errno> {
    let stat = fstat(folder)?;
    let mut inner = Vec::new();
    for (child, kind) in list(folder)? {
        let (stays, child_kept) = match kept.map(|id| made.at(id)) {
            None => (false, None),
            Some(this) => {
                let id = this.folders.get(&child).copied().filter(|id| made.at(*id).real);
                (this.others.contains(&child), id)
            }
        };
        match (stays, child_kept) {
            (true, _) => {}
            (_, Some(id)) if made.at(id).cleared => {
                made.reset(id);
            }
            (_, Some(id)) => inner.push((child, Some(id))),
            (_, None) => {
                if let Some(id) = kept {
                    made.forget(id, &child);
                }
                match if kind == FileType::Directory {
                    Err(Errno::ISDIR)
                } else {
                    unlinkat(folder, &child, AtFlags::empty())
                } {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR) => inner.push((child, None)),
                    Err(errno) => return Err(errno),
                }
            }
        }
    }
    if let Some(id) = kept {
        made.at_mut(id).cleared = true;
    }
    Ok(Level { inode: (stat.st_dev, stat.st_ino), name, kept, inner })
}

/// Notes that a folder that the layer has is hidden; `had` is the mode that it is to get back.
pub(super) fn reset(made: &mut Made, id: Id, folder: &OwnedFd, had: Option<u32>) -> Result<(), Errno> {
    if !made.reset(id)
        && let Some(mode) = had
    {
        let times = times_of(&fstat(folder)?);
        let last = made.at_mut(id).last.get_or_insert_with(|| Last::at(times));
        last.mode = last.mode.or(Some(mode));
    }
    Ok(())
}

/// The names in a folder, and what they are, as far as the file system says.
pub(super) fn list(folder: &OwnedFd) -> Result<Vec<(OsString, FileType)>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push((OsStr::from_bytes(name).to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}
