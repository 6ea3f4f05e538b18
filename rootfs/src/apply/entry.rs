//! One tar entry: what it means, its owner, mode, time and attributes, checked.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{Timespec, Timestamps};
use tar::{EntryType, Header};

use super::{
    Limits,
    archive::{Member, cut},
    attributes,
    pax::{decimal, natural, number, time},
    refused,
    sparse::Sparse,
};
use crate::{Error, Result};

/// What a header says, after PAX and GNU extensions.
#[derive(Debug)]
pub(super) struct Meta {
    /// Relative to the root, without `.` and `..`; empty for the root itself.
    pub(super) path: PathBuf,
    pub(super) role: Role,
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

/// What an entry is for (image-spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is something in the tree.
    Entry,
    /// It hides what the layers below have at this path.
    Hides(PathBuf),
    /// It hides all that the layers below have in this folder.
    HidesAllIn(PathBuf),
    /// AUFS kept it for itself; it means nothing.
    Leftover,
}

impl Meta {
    pub(super) fn of(member: Member, limits: &Limits) -> Result<Self> {
        let Member { header, kind, path: raw, link, sparse, records, size } = member;
        let path = checked(&raw, limits)?;
        let role = role(&path, raw.ends_with(b"/"))?;
        let malformed = |what: &str| refused(&path, format!("its {what} is malformed, or too large"));
        let id = |key: &str, field: &[u8], what: &str| {
            let value = match records.get(key) {
                Some(text) => decimal(text),
                None => natural(field),
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
        let mtime = match records.get("mtime") {
            Some(text) => time(text),
            None => number(&old.mtime).map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 }),
        };
        let mtime = mtime.ok_or_else(|| malformed("time"))?;
        let device = match kind {
            EntryType::Char | EntryType::Block => {
                device(&header).ok_or_else(|| malformed("device number"))?
            }
            _ => (0, 0),
        };
        let link = match kind {
            EntryType::Link => checked(&link, limits)?,
            EntryType::Symlink if link.len() as u64 > limits.path => {
                return Err(Error::Limit { entry: path, what: "bytes of a link", limit: limits.path });
            }
            EntryType::Symlink if link.is_empty() => {
                return Err(refused(&path, "it is a symbolic link to nothing"));
            }
            _ => PathBuf::from(os_str(&link)),
        };
        let sparse = sparse.unwrap_or_else(|| Sparse { pieces: vec![(0, size)], size });
        if sparse.size > limits.file {
            return Err(Error::Limit { entry: path, what: "bytes of a file", limit: limits.file });
        }
        let xattrs = attributes::of(&records, kind, &path, limits)?;
        Ok(Self { path, role, kind, mode, uid, gid, mtime, content: sparse, link, device, xattrs })
    }

    /// Its time, for what sets access and modification times together.
    pub(super) fn times(&self) -> Timestamps {
        Timestamps { last_access: self.mtime, last_modification: self.mtime }
    }
}

/// A path relative to the root: `/a`, `./a` and `a` are the same, and `..` is refused.
fn checked(raw: &[u8], limits: &Limits) -> Result<PathBuf> {
    let over = |what, limit| Error::Limit { entry: cut(raw).to_owned(), what, limit };
    if raw.len() as u64 > limits.path {
        return Err(over("bytes of a path", limits.path));
    }
    let whole = Path::new(os_str(raw));
    let mut path = PathBuf::with_capacity(raw.len());
    let mut depth = 0;
    for component in whole.components() {
        match component {
            Component::Normal(name) if name.len() as u64 > limits.name => {
                return Err(over("bytes of a name", limits.name));
            }
            Component::Normal(name) => path.push(name),
            Component::ParentDir => return Err(refused(whole, "its path has `..`")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        }
        depth += 1;
    }
    match depth > limits.depth {
        true => Err(over("folders above each other", limits.depth)),
        false => Ok(path),
    }
}

/// What the names in a path mean.
fn role(path: &Path, is_folder: bool) -> Result<Role> {
    // Most names have nothing of it.
    if !path.as_os_str().as_bytes().windows(4).any(|part| part == b".wh.") {
        return Ok(Role::Entry);
    }
    let mut names = path.iter().map(OsStr::as_bytes);
    let mark = |name: &[u8]| name.starts_with(b".wh.");
    let opaque = path.file_name().is_some_and(|name| name == ".wh..wh..opq") && !is_folder;
    let mut folders = path.parent().into_iter().flatten().map(OsStr::as_bytes);
    if names.clone().any(|name| name.starts_with(b".wh..wh.") && !(opaque && name == b".wh..wh..opq")) {
        return Ok(Role::Leftover);
    }
    if folders.any(mark) {
        return Err(refused(path, "it is in a whiteout, which is no folder"));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    match names.next_back().and_then(|name| name.strip_prefix(b".wh.")) {
        None => Ok(Role::Entry),
        Some(_) if opaque => Ok(Role::HidesAllIn(folder.to_owned())),
        Some(b"" | b"." | b"..") => Err(refused(path, "it hides nothing that has a name")),
        Some(_) if is_folder => Err(refused(path, "it is a whiteout, and its name has a slash")),
        Some(hidden) => Ok(Role::Hides(folder.join(os_str(hidden)))),
    }
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

pub(super) fn os_str(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_below_the_root_or_refused() {
        let checked = |path: &str| checked(path.as_bytes(), &Limits::default());
        for (path, relative) in [("/etc/passwd", "etc/passwd"), ("./a//b/.", "a/b"), ("./", "")] {
            assert_eq!(checked(path).expect(path), Path::new(relative));
        }
        assert!(checked("a/../../b").is_err());
        for (path, limit) in [
            ("a/".repeat(513), "folders above each other"),
            ("a".repeat(256), "bytes of a name"),
            ("aaa/".repeat(1024), "bytes of a path"),
        ] {
            assert!(matches!(checked(&path), Err(Error::Limit { what, .. }) if what == limit), "{limit}");
        }
    }

    #[test]
    fn a_name_says_what_it_hides() {
        let hides = |path: &str| Role::Hides(path.into());
        let all_in = |path: &str| Role::HidesAllIn(path.into());
        for (path, is_folder, role) in [
            ("a/b", false, Some(Role::Entry)),
            ("a.wh.b", false, Some(Role::Entry)),
            (".wh.a", false, Some(hides("a"))),
            ("a/.wh.b", false, Some(hides("a/b"))),
            ("a/.wh..b", false, Some(hides("a/.b"))),
            ("a/.wh.....", false, Some(hides("a/...."))),
            (".wh..wh..opq", false, Some(all_in(""))),
            ("a/.wh..wh..opq", false, Some(all_in("a"))),
            (".wh..wh.plnk", true, Some(Role::Leftover)),
            (".wh..wh.plnk/1.2", false, Some(Role::Leftover)),
            (".wh..wh.aufs", false, Some(Role::Leftover)),
            ("a/.wh..wh.orph/b/c", true, Some(Role::Leftover)),
            (".wh..wh..opq", true, Some(Role::Leftover)),
            (".wh.", false, None),
            ("a/.wh..", false, None),
            (".wh...", false, None),
            (".wh.a", true, None),
            (".wh.a/b", false, None),
        ] {
            assert_eq!(super::role(Path::new(path), is_folder).ok(), role, "{path}");
        }
    }
}
