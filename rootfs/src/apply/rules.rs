//! How files get their owner, mode, attributes and times, by whoever applies a layer.

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, chmod, chownat, fchmod, fchown,
        fgetxattr_query, flistxattr, flistxattr_query, fremovexattr, fsetxattr, fstat, futimens, lsetxattr,
        openat, utimensat,
    },
    io::Errno,
};
use tar::EntryType;
use windlass_snapshot::Whiteouts;

use super::{
    IdMap, Options,
    attributes::{DEFAULT, mapped},
    entry::{Meta, os_str},
    ids::Unmapped,
    made::{Gives, Last},
    refused,
};
use crate::{Error, Result};

/// How a folder is opened: never through a link.
pub(super) const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Who applies a layer, and how.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) whiteouts: Whiteouts,
    /// Something is in the tree that whiteouts may remove.
    pub(super) removes: bool,
    /// The mode that something is made with is the one that it gets.
    pub(super) exact_modes: bool,
    /// Modes do not keep us out.
    pub(super) privileged: bool,
    skip_privileged: bool,
    ids: &'a IdMap,
    user: u32,
    pub(super) group: u32,
}

impl<'a> Rules<'a> {
    pub(super) fn new(options: &'a Options, removes: bool, exact_modes: bool) -> Self {
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self {
            whiteouts: options.whiteouts,
            removes,
            exact_modes,
            privileged: user == 0,
            skip_privileged: options.skip_privileged,
            ids: &options.ids,
            user,
            group,
        }
    }

    /// Whether the layer is applied alone, to be put on others later.
    pub(super) fn alone(&self) -> bool {
        self.whiteouts != Whiteouts::Remove
    }

    /// Whether something that only root may make was refused, and is to be left out.
    pub(super) fn skips(&self, errno: Errno, what: &str, path: &Path) -> bool {
        let skips = self.skip_privileged && matches!(errno, Errno::PERM | Errno::ACCESS);
        if skips {
            tracing::warn!(path = %path.display(), "{what} is left out: only root may make it");
        }
        skips
    }

    /// The owner that something made in a folder still needs to get. The kernel has given it ours.
    pub(super) fn owner(&self, meta: &Meta, gives: Gives) -> Result<Option<(Uid, Gid)>> {
        self.owner_of((meta.uid, meta.gid), gives, &meta.path)
    }

    fn owner_of(&self, ids: (u32, u32), gives: Gives, path: &Path) -> Result<Option<(Uid, Gid)>> {
        let unmapped = |error: Unmapped| refused(path, error.to_string());
        let uid = self.ids.uid(ids.0).map_err(unmapped)?.unwrap_or(self.user);
        let gid = self.ids.gid(ids.1).map_err(unmapped)?;
        // Some file systems give the folder's group.
        let given = if gives.group == self.group { Some(self.group) } else { None };
        let has = uid == self.user && gid.is_none_or(|gid| Some(gid) == given);
        Ok((!has).then(|| (Uid::from_raw(uid), Gid::from_raw(gid.unwrap_or(self.group)))))
    }

