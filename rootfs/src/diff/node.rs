//! What a file, folder, link or device is, beside its content.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Stat, Timespec, fgetxattr, flistxattr, fstat, lgetxattr, llistxattr, major, minor,
        readlinkat, statat,
    },
    io::Errno,
};
use tar::EntryType;

use super::{archive::Entry, failed};
use crate::{Result, apply::refused};

/// The most bytes of a name list or of a value that the kernel has.
const LONGEST: usize = 64 << 10;

/// A file system object.
pub(super) struct Node {
    pub(super) stat: Stat,
    pub(super) kind: FileType,
    /// Where a symbolic link points.
    pub(super) target: Vec<u8>,
    /// Those that a layer has, sorted by name.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Those that overlayfs keeps its books with, without their prefix.
    pub(super) marks: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads nodes, with a buffer for their attributes.
pub(super) struct Nodes {
    /// What overlayfs's attributes begin with, if they mean something.
    prefix: Option<Vec<u8>>,
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Nodes {
    /// `prefix` is what overlayfs's attributes begin with, in a tree where they mean something.
    pub(super) fn new(prefix: Option<Vec<u8>>) -> Self {
        Self { prefix, names: vec![0; LONGEST], value: vec![0; LONGEST] }
    }

    /// What is open. `path` is for errors.
    pub(super) fn of(&mut self, file: BorrowedFd<'_>, path: &Path) -> Result<Node> {
        let stat = fstat(file).map_err(failed("look at", path))?;
        let length = flistxattr(file, &mut self.names[..]);
        self.node(stat, Vec::new(), length, path, |name, value| fgetxattr(file, name, value))
    }

    /// What has a name in a folder, and cannot be opened without more: a link, a device, a fifo.
    pub(super) fn at(&mut self, folder: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<Node> {
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", path))?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                readlinkat(folder, name, Vec::new()).map_err(failed("read the link", path))?.into_bytes()
            }
            _ => Vec::new(),
        };
        // Through /proc, because their attributes cannot be had from a handle.
        let mut place = format!("/proc/self/fd/{}/", folder.as_fd().as_raw_fd()).into_bytes();
        place.extend_from_slice(name.to_bytes());
        let length = llistxattr(&place[..], &mut self.names[..]);
        self.node(stat, target, length, path, |name, value| lgetxattr(&place[..], name, value))
    }

    fn node(
        &mut self,
        stat: Stat,
        target: Vec<u8>,
        length: Result<usize, Errno>,
        path: &Path,
        get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<Node> {
        let length = match length {
            // A file system without attributes.
            Err(Errno::OPNOTSUPP) => 0,
            answer => answer.map_err(failed("list the attributes of", path))?,
        };
        let (mut xattrs, mut marks) = (Vec::new(), Vec::new());
        for name in self.names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mark = self.prefix.as_ref().and_then(|prefix| name.strip_prefix(&prefix[..]));
            if mark.is_none() && !belongs(name) {
                continue;
            }
            let value = match get(name, &mut self.value) {
                Ok(length) => self.value[..length].to_vec(),
                // It was removed since it was listed.
                Err(Errno::NODATA) => continue,
                Err(errno) => return Err(failed("read an attribute of", path)(errno)),
            };
            match mark {
                Some(mark) => marks.push((mark.to_vec(), value)),
                None if name.contains(&b'=') => {
                    let name = name.escape_ascii();
                    return Err(refused(
                        path,
                        format!("a layer cannot hold its attribute {name}: it has `=`"),
                    ));
                }
                None => xattrs.push((name.to_vec(), value)),
            }
        }
        xattrs.sort_unstable();
        Ok(Node { kind: FileType::from_raw_mode(stat.st_mode), stat, target, xattrs, marks })
    }
}

/// Whether an attribute is the file's own: not what overlayfs or the host's policy note on it, nor what applying a layer leaves out.
fn belongs(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && name != b"security.selinux"
}

impl Node {
    pub(super) fn mtime(&self) -> Timespec {
        Timespec { tv_sec: self.stat.st_mtime, tv_nsec: self.stat.st_mtime_nsec as i64 }
    }

    /// What overlayfs has noted under a name, without its prefix.
    pub(super) fn mark(&self, name: &str) -> Option<&[u8]> {
        let mark = self.marks.iter().find(|(mark, _)| mark == name.as_bytes())?;
        Some(&mark.1)
    }

    /// Whether all but the content is the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let facts = |node: &Self| {
            let Stat { st_mode, st_uid, st_gid, .. } = node.stat;
            let size = if node.kind == FileType::RegularFile { node.stat.st_size } else { 0 };
            let device = if is_device(node.kind) { node.stat.st_rdev } else { 0 };
            (st_mode, st_uid, st_gid, node.stat.st_mtime, node.stat.st_mtime_nsec, size, device)
        };
        facts(self) == facts(other) && self.target == other.target && self.xattrs == other.xattrs
    }

    /// Its entry in an archive. No time is later than `latest`.
    pub(super) fn entry<'a>(&'a self, path: &'a [u8], latest: Option<Timespec>) -> Entry<'a> {
        let kind = match self.kind {
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => EntryType::Regular,
        };
        let mtime = self.mtime();
        Entry {
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime: latest
                .filter(|it| (it.tv_sec, it.tv_nsec) < (mtime.tv_sec, mtime.tv_nsec))
                .unwrap_or(mtime),
            link: &self.target,
            device: match is_device(self.kind) {
                true => (major(self.stat.st_rdev), minor(self.stat.st_rdev)),
                false => (0, 0),
            },
            xattrs: &self.xattrs,
            size: if self.kind == FileType::RegularFile { self.stat.st_size.cast_unsigned() } else { 0 },
            ..Entry::new(path, kind)
        }
    }
}

fn is_device(kind: FileType) -> bool {
    matches!(kind, FileType::CharacterDevice | FileType::BlockDevice)
}
