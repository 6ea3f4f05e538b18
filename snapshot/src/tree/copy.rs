use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
        chownat, fstat, lgetxattr, linkat, llistxattr, lsetxattr, mkdirat, mknodat, openat, readlinkat,
        statat, symlinkat, utimensat,
    },
    io::Errno,
};

use super::{Descent, content::content, names, open_folder};
use crate::{Result, folders::io};

/// The kernel's limit for the list of a file's attributes, and for the value of one.
const XATTRS: usize = 64 * 1024;
/// How long a path may be that is given to one call: the kernel takes 4,095 bytes.
const STEP: usize = 3_000;

/// Copies what is in the folder `from`, and the attributes of `from` itself, to the folder `to`, which is there and
/// empty: owners, modes, attributes, times, holes, and which names are of one file.
pub(crate) fn copy(from: OwnedFd, to: &Path) -> Result<()> {
    let copied = open_folder(CWD, to).and_then(|target| Copier::new(from, target)?.run());
    copied.map_err(|err: Errno| io("copy a tree to", to, err.into()))
}

/// As [`copy`], of a folder by its path.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    copy(open_folder(CWD, from).map_err(|err| io("open", from, err.into()))?, to)
}

struct Copier {
    source: Descent,
    target: Descent,
    /// The top of the target.
    root: OwnedFd,
    /// Where the first name of a file with several is, from the root.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Where we are, from the root.
    path: Vec<u8>,
    buffers: [Vec<u8>; 2],
}

/// A folder that is being copied.
struct Level {
    stat: Stat,
    /// What is still to be copied.
    left: Vec<CString>,
    /// How long the path was above it.
    above: usize,
}

impl Copier {
    fn new(source: OwnedFd, target: OwnedFd) -> rustix::io::Result<Self> {
        Ok(Self {
            source: Descent::new(source)?,
            root: rustix::io::fcntl_dupfd_cloexec(&target, 0)?,
            target: Descent::new(target)?,
            linked: HashMap::new(),
            path: Vec::new(),
            buffers: [vec![0; XATTRS], vec![0; XATTRS]],
        })
    }

    fn run(mut self) -> rustix::io::Result<()> {
        let mut levels = vec![self.level(fstat(self.source.here())?, 0)?];
        while let Some(folder) = levels.last_mut() {
            if let Some(name) = folder.left.pop() {
                let stat = statat(self.source.here(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode).is_dir() {
                    mkdirat(self.target.here(), &name, Mode::RWXU)?;
                    self.source.enter(&name)?;
                    self.target.enter(&name)?;
                    let above = self.path.len();
                    self.path.extend_from_slice(name.to_bytes());
                    self.path.push(b'/');
                    levels.push(self.level(stat, above)?);
                } else {
                    self.file(&name, &stat)?;
                }
            } else {
                // Only now, since what is made in a folder changes its times.
                let (stat, above) = (folder.stat, folder.above);
                self.attributes(c".", &stat)?;
                levels.pop();
                if !levels.is_empty() {
                    self.path.truncate(above);
                    self.source.leave()?;
                    self.target.leave()?;
                }
            }
        }
        Ok(())
    }

    fn level(&self, stat: Stat, above: usize) -> rustix::io::Result<Level> {
        Ok(Level { stat, left: names(self.source.here())?, above })
    }

    fn file(&mut self, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
        let (source, target) = (self.source.here(), self.target.here());
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&id) {
                let (folder, first) = walk_to(&self.root, first)?;
                return linkat(&folder, first, target, name, AtFlags::empty());
            }
            self.linked.insert(id, [&self.path, name.to_bytes()].concat());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                // What was a file a moment ago may be a fifo now, which must not hold us up.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let from = openat(source, name, flags, Mode::empty())?;
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                content(&from, &openat(target, name, flags, Mode::RUSR | Mode::WUSR)?)?;
            }
            FileType::Symlink => symlinkat(readlinkat(source, name, Vec::new())?, target, name)?,
            other => mknodat(target, name, other, Mode::RUSR | Mode::WUSR, stat.st_rdev)?,
        }
        self.attributes(name, stat)
    }

    /// Owner first, since changing it drops set-user-ID bits and capabilities; times last, since the rest changes them.
    fn attributes(&mut self, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
        let target = self.target.here();
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        chownat(target, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            chmodat(target, name, Mode::from_raw_mode(stat.st_mode), AtFlags::empty())?;
        }
        xattrs(self.source.here(), target, name, &mut self.buffers)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: nanos(stat.st_atime_nsec) },
            last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos(stat.st_mtime_nsec) },
        };
        utimensat(target, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// The folder of a file in a tree that we made ourselves, and its name: by steps, as a path may be longer than one call takes.
fn walk_to<'a>(root: &OwnedFd, mut path: &'a [u8]) -> rustix::io::Result<(OwnedFd, &'a [u8])> {
    let mut folder = open_folder(root, ".")?;
    while path.len() > STEP {
        // Names have at most 255 bytes.
        let cut = path[..STEP].iter().rposition(|byte| *byte == b'/').expect("names are shorter than a step");
        folder = open_folder(&folder, &path[..cut])?;
        path = &path[cut + 1..];
    }
    Ok((folder, path))
}

fn nanos(nanos: u64) -> i64 {
    i64::try_from(nanos).expect("less than a second")
}

/// Through /proc, because the attributes of a link or a device cannot be had from an open handle.
fn xattrs(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
    [list, value]: &mut [Vec<u8>; 2],
) -> rustix::io::Result<()> {
    let from = in_proc(source, name);
    let length = match llistxattr(&from, &mut list[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => length,
        Err(err) => return Err(err),
    };
    let to = in_proc(target, name);
    // A label of SELinux says where a file is, not what it is: the new file has its own, and only the policy may set it.
    let kept = |key: &&[u8]| !key.is_empty() && *key != b"security.selinux";
    for key in list[..length].split(|byte| *byte == 0).filter(kept) {
        let length = lgetxattr(&from, key, &mut value[..])?;
        lsetxattr(&to, key, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn in_proc(folder: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}