    /// The owner of what was there. `None` where all is the caller's.
    pub(super) fn any_owner(&self, meta: &Meta) -> Result<Option<(Uid, Gid)>> {
        let unmapped = |error: Unmapped| refused(&meta.path, error.to_string());
        let (uid, gid) =
            (self.ids.uid(meta.uid).map_err(unmapped)?, self.ids.gid(meta.gid).map_err(unmapped)?);
        Ok(uid.zip(gid).map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))))
    }

    /// The owner that a folder needs to get which no entry declares: root.
    pub(super) fn owner_of_implied(&self, gives: Gives, path: &Path) -> Result<Option<(Uid, Gid)>> {
        self.owner_of((0, 0), gives, path)
    }

    /// Gives a folder what it gets when nothing more is made in it.
    pub(super) fn set_last(&self, folder: &OwnedFd, last: &Last, path: &Path) -> Result<()> {
        if last.reset {
            let none = Gives { group: u32::MAX, ..Gives::default() };
            if let Some((uid, gid)) = self.owner_of((0, 0), none, path)? {
                fchown(folder, Some(uid), Some(gid)).map_err(|errno| not_owner(errno, path))?;
            }
            remove_xattrs(folder.as_fd()).map_err(at("remove the attributes of", path))?;
        }
        if let Some(mode) = last.mode {
            fchmod(folder, Mode::from_raw_mode(mode)).map_err(at("set the mode of", path))?;
        }
        if let Some(acl) = &last.default_acl {
            fsetxattr(folder, os_str(DEFAULT), acl, XattrFlags::empty())
                .map_err(at("set the ACL of", path))?;
        }
        futimens(folder, &last.times).map_err(at("set the times of", path))
    }

    /// Sets owner, mode and attributes of an open file or folder that has the mode `has`. In this order: a change of owner
    /// takes set-user-id bits and capabilities away, and an ACL changes the mode.
    pub(super) fn finish(
        &self,
        file: BorrowedFd<'_>,
        meta: &Meta,
        owner: Option<(Uid, Gid)>,
        has: Option<u32>,
    ) -> Result<()> {
        if let Some((uid, gid)) = owner {
            fchown(file, Some(uid), Some(gid)).map_err(|errno| not_owner(errno, &meta.path))?;
        }
        if has != Some(meta.mode) {
            fchmod(file, Mode::from_raw_mode(meta.mode)).map_err(at("set the mode of", &meta.path))?;
        }
        for (name, value) in &meta.xattrs {
            // What is made in the folder would get it; it comes last.
            if name == DEFAULT {
                continue;
            }
            let value = self.mapped(name, value, &meta.path)?;
            let set = || fsetxattr(file, os_str(name), &value, XattrFlags::empty());
            let answer = match set() {
                // An attribute of users needs a file that can be written.
                Err(Errno::ACCESS) if !self.privileged => self.while_writable(file, meta.mode, set),
                answer => answer,
            };
            self.unless_skipped(answer, name, &meta.path)?;
        }
        Ok(())
    }

    /// The ACL of what will be made in a folder, if an entry gives it one.
    pub(super) fn default_acl(&self, meta: &Meta) -> Result<Option<Vec<u8>>> {
        let acl = meta.xattrs.iter().find(|(name, _)| name == DEFAULT);
        acl.map(|(name, value)| self.mapped(name, value, &meta.path)).transpose()
    }

    fn mapped(&self, name: &[u8], value: &[u8], path: &Path) -> Result<Vec<u8>> {
        let why = |why| refused(path, format!("its attribute {:?}: {why}", os_str(name)));
        if self.ids.is_same() { Ok(value.to_vec()) } else { mapped(name, value, self.ids).map_err(why) }
    }

    fn while_writable(
        &self,
        file: BorrowedFd<'_>,
        mode: u32,
        set: impl Fn() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        fchmod(file, Mode::from_raw_mode(mode | 0o200))?;
        let answer = set();
        fchmod(file, Mode::from_raw_mode(mode))?;
        answer
    }

    fn unless_skipped(&self, answer: Result<(), Errno>, name: &[u8], path: &Path) -> Result<()> {
        match answer {
            Err(errno) if name.starts_with(b"security.") && self.skips(errno, "an attribute", path) => Ok(()),
            answer => answer.map_err(|errno| Error::Io {
                op: "set an attribute of",
                path: path.to_owned(),
                source: with_name(errno, os_str(name)),
            }),
        }
    }

    /// As [`finish`](Self::finish), with times, for what is not opened: links, devices, fifos. Its mode is `has`.
    pub(super) fn finish_unopened(
        &self,
        folder: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        owner: Option<(Uid, Gid)>,
        has: Option<u32>,
    ) -> Result<()> {
        let path = &meta.path;
        if let Some((uid, gid)) = owner {
            chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| not_owner(errno, path))?;
        }
        let is_link = meta.kind == EntryType::Symlink;
        if !is_link && (has != Some(meta.mode) || owner.is_some() && meta.mode & 0o6000 != 0) {
            chmod_unopened(folder, name, meta.mode).map_err(at("set the mode of", path))?;
        }
        for (attribute, value) in &meta.xattrs {
            let value = self.mapped(attribute, value, path)?;
            let answer =
                lsetxattr(in_proc(folder).join(name), os_str(attribute), &value, XattrFlags::empty());
            self.unless_skipped(answer, attribute, path)?;
        }
        utimensat(folder, name, &meta.times(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the times of", path))
    }

    /// Opens a folder in a folder. Where its mode keeps us out, it is changed; the one that it had is given, too.
    pub(super) fn open(&self, above: &OwnedFd, name: &OsStr) -> Result<(OwnedFd, Option<u32>), Errno> {
        let open = || openat(above, name, FOLDER, Mode::empty());
        if self.privileged {
            return Ok((open()?, None));
        }
        let folder = match open() {
            Err(Errno::ACCESS) => {
                let unread = openat(above, name, FOLDER | OFlags::PATH, Mode::empty())?;
                let mode = fstat(&unread)?.st_mode & 0o7777;
                chmod(in_proc(&unread), Mode::from_raw_mode(mode | 0o700))?;
                return Ok((open()?, Some(mode)));
            }
            answer => answer?,
        };
        let mode = fstat(&folder)?.st_mode & 0o7777;
        if mode & 0o700 == 0o700 {
            return Ok((folder, None));
        }
        fchmod(&folder, Mode::from_raw_mode(mode | 0o700))?;
        Ok((folder, Some(mode)))
    }
}

