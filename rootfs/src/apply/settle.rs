//! What a layer that was applied alone takes from the layers below, once these are known.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
        fgetxattr_query, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, renameat,
        statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    Pending,
    entry::os_str,
    lower::{Lower, Resolved},
    made::{EPOCH, times_of},
    refused,
    remove::{list, remove_tree},
    rules::{FOLDER, at, chmod_unopened, xattrs},
    tree::parent,
    walk::{FILE, open_real},
};
use crate::{Error, Result};

/// Gives a layer what it takes from below. `parent_root` is the merged tree of the layers below; `None` for the lowest layer.
///
/// Folders that the layer does not declare get the owner, mode, attributes and times of the lower folder of that path. Where the
/// lower path is a link to a folder, the entries move to where it leads. Hard links get their lower target, copied up. Blocks.
///
/// # Errors
///
/// [`Error::Entry`] if a hard link leads nowhere, [`Error::Io`] if the system refuses.
pub fn settle(pending: &Pending, root: &OwnedFd, parent_root: Option<&OwnedFd>) -> Result<()> {
    let mut layer = Layer { root, pending, copies: HashMap::new() };
    let mut lower = parent_root.map(Lower::new);
    if let Some(lower) = &lower
        && pending.opaque_root
    {
        layer.hide_all(lower.root)?;
    }
    for (path, target) in &pending.links {
        layer.link(path, target, lower.as_mut())?;
    }
    for path in &pending.hidden {
        layer.whiteout(path, lower.as_mut())?;
    }
    // Folders last, and inner ones first: making entries in a folder changes its times.
    for path in pending.implied.iter().rev() {
        layer.folder(path, lower.as_mut())?;
    }
    match lower {
        Some(lower) if pending.undeclared_root => inherit(lower.root, root, Path::new("/")),
        _ => Ok(()),
    }
}

/// The layer that takes.
struct Layer<'a> {
    root: &'a OwnedFd,
    pending: &'a Pending,
    /// Where the lower targets of hard links were copied to.
    copies: HashMap<PathBuf, PathBuf>,
}

