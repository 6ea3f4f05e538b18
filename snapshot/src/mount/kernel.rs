//! One mount, by the new calls of the kernel, or by the old one where it has no others.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags, open, statvfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount,
        mount_bind, mount_bind_recursive, mount_remount, move_mount, open_tree,
    },
};

use super::{
    Mount,
    images::{self, Images},
    loops,
    options::Options,
    place::Place,
};
use crate::sys;

/// The options that `mount(2)` takes: a page, with the zero at its end.
const PAGE: usize = 4096;

/// Mounts on a folder or a file.
pub(super) fn attach(one: &Mount, target: &Path) -> io::Result<()> {
    let options = Options::parse(&one.options)?;
    let new = if one.is_bind() { copied(one, &options) } else { made(one, &options) };
    let moved =
        new.and_then(|root| Ok(move_mount(&root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?));
    moved.or_else(|err| if old_may(&err, &options) { classic(one, &options, target) } else { Err(err) })
}

/// Mounts without a place in the file system.
pub(super) fn detached(one: &Mount) -> io::Result<OwnedFd> {
    let options = Options::parse(&one.options)?;
    if one.is_bind() {
        return copied(one, &options);
    }
    made(one, &options)
        .or_else(|err| if old_may(&err, &options) { detached_by_path(one, &options) } else { Err(err) })
}

/// Whether the old call may do what the new ones could not: kernels before 6.5 take no layer at a time, and values have at most
/// 255 bytes.
fn old_may(err: &io::Error, options: &Options<'_>) -> bool {
    let errno = Errno::from_io_error(err);
    matches!(errno, Some(Errno::INVAL | Errno::NOSYS)) && options.mapping.is_empty()
}

/// A bind mount: shows a folder that is there a second time.
fn copied(one: &Mount, options: &Options<'_>) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let root = open_tree(CWD, &one.source, flags)?;
    // What the mount that it is copied from forbids stays forbidden: attributes are only added.
    if options.attributes() != MountAttrFlags::empty() {
        sys::mount_setattr(root.as_fd(), options.recursive, options.attributes(), None)?;
    }
    if !options.mapping.is_empty() {
        options.mapping.apply(&root, options.recursive)?;
    }
    Ok(root)
}

/// Any other mount.
fn made(one: &Mount, options: &Options<'_>) -> io::Result<OwnedFd> {
    let written = options.data.iter().any(|(key, _)| *key == "upperdir");
    if one.fstype == "overlay" && written && !options.mapping.is_empty() {
        return options.mapping.as_owner(|| made_here(one, options));
    }
    made_here(one, options)
}

/// Layers that are images are mounted first; files through loop devices where the kernel mounts no files.
fn made_here(one: &Mount, options: &Options<'_>) -> io::Result<OwnedFd> {
    let images = Images::mount(options)?;
    if images.is_empty() {
        let made = configured(one, options, Lower::Handles(&[]));
        return made.or_else(|err| match Errno::from_io_error(&err) {
            Some(Errno::NOTBLK) if one.fstype == "erofs" => {
                let (one, _devices) = loops::attached(one)?;
                configured(&one, &Options::parse(&one.options)?, Lower::Handles(&[]))
            }
            _ => Err(err),
        });
    }
    let handles: Vec<_> = images.handles().collect();
    configured(one, options, Lower::Handles(&handles)).or_else(|err| match Errno::from_io_error(&err) {
        Some(Errno::INVAL) => configured(one, options, Lower::Places(&images.place()?)),
        _ => Err(err),
    })
}

/// Where images are mounted that are an overlay's lowest layers.
#[derive(Clone, Copy)]
enum Lower<'a> {
    Handles(&'a [BorrowedFd<'a>]),
    Places(&'a [Place]),
}

/// Overlayfs takes one layer per call: no page of options limits their number.
fn configured(one: &Mount, options: &Options<'_>, images: Lower<'_>) -> io::Result<OwnedFd> {
    let context = fsopen(one.fstype.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", &one.source)?;
    if options.read_only {
        fsconfig_set_flag(&context, "ro")?;
    }
    let overlay = one.fstype == "overlay";
    // Overlayfs maps no owners itself, but looks through mounts of its layers that do.
    let mapped = match overlay && !options.mapping.is_empty() {
        true => Some(Mapped::new(options)?),
        false => None,
    };
    let place = |path: &str| mapped.as_ref().map_or(Ok(path.to_owned()), |mapped| mapped.path(path));
    if overlay {
        for layer in options.layers() {
            fsconfig_set_string(&context, "lowerdir+", place(layer)?)?;
        }
        match images {
            Lower::Handles(handles) => {
                handles.iter().try_for_each(|image| fsconfig_set_fd(&context, "lowerdir+", image))?;
            }
            Lower::Places(places) => places
                .iter()
                .try_for_each(|image| fsconfig_set_string(&context, "lowerdir+", image.path()))?,
        }
    }
    for (key, value) in &options.data {
        match (*key, *value) {
            ("lowerdir" | "lowerdir+" | images::OPTION, _) if overlay => {}
            ("upperdir" | "workdir", Some(path)) if overlay => {
                fsconfig_set_string(&context, *key, place(path)?)?;
            }
            (key, Some(value)) => fsconfig_set_string(&context, key, value)?,
            (key, None) => fsconfig_set_flag(&context, key)?,
        }
    }
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.attributes())?;
    if !overlay && !options.mapping.is_empty() {
        options.mapping.apply(&root, false)?;
    }
    Ok(root)
}

