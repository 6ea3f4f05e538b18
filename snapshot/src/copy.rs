//! Copies a tree with all that tar would keep. All by handles of folders; no link is followed.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
        chownat, copy_file_range, fstat, ioctl_ficlone, lgetxattr, linkat, llistxattr, lsetxattr, mkdirat,
        mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};

use crate::{Result, files, folders::io};

/// Copies what is in `from`, and the attributes of `from` itself, to the folder `to`, which is there and empty.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<()> {
    let copied = (|| {
        let (source, target) = (files::open_folder(CWD, from)?, files::open_folder(CWD, to)?);
        let mut copier =
            Copier { linked: HashMap::new(), root: target.try_clone().map_err(|_| Errno::MFILE)? };
        copier.below(&source, &target, &mut Vec::new())?;
        attributes(&source, c".", &target, c".", &fstat(&source)?)
    })();
    copied.map_err(|err: Errno| io("copy the parent's tree to", to, err.into()))
}

struct Copier {
    /// Where the first name of a file with several is, from the root.
    linked: HashMap<(u64, u64), CString>,
    root: OwnedFd,
}

impl Copier {
    fn below(&mut self, source: &OwnedFd, target: &OwnedFd, path: &mut Vec<u8>) -> rustix::io::Result<()> {
        for name in files::names(source)? {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.one(source, target, &name, path)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn one(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &CString,
        path: &mut Vec<u8>,
    ) -> rustix::io::Result<()> {
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !kind.is_dir() && stat.st_nlink > 1 {
            let place = CString::new(path.clone()).expect("names hold no zero byte");
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return linkat(&self.root, first, target, name, AtFlags::empty());
            }
            self.linked.insert((stat.st_dev, stat.st_ino), place);
        }
        match kind {
            FileType::Directory => {
                mkdirat(target, name, Mode::RWXU)?;
                self.below(&files::open_folder(source, name)?, &files::open_folder(target, name)?, path)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let from = openat(source, name, flags, Mode::empty())?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                content(from, openat(target, name, flags, Mode::RUSR | Mode::WUSR)?)?;
            }
            FileType::Symlink => symlinkat(readlinkat(source, name, Vec::new())?, target, name)?,
            other => mknodat(target, name, other, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        attributes(source, name, target, name, &stat)
    }
}

/// Shares the blocks if the file system can, lets the kernel copy if not, and copies by hand as the last resort.
fn content(from: OwnedFd, to: OwnedFd) -> rustix::io::Result<()> {
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    loop {
        match copy_file_range(&from, None, &to, None, 1 << 30) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let copied = std::io::copy(&mut File::from(from), &mut File::from(to));
                return copied.map(drop).map_err(|err| Errno::from_io_error(&err).unwrap_or(Errno::IO));
            }
            Err(err) => return Err(err),
        }
    }
}

/// Owner first, since changing it drops set-user-ID bits and capabilities; times last, since the rest changes them.
fn attributes(
    source: &OwnedFd,
    name: &std::ffi::CStr,
    target: &OwnedFd,
    to: &std::ffi::CStr,
    stat: &Stat,
) -> rustix::io::Result<()> {
    let link = FileType::from_raw_mode(stat.st_mode).is_symlink();
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(target, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !link {
        chmodat(target, to, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
    }
    xattrs(source, name, target, to)?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanos(stat.st_atime_nsec) },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos(stat.st_mtime_nsec) },
    };
    utimensat(target, to, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn nanos(nanos: u64) -> i64 {
    i64::try_from(nanos).expect("less than a second")
}

/// Through /proc, because the attributes of a link or a device cannot be had from an open handle.
fn xattrs(
    source: &OwnedFd,
    name: &std::ffi::CStr,
    target: &OwnedFd,
    to: &std::ffi::CStr,
) -> rustix::io::Result<()> {
    let (from, to) = (in_proc(source, name), in_proc(target, to));
    let mut list = vec![0; 64 * 1024];
    let length = match llistxattr(&from, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(err) => return Err(err),
    };
    for key in list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = lgetxattr(&from, key, &mut value[..])?;
        lsetxattr(&to, key, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn in_proc(folder: &OwnedFd, name: &std::ffi::CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}
