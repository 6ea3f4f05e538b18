//! One tar entry: its path, type, owner, mode, time and attributes, checked.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Timespec, Timestamps};
use tar::{EntryType, Header};

use super::{
    Limits,
    archive::{Member, decimal, number},
    refused,
    sparse::Sparse,
};
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
    /// Where in the file its data belongs.
    pub(super) content: Sparse,
    /// Where a link points: as it is for a symbolic one, relative to the root for a hard one.
    pub(super) link: PathBuf,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(super) fn of(member: Member, limits: &Limits) -> Result<Self> {
        let Member { header, kind, path: raw, link, sparse, records, size } = member;
        if raw.len() as u64 > limits.path {
            let entry = PathBuf::from(os_str(&raw[..200.min(raw.len())]));
            return Err(Error::Limit { entry, what: "bytes of a path", limit: limits.path });
        }
        let path = inside(Path::new(os_str(&raw)))?;
        if path.components().count() as u64 > limits.depth {
            return Err(Error::Limit { entry: path, what: "folders above each other", limit: limits.depth });
        }
        let malformed = |what: &str| refused(&path, format!("its {what} is malformed, or too large"));
        let id = |key: &str, field: &[u8], what: &str| {
            let value = match records.get(key.as_bytes()) {
                Some(text) => decimal(text),
                None => number(field).and_then(|value| u64::try_from(value).ok()),
            };
            // The highest number says that nothing is to be changed.
            let value = value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value != u32::MAX);
            value.ok_or_else(|| malformed(what))
        };
        let old = header.as_old();
        let uid = id("uid", &old.uid, "owner")?;
        let gid = id("gid", &old.gid, "group")?;
        let mode = number(&old.mode).ok_or_else(|| malformed("mode"))?;
        let mode = u32::try_from(mode & 0o7777).expect("twelve bits fit");
        let mtime = match records.get(&b"mtime"[..]) {
            Some(text) => parse_time(text),
            None => number(&old.mtime).map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 }),
        };
        let mtime = mtime.ok_or_else(|| malformed("time"))?;
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                device(&header).ok_or_else(|| malformed("device number"))?
            }
            _ => (0, 0),
        };
        let link = PathBuf::from(os_str(&link));
        let link = if kind == EntryType::Link { inside(&link)? } else { link };
        let sparse = sparse.unwrap_or_else(|| Sparse { pieces: vec![(0, size)], size });
        if sparse.size > limits.file {
            return Err(Error::Limit { entry: path, what: "bytes of a file", limit: limits.file });
        }
        let mut xattrs = Vec::new();
        let mut xattr_bytes = 0;
        for (key, value) in records {
            let Some(name) = key.strip_prefix(XATTR) else { continue };
            xattr_bytes += (name.len() + value.len()) as u64;
            if xattr_bytes > limits.xattrs {
                let limit = limits.xattrs;
                return Err(Error::Limit { entry: path, what: "bytes of extended attributes", limit });
            }
            if is_allowed(name) {
                xattrs.push((name.to_vec(), value));
            }
        }
        Ok(Self { path, kind, mode, uid, gid, mtime, content: sparse, link, device, xattrs })
    }

    /// Its time, for what sets access and modification times together.
    pub(super) fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }
}

/// Whether a layer may set an attribute: not those by which overlayfs is steered.
pub(super) fn is_allowed(name: &[u8]) -> bool {
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.")
}

/// The major and minor number of a device, as far as the kernel has room for them: it would cut them off, and any device
/// could become the one by which overlayfs hides a name.
fn device(header: &Header) -> Option<(u32, u32)> {
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(ustar), _) => (ustar.dev_major, ustar.dev_minor),
        (None, gnu) => gnu.map(|gnu| (gnu.dev_major, gnu.dev_minor))?,
    };
    let part =
        |field: &[u8], bits: u32| u32::try_from(number(field)?).ok().filter(|value| value >> bits == 0);
    Some((part(&major, 12)?, part(&minor, 20)?))
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
