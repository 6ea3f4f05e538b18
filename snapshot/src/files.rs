//! Trees of files: counting them, removing them. All by handles of folders; no link is followed.

use std::{collections::HashSet, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat, unlinkat},
    io::Errno,
};

use crate::{Result, Usage, folders::io};

/// What a tree takes, its top folder included.
pub(crate) fn usage(path: &Path) -> Result<Usage> {
    let mut total = Usage::default();
    let mut count = || {
        let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
        add(&mut total, &stat);
        count_below(open_folder(CWD, path)?, &mut HashSet::new(), &mut total)
    };
    // A closure, so that one place says what was being done.
    count().map_err(|err: Errno| io("count the files of", path, err.into()))?;
    Ok(total)
}

/// Removes a tree. One that is not there, or that somebody else is removing too, is no error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let result = match open_folder(CWD, path) {
        Ok(folder) => remove_below(folder).and_then(|()| gone(unlinkat(CWD, path, AtFlags::REMOVEDIR))),
        Err(err) => gone(Err(err)),
    };
    result.map_err(|err| io("remove", path, err.into()))
}

/// Opens a folder, not a link to one.
pub(crate) fn open_folder<P: rustix::path::Arg>(
    at: impl std::os::fd::AsFd,
    name: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// The names in a folder, without `.` and `..`.
pub(crate) fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

pub(crate) fn is_folder(stat: &rustix::fs::Stat) -> bool {
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()
}

fn count_below(folder: OwnedFd, seen: &mut HashSet<(u64, u64)>, total: &mut Usage) -> rustix::io::Result<()> {
    for name in names(&folder)? {
        let stat = statat(&folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_folder(&stat) {
            add(total, &stat);
            count_below(open_folder(&folder, &name)?, seen, total)?;
        } else if stat.st_nlink == 1 || seen.insert((stat.st_dev, stat.st_ino)) {
            add(total, &stat);
        }
    }
    Ok(())
}

fn add(total: &mut Usage, stat: &rustix::fs::Stat) {
    total.inodes += 1;
    total.bytes += stat.st_blocks.cast_unsigned() * 512;
}

fn remove_below(folder: OwnedFd) -> rustix::io::Result<()> {
    for name in names(&folder)? {
        match unlinkat(&folder, &name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {
                match open_folder(&folder, &name) {
                    Ok(below) => remove_below(below)?,
                    Err(err) => gone(Err(err))?,
                }
                gone(unlinkat(&folder, &name, AtFlags::REMOVEDIR))?;
            }
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
