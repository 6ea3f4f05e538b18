//! Trees of files: counting, copying and removing them.
//!
//! They are hostile: as deep as their maker liked, and perhaps changed meanwhile. So all goes by handles of folders, no link
//! is followed, nothing is recursive, and few handles are open at a time ([`Descent`]).

mod content;
mod copy;
mod count;
mod descent;
mod remove;

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat, openat};

#[cfg(feature = "erofs")]
pub(crate) use self::descent::Descent;
#[cfg(not(feature = "erofs"))]
use self::descent::Descent;

#[cfg(feature = "overlay")]
pub(crate) use self::copy::copy;
pub(crate) use self::{copy::copy_folder, count::usage, remove::remove};
#[cfg(feature = "btrfs")]
pub(crate) use self::{count::usage_beside, remove::remove_with};

/// Opens a folder, not a link to one.
pub(crate) fn open_folder(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// The names in a folder, without `.` and `..`.
pub(crate) fn names(folder: impl AsFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_dir()
}
