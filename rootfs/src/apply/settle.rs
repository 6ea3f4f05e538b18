//! What a layer that was applied alone takes from the layers below, once these are known.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
        fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, renameat, statat, unlinkat,
    },
    io::Errno,
};

use super::{
    Pending, refused,
    tree::{at, names, open_folder, parent, times_of},
};
use crate::{Error, Result};

/// Gives a layer what it takes from below. `parent_root` is the merged tree of the layers below; `None` for the lowest layer.
///
/// Folders that the layer does not declare get the owner, mode, attributes and times of the lower folder of that path. Where the lower
/// path is a link to a folder, the entries move to where it leads. Hard links get their lower target, copied up. Blocks.
///
/// # Errors
///
/// [`Error::Entry`] if a hard link leads nowhere, [`Error::Io`] if the system refuses.
pub fn settle(pending: &Pending, root: &OwnedFd, parent_root: Option<&OwnedFd>) -> Result<()> {
    if let Some(lower) = parent_root
        && pending.opaque_root
        && let Some(opaque) = pending.opaque
    {
        hide_all(root, lower, opaque)?;
    }
    for (path, target) in &pending.links {
        settle_link(path, target, root, parent_root)?;
    }
    for path in &pending.hidden {
        settle_whiteout(path, root, parent_root, pending.opaque)?;
    }
    // Folders last, and inner ones first: making entries in a folder changes its times.
    for path in pending.implied.iter().rev() {
        settle_folder(path, root, parent_root)?;
    }
    match parent_root {
        Some(lower) if pending.undeclared_root => inherit(lower, root, Path::new("/")),
        _ => Ok(()),
    }
}

/// Writes a whiteout for each lower name in the root that the layer does not have: a root cannot be opaque.
fn hide_all(root: &OwnedFd, lower: &OwnedFd, opaque: &str) -> Result<()> {
    let whole = Path::new("");
    for name in names(lower).map_err(at("list", whole))? {
        match mknodat(root, &name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if let Ok(kept) = openat(root, &name, OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
                    fsetxattr(&kept, opaque, b"y", XattrFlags::empty())
                        .map_err(at("make opaque", Path::new(&name)))?;
                }
            }
            Err(errno) => return Err(at("write a whiteout of", Path::new(&name))(errno)),
        }
    }
    Ok(())
}

fn settle_folder(path: &Path, root: &OwnedFd, lower: Option<&OwnedFd>) -> Result<()> {
    let name = path.file_name().expect("the root is never implied");
    // The folder above may have moved with an earlier one; then this one moved with it.
    let Ok(made) = open_folder(root, path) else { return Ok(()) };
    let below = lower.and_then(|lower| Some((lower, open_folder(lower, path).ok()?)));
    let Some((lower, lower_folder)) = below else {
        return remove_if_it_only_hides(path, root, &made);
    };
    let lower_above = open_folder(lower, parent(path)).map_err(at("open", path))?;
    let lower_stat = statat(&lower_above, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
    if FileType::from_raw_mode(lower_stat.st_mode) == FileType::Symlink {
        return follow_lower_link(path, root, lower, &made);
    }
    inherit(&lower_folder, &made, path)
}

/// Overlayfs lists a whiteout in a folder that it does not merge: there it hides nothing, and is taken away.
fn settle_whiteout(path: &Path, root: &OwnedFd, lower: Option<&OwnedFd>, opaque: Option<&str>) -> Result<()> {
    let name = path.file_name().expect("a whiteout has a name");
    // The folder is gone where a later entry took its place.
    let Ok(folder) = open_folder(root, parent(path)) else { return Ok(()) };
    let hides = lower
        .and_then(|lower| open_folder(lower, parent(path)).ok())
        .is_some_and(|lower| statat(&lower, name, AtFlags::SYMLINK_NOFOLLOW).is_ok());
    let merged = parent(path).ancestors().filter(|above| !above.as_os_str().is_empty()).all(|above| {
        let mut value = [0; 1];
        let marked =
            |name| open_folder(root, above).and_then(|above| fgetxattr(&above, name, &mut value)).is_ok();
        !opaque.is_some_and(marked)
    });
    let stat = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_whiteout = stat.is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    });
    if (hides && merged) || !is_whiteout {
        return Ok(());
    }
    let before = fstat(&folder).map_err(at("look at the folder of", path))?;
    unlinkat(&folder, name, AtFlags::empty()).map_err(at("remove the whiteout of", path))?;
    futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", path))
}

