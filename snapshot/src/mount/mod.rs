//! Mounts as data, and the few calls that turn them into mounts.

mod idmap;
pub(crate) mod images;
mod kernel;
mod loops;
mod options;
mod place;

use std::{
    borrow::Cow,
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
    mount::UnmountFlags,
};

pub use self::idmap::IdMap;
use self::place::Place;
use crate::{Error, Result};

/// One mount: what `mount -t fstype source -o options` would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type; `bind` for a bind mount.
    pub fstype: String,
    /// What is mounted: a folder, a file, a device, or for `overlay` just a word.
    pub source: PathBuf,
    /// Options as `mount -o` takes them: `ro`, `nosuid`, `rbind`, `lowerdir=/a:/b`.
    ///
    /// `lowerdir+=/a` is one layer of many. `lowerimage=/image:/device:/device` is ours: a layer of an overlay, below those that are
    /// folders, that is an EROFS image, which is mounted first, with its data on the devices. `uidmap=inside:outside:count` and `gidmap=…` are ours: see [`idmapped`](Self::idmapped).
    pub options: Vec<String>,
}

impl Mount {
    /// The `mount` command that mounts this on `target`, for a person to read or to run in a shell. Layers that are images are
    /// mounted first, in temporary folders. Before util-linux 2.39, `mount` takes a page of options: some 200 images.
    pub fn command_line(&self, target: &Path) -> String {
        if let Some(commands) = images::commands(self, target) {
            return commands;
        }
        let (source, target) = (self.source.to_string_lossy(), target.to_string_lossy());
        let options = self.options.join(",");
        let mut words = vec!["-t", &self.fstype, &source, &target];
        if !options.is_empty() {
            words.extend(["-o", &options]);
        }
        words.into_iter().fold("mount".to_owned(), |line, word| line + " " + &quoted(word))
    }

    /// The same mount with the owners of all files shown as others: a container in a user namespace sees its own ids.
    ///
    /// What is written through it gets the owner back that it has inside. Each mapping needs a range for both kinds of id. The
    /// kernel must be able to: 5.12 for most file systems, 5.19 for the layers of overlays. Mounting it needs root on the host.
    #[must_use]
    pub fn idmapped(mut self, users: &[IdMap], groups: &[IdMap]) -> Self {
        self.options.extend(users.iter().map(|map| format!("uidmap={map}")));
        self.options.extend(groups.iter().map(|map| format!("gidmap={map}")));
        self
    }

    fn is_bind(&self) -> bool {
        self.fstype == "bind"
    }

    fn is_idmapped(&self) -> bool {
        self.options.iter().any(|option| option.starts_with("uidmap=") || option.starts_with("gidmap="))
    }

    fn failed(&self, target: &Path, err: io::Error) -> Error {
        let source = match Errno::from_io_error(&err) {
            Some(Errno::PERM | Errno::ACCESS) => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "mounting needs CAP_SYS_ADMIN: run as root or in a user namespace with a mount namespace of its own",
            ),
            Some(Errno::NODEV) => io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel has no {}: load its module", self.fstype),
            ),
            Some(Errno::TOOBIG) => io::Error::new(
                io::ErrorKind::ArgumentListTooLong,
                "its options fill more than a page: it takes Linux 6.8, which is told one layer at a time",
            ),
            Some(Errno::INVAL) if self.is_idmapped() => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{err}: to map the owners of files takes Linux 5.12, and 5.19 in an overlay"),
            ),
            Some(Errno::INVAL) if self.options.iter().any(|option| option == "volatile") => io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{err}: a volatile overlay can be mounted only once, since nothing says whether it is whole"
                ),
            ),
            _ => err,
        };
        Error::Mount { fstype: self.fstype.clone(), target: target.to_owned(), source }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.fstype, self.source.display(), self.options.join(","))
    }
}

/// Mounts all on `target`, one over the other.
///
/// A bind mount keeps what the mount that it shows forbids (`nosuid`, `nodev`, …).
///
/// # Errors
///
/// [`Error::Mount`]; those that were mounted before the one that failed are unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, one) in mounts.iter().enumerate() {
        if let Err(err) = kernel::attach(one, target) {
            for _ in 0..done {
                unmount(target)?;
            }
            return Err(one.failed(target, err));
        }
    }
    Ok(())
}

/// Unmounts what is on top at `target`, as soon as nobody uses it. Where nothing is mounted, nothing happens.
///
/// # Errors
///
/// [`Error::Io`], for want of privilege.
pub fn unmount(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(err) => Err(Error::Io { op: "unmount", path: target.to_owned(), source: err.into() }),
    }
}

/// Mounts in a temporary folder that only the caller's user may enter, gives `work` its path, and unmounts: also if `work`
/// panics, but not if the process is killed.
///
/// Whoever needs no path, [`open_tree`] leaves nothing behind even then.
///
/// # Errors
///
/// [`Error::Mount`], and [`Error::Io`] if there is no place for a temporary folder. `work` was not called then.
///
/// ```no_run
/// # fn main() -> windlass_snapshot::Result<()> {
/// # let mounts = vec![];
/// use windlass_snapshot::mount::temp_mount;
///
/// let has_shell = temp_mount(&mounts, |tree| tree.join("bin/sh").exists())?;
/// # Ok(())
/// # }
/// ```
pub fn temp_mount<T>(mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> Result<T> {
    let place = Place::new();
    let mut place =
        place.map_err(|source| Error::Io { op: "create a folder in", path: std::env::temp_dir(), source })?;
    mount_all(mounts, place.path())?;
    place.mounted(mounts.len());
    Ok(work(place.path()))
}

/// Opens the folder that `mounts` shows, without a place in the file system: it is gone when the handle is closed.
///
/// A single bind mount is just opened, which needs no privilege (its `ro` is then the caller's to keep), unless it is idmapped.
///
/// # Errors
///
/// [`Error::Mount`], for want of privilege or of the file system; [`Error::Unsupported`] for anything but one mount.
pub fn open_tree(mounts: &[Mount]) -> Result<OwnedFd> {
    let [one] = mounts else {
        return Err(Error::Unsupported {
            driver: "mount",
            op: "open a tree",
            reason: format!("one mount is expected, {} were given: use mount_all", mounts.len()),
        });
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    if one.is_bind() && !one.is_idmapped() {
        return open(&one.source, flags, Mode::empty()).map_err(|err| one.failed(&one.source, err.into()));
    }
    let nowhere = Path::new("a detached tree");
    let root = kernel::detached(one).map_err(|err| one.failed(nowhere, err))?;
    // The handle from fsmount is only a path; reading the folder takes an open one, which keeps the mount alive.
    rustix::fs::openat(&root, ".", flags, Mode::empty()).map_err(|err| one.failed(nowhere, err.into()))
}

/// As one word of a shell's command.
fn quoted(text: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests;
