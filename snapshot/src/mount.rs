//! Mounts as data, and the few calls that turn them into mounts.

use std::{
    ffi::CString,
    fmt, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, open},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind,
        mount_bind_recursive, mount_remount, move_mount,
    },
};

use crate::{Error, Result};

/// One mount: what `mount -t fstype source -o options` would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type; `bind` for a bind mount.
    pub fstype: String,
    /// What is mounted: a folder, a file, a device, or for `overlay` just a word.
    pub source: PathBuf,
    /// Options as `mount -o` takes them: `ro`, `rbind`, `lowerdir=/a:/b`.
    pub options: Vec<String>,
}

impl Mount {
    /// The `mount` command that mounts this on `target`, for a person to read or run.
    pub fn command_line(&self, target: &Path) -> String {
        format!(
            "mount -t {} {} {} -o {}",
            self.fstype,
            self.source.display(),
            target.display(),
            self.options.join(",")
        )
    }

    fn is_bind(&self) -> bool {
        self.fstype == "bind"
    }

    fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    fn failed(&self, target: &Path, errno: Errno) -> Error {
        let source = match errno {
            Errno::PERM | Errno::ACCESS => io::Error::new(
                io::ErrorKind::PermissionDenied,
                "mounting needs CAP_SYS_ADMIN: run as root or in a user namespace with a mount namespace of its own",
            ),
            Errno::NODEV => io::Error::new(
                io::ErrorKind::Unsupported,
                format!("this kernel has no {}: load its module", self.fstype),
            ),
            other => other.into(),
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
/// # Errors
///
/// [`Error::Mount`]; those that were mounted before the one that failed are unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, one) in mounts.iter().enumerate() {
        if let Err(err) = mount_one(one, target) {
            for _ in 0..done {
                unmount(target)?;
            }
            return Err(err);
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

/// Opens the folder that `mounts` shows, without a place in the file system: it is gone when the handle is closed.
///
/// A single bind mount is just opened, which needs no privilege (its `ro` is then the caller's to keep).
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
    if one.is_bind() {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        return open(&one.source, flags, Mode::empty()).map_err(|err| one.failed(&one.source, err));
    }
    let root = detached(one).or_else(|err| match err {
        Errno::INVAL | Errno::NOSYS => detached_by_path(one),
        other => Err(other),
    });
    let root = root.map_err(|err| one.failed(Path::new("a detached tree"), err))?;
    // The handle from fsmount is only a path; reading the folder takes an open one, which keeps the mount alive.
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(&root, ".", flags, Mode::empty())
        .map_err(|err| one.failed(Path::new("a detached tree"), err))
}

fn mount_one(one: &Mount, target: &Path) -> Result<()> {
    let result = if one.is_bind() {
        bind(one, target)
    } else {
        detached(one)
            .and_then(|root| move_mount(&root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
            .or_else(|err| match err {
                Errno::INVAL | Errno::NOSYS => classic(one, target),
                other => Err(other),
            })
    };
    result.map_err(|err| one.failed(target, err))
}

fn bind(one: &Mount, target: &Path) -> rustix::io::Result<()> {
    if one.options.iter().any(|option| option == "rbind") {
        mount_bind_recursive(&one.source, target)?;
    } else {
        mount_bind(&one.source, target)?;
    }
    if one.read_only() {
        // A bind mount takes its flags only when it is mounted a second time.
        let remounted = mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"");
        if let Err(err) = remounted {
            rustix::mount::unmount(target, UnmountFlags::DETACH)?;
            return Err(err);
        }
    }
    Ok(())
}

/// Mounts with the new interface, which takes one layer per call: no page of options limits their number.
fn detached(one: &Mount) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(one.fstype.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", &one.source)?;
    for option in &one.options {
        match option.split_once('=') {
            _ if option == "rw" => {}
            Some(("lowerdir", layers)) if one.fstype == "overlay" => {
                for layer in layers.split(':') {
                    fsconfig_set_string(&context, "lowerdir+", layer)?;
                }
            }
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, option.as_str())?,
        }
    }
    fsconfig_create(&context)?;
    let attributes =
        if one.read_only() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Mounts with mount(2), for kernels before 6.5 and for paths beyond the new interface's 255 bytes.
fn classic(one: &Mount, target: &Path) -> rustix::io::Result<()> {
    let data: Vec<&str> =
        one.options.iter().map(String::as_str).filter(|o| !matches!(*o, "ro" | "rw")).collect();
    let data = CString::new(data.join(",")).map_err(|_| Errno::INVAL)?;
    // The kernel reads one page of options, and drops what is beyond it without a word: layers would be missing.
    if data.as_bytes().len() >= 4095 {
        return Err(Errno::TOOBIG);
    }
    let flags = if one.read_only() { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(&one.source, target, one.fstype.as_str(), flags, data.as_c_str())
}

fn detached_by_path(one: &Mount) -> rustix::io::Result<OwnedFd> {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let unique = format!("windlass-mount-{}-{:?}-{now}", std::process::id(), std::thread::current().id());
    let place = std::env::temp_dir().join(unique);
    rustix::fs::mkdir(&place, Mode::RWXU)?;
    let tree = classic(one, &place).and_then(|()| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &place, flags);
        rustix::mount::unmount(&place, UnmountFlags::DETACH)?;
        tree
    });
    rustix::fs::rmdir(&place)?;
    tree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_reads_as_the_command_that_makes_it() {
        let one = Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            options: vec!["ro".into(), "lowerdir=/a:/b".into()],
        };

        let line = one.command_line(Path::new("/mnt"));

        assert_eq!(line, "mount -t overlay overlay /mnt -o ro,lowerdir=/a:/b");
    }

    #[test]
    fn unmounting_where_nothing_is_mounted_succeeds() {
        let dir = tempfile::tempdir().expect("a folder");

        unmount(dir.path()).expect("nothing to do");
    }

    #[test]
    fn the_old_interface_and_the_new_one_show_the_same_tree() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["high", "low"] {
            std::fs::create_dir(path(name)).expect("a folder");
            std::fs::write(dir.path().join(name).join(name), name).expect("a file");
        }
        let options = vec!["ro".to_owned(), format!("lowerdir={}:{}", path("high"), path("low"))];
        let one = Mount { fstype: "overlay".into(), source: "overlay".into(), options };

        for tree in [detached(&one).expect("the new one"), detached_by_path(&one).expect("the old one")] {
            for name in ["high", "low"] {
                rustix::fs::openat(&tree, name, OFlags::RDONLY, Mode::empty()).expect(name);
            }
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let err = rustix::fs::openat(&tree, "new", flags, Mode::RWXU).expect_err("it is read-only");
            assert_eq!(err, Errno::ROFS);
        }
    }

    #[test]
    fn a_tree_is_opened_without_a_trace_in_the_file_system() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(path(name)).expect("a folder");
        }
        let options = ["lower", "upper", "work"].map(|name| format!("{name}dir={}", path(name).display()));
        let one = Mount { fstype: "overlay".into(), source: "overlay".into(), options: options.to_vec() };
        let before = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");

        let tree = open_tree(&[one]).expect("an overlay");
        rustix::fs::mkdirat(&tree, "new", Mode::RWXU).expect("it can be written");

        assert!(path("upper/new").is_dir(), "what is written lands in the upper folder");
        let place = dir.path().display().to_string();
        assert!(!before.contains(&place), "the folder is not mounted before");
        let after = std::fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
        assert!(!after.contains(&place), "nor afterwards");
    }

    #[test]
    fn a_failed_mount_unmounts_those_before_it() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["source", "target"] {
            std::fs::create_dir(dir.path().join(name)).expect("a folder");
        }
        std::fs::write(dir.path().join("source/file"), "").expect("a file");
        let bind = |source: &str| Mount {
            fstype: "bind".into(),
            source: dir.path().join(source),
            options: vec!["rw".into()],
        };
        let target = dir.path().join("target");

        let err = mount_all(&[bind("source"), bind("missing")], &target).expect_err("a source is missing");

        assert!(matches!(err, Error::Mount { .. }), "{err:?}");
        assert!(!target.join("file").exists(), "the first mount is gone");
    }
}