/// The folder that all layers of an overlay are below, mounted once more with its owners mapped.
struct Mapped {
    folder: PathBuf,
    root: OwnedFd,
}

impl Mapped {
    fn new(options: &Options<'_>) -> io::Result<Self> {
        let folder = common(options).ok_or(Errno::INVAL)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, &folder, flags)?;
        options.mapping.apply(&root, false)?;
        Ok(Self { folder, root })
    }

    fn path(&self, path: &str) -> io::Result<String> {
        let below = Path::new(path).strip_prefix(&self.folder).map_err(|_| Errno::INVAL)?;
        Ok(format!("/proc/self/fd/{}/{}", self.root.as_raw_fd(), below.display()))
    }
}

/// The deepest folder that all of an overlay's folders are below.
fn common(options: &Options<'_>) -> Option<PathBuf> {
    let folders = options.data.iter().filter(|(key, _)| matches!(*key, "upperdir" | "workdir"));
    let mut paths = options.layers().chain(folders.filter_map(|(_, value)| *value)).map(Path::new);
    let mut common = paths.next()?.parent()?;
    for path in paths {
        while !path.starts_with(common) {
            common = common.parent()?;
        }
    }
    Some(common.to_owned())
}

/// Mounts with `mount(2)`.
pub(super) fn classic(one: &Mount, options: &Options<'_>, target: &Path) -> io::Result<()> {
    if one.is_bind() {
        return classic_bind(one, options, target);
    }
    let images = Images::mount(options)?;
    if !images.is_empty() {
        // The overlay goes on without the places.
        let places = images.place()?;
        let places = places.iter().map(|image| image.path().display().to_string());
        let mut all: Vec<_> = options.layers().map(str::to_owned).chain(places).collect();
        all = vec![format!("lowerdir={}", all.join(":"))].into_iter().chain(options.rest()).collect();
        let data = CString::new(all.join(",")).ok().filter(|data| data.as_bytes_with_nul().len() < PAGE);
        let data = data.ok_or(Errno::TOOBIG)?;
        return Ok(mount(&one.source, target, one.fstype.as_str(), options.flags(), data.as_c_str())?);
    }
    let with = |layers: Vec<&str>, mut rest: Vec<String>| {
        if !layers.is_empty() {
            rest.insert(0, format!("lowerdir={}", layers.join(":")));
        }
        // The kernel reads one page, and drops what is beyond it without a word: layers would be missing.
        match CString::new(rest.join(",")).map_err(|_| Errno::INVAL)? {
            data if data.as_bytes_with_nul().len() < PAGE => Ok(data),
            _ => Err(io::Error::from(Errno::TOOBIG)),
        }
    };
    match with(options.layers().collect(), options.rest()) {
        Err(err) if Errno::from_io_error(&err) == Some(Errno::TOOBIG) => {}
        data => {
            return Ok(mount(&one.source, target, one.fstype.as_str(), options.flags(), data?.as_c_str())?);
        }
    }
    // Shorter when written from the folder that all are in.
    let folder = common(options).ok_or(Errno::TOOBIG)?;
    let below = |path| Path::new(path).strip_prefix(&folder).ok().and_then(Path::to_str);
    let layers = options.layers().map(below).collect::<Option<Vec<_>>>().ok_or(Errno::TOOBIG)?;
    let data = with(layers, options.rest())?;
    let target = std::path::absolute(target)?;
    let handle = open(&folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    sys::in_folder(handle.as_fd(), || {
        Ok(mount(&one.source, &target, one.fstype.as_str(), options.flags(), data.as_c_str())?)
    })
}

fn classic_bind(one: &Mount, options: &Options<'_>, target: &Path) -> io::Result<()> {
    if options.recursive {
        mount_bind_recursive(&one.source, target)?;
    } else {
        mount_bind(&one.source, target)?;
    }
    if options.flags().is_empty() {
        return Ok(());
    }
    // A bind mount takes its flags only when it is mounted a second time, and then loses those that are not said again.
    let remounted = statvfs(target)
        .and_then(|now| mount_remount(target, MountFlags::BIND | options.flags() | kept(now.f_flag), c""));
    if let Err(err) = remounted {
        rustix::mount::unmount(target, UnmountFlags::DETACH)?;
        return Err(err.into());
    }
    Ok(())
}

fn kept(now: StatVfsMountFlags) -> MountFlags {
    let all = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    all.into_iter().filter(|(is, _)| now.contains(*is)).map(|(_, flag)| flag).collect()
}

/// Mounts in a folder, and takes the tree from there.
pub(super) fn detached_by_path(one: &Mount, options: &Options<'_>) -> io::Result<OwnedFd> {
    let mut place = Place::new()?;
    classic(one, options, place.path())?;
    place.mounted(1);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, place.path(), flags)?)
}