impl Layer<'_> {
    /// Writes a whiteout for each lower name in the root that the layer does not have: a root cannot be opaque.
    fn hide_all(&self, lower: &OwnedFd) -> Result<()> {
        let whole = Path::new("/");
        let before = fstat(self.root).map_err(at("look at", whole))?;
        for (name, _) in list(lower).map_err(at("list", whole))? {
            let path = Path::new(&name);
            match mknodat(self.root, &name, FileType::CharacterDevice, Mode::empty(), 0) {
                Ok(()) => {}
                Err(Errno::EXIST) => match openat(self.root, &name, FOLDER, Mode::empty()) {
                    Ok(kept) => self.make_opaque(&kept, path)?,
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(at("open", path)(errno)),
                },
                Err(errno) => return Err(at("write a whiteout of", path)(errno)),
            }
        }
        futimens(self.root, &times_of(&before)).map_err(at("set the times of", whole))
    }

    fn make_opaque(&self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let attribute = self.pending.opaque.expect("only overlays leave something to settle");
        fsetxattr(folder, attribute, b"y", XattrFlags::empty()).map_err(at("make opaque", path))
    }

    fn is_opaque(&self, folder: &OwnedFd) -> bool {
        self.pending.opaque.is_some_and(|name| fgetxattr_query(folder, name).is_ok())
    }

    /// Makes a hard link to a file of the layers below: a copy of it, which is also put over it.
    fn link(&mut self, path: &Path, target: &Path, lower: Option<&mut Lower<'_>>) -> Result<()> {
        let nowhere =
            || refused(path, format!("it is a hard link to {target:?}, which is in no layer below"));
        let (lower, target_name) = lower.zip(target.file_name()).ok_or_else(nowhere)?;
        let above = lower.resolve(parent(target)).map_err(at("follow", target))?;
        let from = above.folder.as_ref().ok_or_else(nowhere)?;
        let stat = statat(from, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| nowhere())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(path, format!("it is a hard link to the folder {target:?}")));
        }
        let name = path.file_name().expect("a link has a name");
        let folder = open_real(self.root, parent(path)).map_err(at("open the folder of", path))?;
        let before = fstat(&folder).map_err(at("look at the folder of", path))?;
        let real = above.real.join(target_name);
        match self.copies.get(&real) {
            Some(copy) => {
                let there = open_real(self.root, parent(copy)).map_err(at("open the folder of", copy))?;
                let copy = copy.file_name().expect("a link has a name");
                linkat(&there, copy, &folder, name, AtFlags::empty()).map_err(at("link", path))?;
            }
            None => {
                copy_up(from, target_name, &stat, &folder, name, path)?;
                self.put_over(&folder, name, lower.root, &real)?;
                self.copies.insert(real, path.to_owned());
            }
        }
        futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", path))
    }

    /// Links a copy to the name of what was copied, if the layer shows that one.
    fn put_over(&self, copies: &OwnedFd, copy: &OsStr, lower: &OwnedFd, real: &Path) -> Result<()> {
        let Some(folder) = self.folder_like_below(lower, parent(real))? else { return Ok(()) };
        let before = fstat(&folder).map_err(at("look at the folder of", real))?;
        let name = real.file_name().expect("a target has a name");
        match linkat(copies, copy, &folder, name, AtFlags::empty()) {
            Ok(()) => {
                futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", real))
            }
            // The layer has something else there, which came later.
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(at("copy up", real)(errno)),
        }
    }

    /// A folder of the layer; what is missing of it is made as it is below. `None` where the layer hides the one below.
    fn folder_like_below(&self, lower: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
        let mut folder = openat(self.root, ".", FOLDER, Mode::empty()).map_err(at("open", path))?;
        let mut walked = PathBuf::new();
        for name in path {
            if walked.as_os_str().is_empty() && self.pending.opaque_root {
                return Ok(None);
            }
            walked.push(name);
            folder = match openat(&folder, name, FOLDER, Mode::empty()) {
                Ok(inner) if self.is_opaque(&inner) => return Ok(None),
                Ok(inner) => inner,
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::NOENT) => make_like_below(&folder, name, lower, &walked)?,
                Err(errno) => return Err(at("open", &walked)(errno)),
            };
        }
        Ok(Some(folder))
    }

    /// Overlayfs lists a whiteout in a folder that it does not merge: where it hides nothing, it is taken away.
    fn whiteout(&self, path: &Path, lower: Option<&mut Lower<'_>>) -> Result<()> {
        let name = path.file_name().expect("a whiteout has a name");
        if let Some(lower) = lower {
            let above = lower.resolve(parent(path)).map_err(at("follow", path))?;
            let hides = above.folder.as_ref().map(|above| statat(above, name, AtFlags::SYMLINK_NOFOLLOW));
            match hides {
                Some(Ok(_)) => return Ok(()),
                None | Some(Err(Errno::NOENT)) => {}
                Some(Err(errno)) => return Err(at("look at what is below", path)(errno)),
            }
        }
        let folder = open_real(self.root, parent(path)).map_err(at("open the folder of", path))?;
        let before = fstat(&folder).map_err(at("look at the folder of", path))?;
        unlinkat(&folder, name, AtFlags::empty()).map_err(at("remove the whiteout of", path))?;
        futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", path))
    }

    /// Gives a folder that the layer does not declare what the layers below say of it.
    fn folder(&self, path: &Path, lower: Option<&mut Lower<'_>>) -> Result<()> {
        let name = path.file_name().expect("the root is never implied");
        let made = open_real(self.root, path).map_err(at("open", path))?;
        let Some(lower) = lower else { return self.remove_if_it_only_hides(path, &made) };
        let above = lower.resolve(parent(path)).map_err(at("follow", path))?;
        let Some(lower_above) = &above.folder else { return self.remove_if_it_only_hides(path, &made) };
        let kind = match statat(lower_above, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return self.remove_if_it_only_hides(path, &made),
            Err(errno) => return Err(at("look at what is below", path)(errno)),
        };
        match kind {
            FileType::Directory => {
                let below = openat(lower_above, name, FOLDER, Mode::empty()).map_err(at("open", path))?;
                inherit(&below, &made, path)
            }
            FileType::Symlink => match lower.resolve(path) {
                Ok(to) => self.move_to(path, &made, &to, lower.root),
                // It leads nowhere, and the folder takes its place.
                Err(Errno::LOOP) => self.remove_if_it_only_hides(path, &made),
                Err(errno) => Err(at("follow", path)(errno)),
            },
            _ => self.remove_if_it_only_hides(path, &made),
        }
    }

    /// A folder that was made for whiteouts alone, where nothing is below that they could hide, would be seen itself.
    fn remove_if_it_only_hides(&self, path: &Path, made: &OwnedFd) -> Result<()> {
        let inner = list(made).map_err(at("list", path))?;
        match inner.is_empty() {
            true => self.remove_folder(path),
            false => Ok(()),
        }
    }

    fn remove_folder(&self, path: &Path) -> Result<()> {
        let above = open_real(self.root, parent(path)).map_err(at("open the folder of", path))?;
        let before = fstat(&above).map_err(at("look at the folder of", path))?;
        let name = path.file_name().expect("the root is never implied");
        unlinkat(&above, name, AtFlags::REMOVEDIR).map_err(at("remove", path))?;
        futimens(&above, &times_of(&before)).map_err(at("set the times of the folder of", path))
    }

    /// The layer has entries below a path that is a link in the layers below: they belong to where it leads.
    fn move_to(&self, path: &Path, made: &OwnedFd, to: &Resolved, lower: &OwnedFd) -> Result<()> {
        let real = &to.real;
        let opaque = self.is_opaque(made) && to.folder.is_some();
        if opaque || !list(made).map_err(at("list", path))?.is_empty() {
            let mut place = openat(self.root, ".", FOLDER, Mode::empty()).map_err(at("open", path))?;
            let mut walked = PathBuf::new();
            for name in real {
                walked.push(name);
                place = match openat(&place, name, FOLDER, Mode::empty()) {
                    Ok(inner) => inner,
                    Err(Errno::NOENT) => make_like_below(&place, name, lower, &walked)?,
                    Err(Errno::NOTDIR | Errno::LOOP) => {
                        remove_tree(&place, name).map_err(at("replace", &walked))?;
                        let inner = make_like_below(&place, name, lower, &walked)?;
                        self.make_opaque(&inner, &walked)?;
                        inner
                    }
                    Err(errno) => return Err(at("open", &walked)(errno)),
                };
            }
            if opaque {
                self.make_opaque(&place, real)?;
            }
            self.merge(path, real)?;
        }
        self.remove_folder(path)
    }

    /// Moves all that is in one folder into another: what is there gives way, folders are merged.
    fn merge(&self, from: &Path, to: &Path) -> Result<()> {
        let mut open = vec![PathBuf::new()];
        let mut emptied = Vec::new();
        while let Some(path) = open.pop() {
            let (here, there) = (from.join(&path), to.join(&path));
            let from = open_real(self.root, &here).map_err(at("open", &here))?;
            let to = open_real(self.root, &there).map_err(at("open", &there))?;
            let before = fstat(&to).map_err(at("look at", &there))?;
            for (name, _) in list(&from).map_err(at("list", &here))? {
                if self.move_one(&from, &to, &name, &here)? {
                    open.push(path.join(name));
                }
            }
            futimens(&to, &times_of(&before)).map_err(at("set the times of", &there))?;
            emptied.push(here);
        }
        // The outermost is the caller's.
        for path in emptied[1..].iter().rev() {
            self.remove_folder(path)?;
        }
        Ok(())
    }

    /// Moves one thing. Gives whether both are folders, to be merged.
    fn move_one(&self, from: &OwnedFd, to: &OwnedFd, name: &OsString, path: &Path) -> Result<bool> {
        let look = |folder| statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
        let moved = look(from).map_err(at("look at what is in", path))?;
        let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
        let is_folder = |stat: &Stat| kind(stat) == FileType::Directory;
        let is_whiteout = |stat: &Stat| kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0;
        match look(to) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(at("look at what is in", path)(errno)),
            Ok(there) if is_folder(&moved) && is_folder(&there) => return Ok(true),
            Ok(there) if is_whiteout(&moved) => {
                if is_folder(&there) {
                    let kept = openat(to, name, FOLDER, Mode::empty()).map_err(at("open", path))?;
                    self.make_opaque(&kept, path)?;
                }
                unlinkat(from, name, AtFlags::empty()).map_err(at("remove a whiteout in", path))?;
                return Ok(false);
            }
            Ok(_) => {
                remove_tree(to, name).map_err(at("replace what is in", path))?;
                if is_folder(&moved) {
                    let kept = openat(from, name, FOLDER, Mode::empty()).map_err(at("open", path))?;
                    self.make_opaque(&kept, path)?;
                }
            }
        }
        renameat(from, name, to, name).map_err(at("move what is in", path))?;
        Ok(false)
    }
}