/// A folder that was made for whiteouts alone, where nothing is below that they could hide, would be seen itself.
fn remove_if_it_only_hides(path: &Path, root: &OwnedFd, made: &OwnedFd) -> Result<()> {
    let names = names(made).map_err(at("list", path))?;
    for name in &names {
        let stat = statat(made, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != 0 {
            return Ok(());
        }
    }
    for name in &names {
        unlinkat(made, name, AtFlags::empty()).map_err(at("remove a whiteout in", path))?;
    }
    let above = open_folder(root, parent(path)).map_err(at("open the folder of", path))?;
    let before = fstat(&above).map_err(at("look at the folder of", path))?;
    let name = path.file_name().expect("the root is never implied");
    unlinkat(&above, name, AtFlags::REMOVEDIR).map_err(at("remove", path))?;
    futimens(&above, &times_of(&before)).map_err(at("set the times of the folder of", path))
}

/// The layer has entries below a path that is a link in the layers below: they belong to where it leads.
fn follow_lower_link(path: &Path, root: &OwnedFd, lower: &OwnedFd, made: &OwnedFd) -> Result<()> {
    let real =
        real_path(lower, path).map_err(|source| Error::Io { op: "follow", path: path.to_owned(), source })?;
    let mut place =
        root.try_clone().map_err(|source| Error::Io { op: "open", path: path.to_owned(), source })?;
    let mut walked = std::path::PathBuf::new();
    for part in &real {
        walked.push(part);
        match mkdirat(&place, part, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                let new = open_folder(root, &walked).map_err(at("open", &walked))?;
                inherit(&open_folder(lower, &walked).map_err(at("open", &walked))?, &new, &walked)?;
            }
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(at("create", &walked)(errno)),
        }
        place = open_folder(root, &walked).map_err(at("open", &walked))?;
    }
    let before = fstat(&place).map_err(at("look at", path))?;
    merge(made, &place, path)?;
    futimens(&place, &times_of(&before)).map_err(at("set the times of", path))?;
    let above = open_folder(root, parent(path)).map_err(at("open", path))?;
    let name = path.file_name().expect("the root is no link");
    unlinkat(&above, name, AtFlags::REMOVEDIR).map_err(at("remove", path))
}

/// Moves all entries of one folder into another; what is there already gives way, folders are merged.
fn merge(from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<()> {
    for name in names(from).map_err(at("list", path))? {
        match renameat(from, &name, to, &name) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let open =
                    |folder| openat(folder, &name, OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
                let (inner_from, inner_to) = (open(from), open(to));
                merge(&inner_from.map_err(at("open", path))?, &inner_to.map_err(at("open", path))?, path)?;
                unlinkat(from, &name, AtFlags::REMOVEDIR).map_err(at("remove", path))?;
            }
            Err(errno) => return Err(at("move what is in", path)(errno)),
        }
    }
    Ok(())
}

/// The path inside a root that a path leads to, without links: from what the kernel says of the opened folder.
fn real_path(root: &OwnedFd, path: &Path) -> io::Result<std::path::PathBuf> {
    use std::os::fd::AsRawFd;
    let shown = |fd: &OwnedFd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let (top, real) = (shown(root)?, shown(&open_folder(root, path)?)?);
    // A detached mount's root is shown as `/`.
    real.strip_prefix(&top)
        .map(Path::to_owned)
        .map_err(|_| io::Error::other("it leads outside the layers below"))
}