/// Takes away what an ACL of the folder has given.
pub(super) fn remove_acls(file: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in [&b"system.posix_acl_access"[..], DEFAULT] {
        match fremovexattr(file, os_str(name)) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Attributes that the system gives to whatever is made, as its policy says.
const LABELS: [&[u8]; 5] =
    [b"security.selinux", b"security.SMACK64", b"security.apparmor", b"security.ima", b"security.evm"];

/// Takes all attributes away that a layer can give.
pub(super) fn remove_xattrs(file: BorrowedFd<'_>) -> Result<(), Errno> {
    for name in xattrs(file)? {
        let given = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
            || name.starts_with(b"system.posix_acl_")
            || name.starts_with(b"security.") && !LABELS.contains(&&name[..]);
        if given {
            fremovexattr(file, os_str(&name))?;
        }
    }
    Ok(())
}

/// The names of a file's attributes. A file system without any has none.
pub(super) fn xattrs(file: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    // Most files have none, and need no room to say so.
    let mut list = match flistxattr_query(&file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(length) => vec![0; length],
        Err(errno) => return Err(errno),
    };
    let length = flistxattr(&file, &mut list)?;
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

/// Whether what is made in a folder gets an ACL.
pub(super) fn has_default_acl(folder: BorrowedFd<'_>) -> bool {
    fgetxattr_query(folder, os_str(DEFAULT)).is_ok()
}

/// Sets the mode of what is no link. If another process has put a link in its place, it is not followed.
pub(super) fn chmod_unopened(folder: &OwnedFd, name: &OsStr, mode: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(folder, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::Symlink {
        return Err(Errno::LOOP);
    }
    chmod(in_proc(&file), Mode::from_raw_mode(mode))
}

/// A name by which an open file is reached without looking up a path.
pub(super) fn in_proc(file: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(file.as_raw_fd().to_string())
}

fn not_owner(errno: Errno, path: &Path) -> Error {
    let why = match errno {
        Errno::PERM => {
            "only root may give files away: run as root, or in a user namespace, or squash ids (IdMap)"
        }
        Errno::INVAL => "this user namespace does not have the id: map ids (IdMap), or give it more of them",
        _ => return at("set the owner of", path)(errno),
    };
    let source = io::Error::new(io::Error::from(errno).kind(), why);
    Error::Io { op: "set the owner of", path: path.to_owned(), source }
}

fn with_name(errno: Errno, name: &OsStr) -> io::Error {
    let error = io::Error::from(errno);
    let hint = match errno {
        Errno::OPNOTSUPP => ": its file system has no such attributes",
        Errno::PERM => ": only root may set it; skip what needs privileges, or run as root",
        _ => "",
    };
    io::Error::new(error.kind(), format!("{}: {error}{hint}", name.display()))
}

/// Makes an error of what the system answered about an entry.
pub(super) fn at<'p>(op: &'static str, path: &'p Path) -> impl FnOnce(Errno) -> Error + 'p {
    move |errno| Error::Io { op, path: path.to_owned(), source: errno.into() }
}
