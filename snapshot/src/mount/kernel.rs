//! One mount, by the new calls of the kernel, or by the old one where it has no others.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, StatVfsMountFlags, open, statvfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, mount_bind,
        mount_bind_recursive, mount_remount, move_mount, open_tree,
    },
};

use super::{Mount, images, loops, options::Options, place::Place};
use crate::sys;

/// The options that `mount(2)` takes: a page, with the zero at its end.
const PAGE: usize = 4096;

/// Mounts on a folder or a file.
pub(super) fn attach(one: &Mount, target: &Path) -> io::Result<()> {
    images::with(one, |one| attach_one(one, target))
}

/// Mounts without a place in the file system.
pub(super) fn detached(one: &Mount) -> io::Result<OwnedFd> {
    images::with(one, detached_one)
}

fn attach_one(one: &Mount, target: &Path) -> io::Result<()> {
    let options = Options::parse(&one.options)?;
    let new = if one.is_bind() { copied(one, &options) } else { made(one, &options) };
    let moved =
        new.and_then(|root| Ok(move_mount(&root, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?));
    moved.or_else(|err| if old_may(&err, &options) { classic(one, &options, target) } else { Err(err) })
}

fn detached_one(one: &Mount) -> io::Result<OwnedFd> {
    let options = Options::parse(&one.options)?;
    if one.is_bind() {
        return copied(one, &options);
    }
    made(one, &options)
        .or_else(|err| if old_may(&err, &options) { detached_by_path(one, &options) } else { Err(err) })
}

/// Whether the old call may do what the new ones could not: kernels before 6.8 take no layer at a time, and values have at most
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
    if one.fstype == "overlay" && !options.mapping.is_empty() && common(folders(options)).is_some() {
        let new = overlay_of_mapped(options, |mapped| configured(one, options, |path| mapped.path(path)));
        return new.or_else(|err| match Errno::from_io_error(&err) {
            // Older kernels take no layers from mounts without a place, or not one by one.
            Some(Errno::INVAL) => overlay_of_mapped(options, |mapped| by_path_of_mapped(one, mapped)),
            _ => Err(err),
        });
    }
    let here = |path: &str| Ok(path.to_owned());
    let root = configured(one, options, here).or_else(|err| match Errno::from_io_error(&err) {
        Some(Errno::NOTBLK) if one.fstype == "erofs" => {
            let (one, _devices) = loops::attached(one)?;
            configured(&one, &Options::parse(&one.options)?, here)
        }
        _ => Err(err),
    })?;
    // The layers of an overlay are mapped.
    if !options.mapping.is_empty() && one.fstype != "overlay" {
        options.mapping.apply(&root, false)?;
    }
    Ok(root)
}

/// Overlayfs maps no owners itself, but looks through mounts of its layers that do.
pub(super) fn overlay_of_mapped(
    options: &Options<'_>,
    make: impl FnOnce(Mapped) -> io::Result<OwnedFd> + Send,
) -> io::Result<OwnedFd> {
    let make = || make(Mapped::new(options)?);
    match options.data.iter().any(|(key, _)| *key == "upperdir") {
        true => options.mapping.as_owner(make),
        false => make(),
    }
}

/// With the mapped layers in a temporary folder until the overlay is mounted, which keeps them.
pub(super) fn by_path_of_mapped(one: &Mount, mut mapped: Mapped) -> io::Result<OwnedFd> {
    mapped.attach()?;
    let mut options = Vec::new();
    for option in &one.options {
        match option.split_once('=') {
            Some(("uidmap" | "gidmap", _)) => {}
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':') {
                    options.push(format!("lowerdir+={}", mapped.path(layer)?));
                }
            }
            Some((key @ ("lowerdir+" | "upperdir" | "workdir"), path)) => {
                options.push(format!("{key}={}", mapped.path(path)?));
            }
            _ => options.push(option.clone()),
        }
    }
    let moved = Mount { options, ..one.clone() };
    detached_by_path(&moved, &Options::parse(&moved.options)?)
}

/// Overlayfs takes one layer per call: no page of options limits their number. `place` says where a layer is.
fn configured(
    one: &Mount,
    options: &Options<'_>,
    place: impl Fn(&str) -> io::Result<String>,
) -> io::Result<OwnedFd> {
    let context = fsopen(one.fstype.as_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", &one.source)?;
    if options.read_only {
        fsconfig_set_flag(&context, "ro")?;
    }
    let overlay = one.fstype == "overlay";
    if overlay {
        for layer in options.layers() {
            fsconfig_set_string(&context, "lowerdir+", place(layer)?)?;
        }
        options.mounted().try_for_each(|layer| fsconfig_set_string(&context, "lowerdir+", layer))?;
    }
    for (key, value) in &options.data {
        match (*key, *value) {
            ("lowerdir" | "lowerdir+" | images::MOUNTED, _) if overlay => {}
            ("upperdir" | "workdir", Some(path)) if overlay => {
                fsconfig_set_string(&context, *key, place(path)?)?;
            }
            (key, Some(value)) => fsconfig_set_string(&context, key, value)?,
            (key, None) => fsconfig_set_flag(&context, key)?,
        }
    }
    fsconfig_create(&context)?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, options.attributes())?)
}

/// The folder that all layers of an overlay are below, mounted once more with its owners mapped.
pub(super) struct Mapped {
    folder: PathBuf,
    root: OwnedFd,
    place: Option<Place>,
}

impl Mapped {
    /// Where nobody else sees it.
    fn new(options: &Options<'_>) -> io::Result<Self> {
        let folder = common(folders(options)).ok_or(Errno::INVAL)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = open_tree(CWD, &folder, flags)?;
        options.mapping.apply(&root, false)?;
        Ok(Self { folder, root, place: None })
    }

    /// Gives it a place.
    fn attach(&mut self) -> io::Result<()> {
        let mut place = Place::new()?;
        move_mount(&self.root, "", CWD, place.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        place.mounted(1);
        self.place = Some(place);
        Ok(())
    }

    fn path(&self, path: &str) -> io::Result<String> {
        let below = Path::new(path).strip_prefix(&self.folder).map_err(|_| Errno::INVAL)?.display();
        Ok(match &self.place {
            Some(place) => format!("{}/{below}", place.path().display()),
            None => format!("/proc/self/fd/{}/{below}", self.root.as_raw_fd()),
        })
    }
}

/// All folders that an overlay is made of, without those that are mounts already.
fn folders<'a>(options: &Options<'a>) -> impl Iterator<Item = &'a str> {
    let written = options.data.iter().filter(|(key, _)| matches!(*key, "upperdir" | "workdir"));
    options.layers().chain(written.filter_map(|(_, value)| *value))
}

/// The deepest folder that all these are below.
fn common<'a>(paths: impl Iterator<Item = &'a str>) -> Option<PathBuf> {
    let mut paths = paths.map(Path::new);
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
    match with(options.layers().chain(options.mounted()).collect(), options.rest()) {
        Err(err) if Errno::from_io_error(&err) == Some(Errno::TOOBIG) => {}
        data => {
            return Ok(mount(&one.source, target, one.fstype.as_str(), options.flags(), data?.as_c_str())?);
        }
    }
    // Shorter when written from the folder that all are in.
    let layers = || options.layers().chain(options.mounted());
    let folder = common(layers()).ok_or(Errno::TOOBIG)?;
    let below = |path| Path::new(path).strip_prefix(&folder).ok().and_then(Path::to_str);
    let layers = layers().map(below).collect::<Option<Vec<_>>>().ok_or(Errno::TOOBIG)?;
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