fn settle_link(path: &Path, target: &Path, root: &OwnedFd, lower: Option<&OwnedFd>) -> Result<()> {
    let nowhere = || refused(path, format!("it is a hard link to {target:?}, which is in no layer below"));
    let lower = lower.ok_or_else(nowhere)?;
    let target_name = target.file_name().ok_or_else(nowhere)?;
    let name = path.file_name().expect("a link has a name");
    let lower_folder = open_folder(lower, parent(target)).map_err(|_| nowhere())?;
    let real = real_path(lower, parent(target)).map_err(|source| Error::Io {
        op: "follow",
        path: target.to_owned(),
        source,
    })?;
    let stat = statat(&lower_folder, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| nowhere())?;
    let upper_folder = folder_like_below(root, lower, &real)?;
    let folder = open_folder(root, parent(path)).map_err(at("open the folder of", path))?;
    let before = [&upper_folder, &folder].map(|folder| (folder, fstat(folder)));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => copy_up(&lower_folder, &upper_folder, target_name, path)?,
        FileType::Directory => {
            return Err(refused(path, format!("it is a hard link to the folder {target:?}")));
        }
        // A link cannot have two names here, but it can be made twice.
        _ => return Err(refused(path, format!("it is a hard link to {target:?}, which is no regular file"))),
    }
    linkat(&upper_folder, target_name, &folder, name, AtFlags::empty()).map_err(at("link", path))?;
    for (folder, stat) in before {
        let stat = stat.map_err(at("look at the folder of", path))?;
        futimens(folder, &times_of(&stat)).map_err(at("set the times of the folder of", path))?;
    }
    Ok(())
}

/// A folder of the layer; what is missing of it is made as it is below.
fn folder_like_below(root: &OwnedFd, lower: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    match open_folder(root, path) {
        Ok(folder) => Ok(folder),
        Err(Errno::NOENT) => {
            let above = folder_like_below(root, lower, parent(path))?;
            let name = path.file_name().expect("the root is there");
            let before = fstat(&above).map_err(at("look at the folder of", path))?;
            mkdirat(&above, name, Mode::from_raw_mode(0o755)).map_err(at("create", path))?;
            futimens(&above, &times_of(&before)).map_err(at("set the times of the folder of", path))?;
            let made = open_folder(root, path).map_err(at("open", path))?;
            inherit(&open_folder(lower, path).map_err(at("open", path))?, &made, path)?;
            Ok(made)
        }
        Err(errno) => Err(at("open", path)(errno)),
    }
}

/// Copies a regular file of the layers below into the layer, at the same path.
fn copy_up(lower: &OwnedFd, upper: &OwnedFd, name: &std::ffi::OsStr, path: &Path) -> Result<()> {
    let from = openat(lower, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .map_err(at("open the target of", path))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = match openat(upper, name, flags, Mode::from_raw_mode(0o600)) {
        Ok(to) => to,
        // An earlier link of this layer copied it.
        Err(Errno::EXIST) => return Ok(()),
        Err(errno) => return Err(at("copy up the target of", path)(errno)),
    };
    let (mut from, mut to) = (File::from(from), File::from(to));
    io::copy(&mut from, &mut to).map_err(|source| Error::Io {
        op: "copy up the target of",
        path: path.to_owned(),
        source,
    })?;
    inherit(&OwnedFd::from(from), &OwnedFd::from(to), path)
}

/// Gives one file or folder the owner, mode, attributes and times of another.
fn inherit(from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<()> {
    let stat = fstat(from).map_err(at("look at", path))?;
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    fchown(to, owner.0, owner.1).map_err(at("set the owner of", path))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(at("set the mode of", path))?;
    copy_xattrs(from, to).map_err(at("copy the attributes of", path))?;
    futimens(to, &times_of(&stat)).map_err(at("set the times of", path))
}

fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    let mut list = vec![0; 64 << 10];
    let length = flistxattr(&from, &mut list)?;
    let mut value = vec![0; 64 << 10];
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // How overlayfs keeps its books is not the folder's own.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let length = fgetxattr(&from, name, &mut value)?;
        fsetxattr(&to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}
