//! One tar entry: its path, type, owner, mode, time and attributes, checked.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Timespec, Timestamps};
use tar::{Entry, EntryType};

use super::{Limits, refused, tar_error};
use crate::{Error, Result};

/// The prefix of a PAX record that holds an extended attribute.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What a header says, after PAX and GNU extensions.
#[derive(Debug)]
pub(super) struct Meta {
    /// Relative to the root, without `.` and `..`; empty for the root itself.
    pub(super) path: PathBuf,
    pub(super) kind: EntryType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    pub(super) size: u64,
    /// Where a link points: as it is for a symbolic one, relative to the root for a hard one.
    pub(super) link: PathBuf,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>, limits: &Limits) -> Result<Self> {
        let raw = os_str(&entry.path_bytes()).to_owned();
        if raw.len() as u64 > limits.path {
            let entry = PathBuf::from(OsStr::from_bytes(&raw.as_bytes()[..200]));
            return Err(Error::Limit { entry, what: "bytes of a path", limit: limits.path });
        }
        let path = inside(Path::new(&raw))?;
        let header = entry.header();
        let kind = header.entry_type();
        let number = |value: std::io::Result<u64>, what: &str| {
            let value = value.map_err(|error| refused(&path, format!("{what} is malformed: {error}")))?;
            u32::try_from(value).map_err(|_| refused(&path, format!("{what} {value} is too large")))
        };
        let uid = number(header.uid(), "its owner")?;
        let gid = number(header.gid(), "its group")?;
        let mode =
            header.mode().map_err(|error| refused(&path, format!("its mode is malformed: {error}")))?
                & 0o7777;
        let mut mtime = header
            .mtime()
            .map_err(|error| refused(&path, format!("its time is malformed: {error}")))?
            .try_into()
            .map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 })
            .map_err(|_| refused(&path, "its time is too large"))?;
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                let part = |value: std::io::Result<Option<u32>>| {
                    value.ok().flatten().ok_or_else(|| refused(&path, "its device number is malformed"))
                };
                (part(header.device_major())?, part(header.device_minor())?)
            }
            _ => (0, 0),
        };
        let link = entry.link_name_bytes().map(|bytes| PathBuf::from(os_str(&bytes))).unwrap_or_default();
        let link = if kind == EntryType::Link { inside(&link)? } else { link };
        let size =
            if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() { entry.size() } else { 0 };
        let mut xattrs = Vec::new();
        let mut xattr_bytes = 0;
        for record in entry.pax_extensions().map_err(tar_error)?.into_iter().flatten() {
            let record = record.map_err(tar_error)?;
            let (key, value) = (record.key_bytes(), record.value_bytes());
            if key == b"mtime" {
                mtime = parse_time(value).ok_or_else(|| refused(&path, "its time is malformed"))?;
            } else if let Some(name) = key.strip_prefix(XATTR) {
                xattr_bytes += (name.len() + value.len()) as u64;
                if xattr_bytes > limits.xattrs {
                    let limit = limits.xattrs;
                    return Err(Error::Limit { entry: path, what: "bytes of extended attributes", limit });
                }
                if is_allowed(name) {
                    xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(Self { path, kind, mode, uid, gid, mtime, size, link, device, xattrs })
    }

    /// Its time, for what sets access and modification times together.
    pub(super) fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }
}

/// Whether a layer may set an attribute: not those by which overlayfs is steered.
fn is_allowed(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

/// A path relative to the root: `/a`, `./a` and `a` are the same, and `..` is refused.
fn inside(path: &Path) -> Result<PathBuf> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(Ok(name)),
            Component::ParentDir => Some(Err(refused(path, "its path has `..`"))),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// A PAX time: seconds with an optional fraction, possibly negative.
fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    // -1.25 is two seconds before the epoch and 0.75 seconds after that.
    let (tv_sec, tv_nsec) = match text.starts_with('-') && nanoseconds > 0 {
        true => (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds),
        false => (seconds, nanoseconds),
    };
    Some(Timespec { tv_sec, tv_nsec })
}

pub(super) fn os_str(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, seconds, nanoseconds) in [
            ("1", 1, 0),
            ("981173106.123456789", 981_173_106, 123_456_789),
            ("-86400", -86400, 0),
            ("-1.25", -2, 750_000_000),
            ("-0.5", -1, 500_000_000),
        ] {
            let time = parse_time(text.as_bytes()).expect(text);
            assert_eq!((time.tv_sec, time.tv_nsec), (seconds, nanoseconds), "{text}");
        }
        assert_eq!(parse_time(b"x").map(|it| it.tv_sec), None);
    }

    #[test]
    fn a_path_is_below_the_root_or_refused() {
        for (path, relative) in [("/etc/passwd", "etc/passwd"), ("./a//b/.", "a/b"), ("./", "")] {
            assert_eq!(inside(Path::new(path)).expect(path), Path::new(relative));
        }
        assert!(inside(Path::new("a/../../b")).is_err());
    }
}