/// Makes a folder as it is below; as nobody's where there is none.
fn make_like_below(above: &OwnedFd, name: &OsStr, lower: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let before = fstat(above).map_err(at("look at the folder of", path))?;
    mkdirat(above, name, Mode::from_raw_mode(0o755)).map_err(at("create", path))?;
    futimens(above, &times_of(&before)).map_err(at("set the times of the folder of", path))?;
    let made = openat(above, name, FOLDER, Mode::empty()).map_err(at("open", path))?;
    match open_real(lower, path) {
        Ok(below) => inherit(&below, &made, path)?,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
            fchmod(&made, Mode::from_raw_mode(0o755)).map_err(at("set the mode of", path))?;
            futimens(&made, &EPOCH).map_err(at("set the times of", path))?;
        }
        Err(errno) => return Err(at("open", path)(errno)),
    }
    Ok(made)
}

/// Copies what is no folder from the layers below into the layer.
fn copy_up(
    lower: &OwnedFd,
    from: &OsStr,
    stat: &Stat,
    folder: &OwnedFd,
    name: &OsStr,
    path: &Path,
) -> Result<()> {
    let failed = at("copy up the target of", path);
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::RegularFile {
        let from = openat(lower, from, FILE, Mode::empty()).map_err(at("open the target of", path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = openat(folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let (mut from, mut to) = (File::from(from), File::from(to));
        io::copy(&mut from, &mut to).map_err(|source| Error::Io {
            op: "copy up the target of",
            path: path.to_owned(),
            source,
        })?;
        return inherit(&OwnedFd::from(from), &OwnedFd::from(to), path);
    }
    let copied = match kind {
        FileType::Symlink => {
            readlinkat(lower, from, Vec::new()).and_then(|target| symlinkat(&*target, folder, name))
        }
        _ => mknodat(folder, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev),
    };
    copied.map_err(failed)?;
    let made = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
    if (made.st_uid, made.st_gid) != (stat.st_uid, stat.st_gid) {
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the owner of", path))?;
    }
    if kind != FileType::Symlink {
        chmod_unopened(folder, name, stat.st_mode & 0o7777).map_err(at("set the mode of", path))?;
    }
    utimensat(folder, name, &times_of(stat), AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the times of", path))
}

/// Gives one file or folder the owner, mode, attributes and times of another.
fn inherit(from: &OwnedFd, to: &OwnedFd, path: &Path) -> Result<()> {
    let stat = fstat(from).map_err(at("look at", path))?;
    let made = fstat(to).map_err(at("look at", path))?;
    if (made.st_uid, made.st_gid) != (stat.st_uid, stat.st_gid) {
        let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
        fchown(to, owner.0, owner.1).map_err(at("set the owner of", path))?;
    }
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(at("set the mode of", path))?;
    copy_xattrs(from, to).map_err(at("copy the attributes of", path))?;
    futimens(to, &times_of(&stat)).map_err(at("set the times of", path))
}

fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    for name in xattrs(&from)? {
        // How overlayfs keeps its books is not the folder's own.
        if name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let mut value = vec![0; fgetxattr_query(&from, os_str(&name))?];
        let length = if value.is_empty() { 0 } else { fgetxattr(&from, os_str(&name), &mut value[..])? };
        fsetxattr(&to, os_str(&name), &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}
