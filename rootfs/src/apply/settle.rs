//! What a layer that was applied alone takes from the layers below, once these are known.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr,
        fgetxattr_query, fsetxattr, fstat, futimens, linkat, mkdirat, mknodat, openat, readlinkat, statat,
        symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use super::{
    Pending,
    entry::os_str,
    lower::{Inode, Lower, kind},
    made::{EPOCH, times_of},
    refused,
    remove::list,
    rules::{FOLDER, at, chmod_unopened, xattrs},
    tree::parent,
    walk::{FILE, open_real},
};
use crate::{Error, Result};

/// Gives a layer what it takes from below. `parent_root` is the merged tree of the layers below; `None` for the lowest layer.
///
/// Folders that the layer does not declare get the owner, mode, attributes and times of the lower folder of that path. Hard links
/// get their lower target, copied up. Blocks.
///
/// # Errors
///
/// [`Error::Entry`] if a hard link leads nowhere, [`Error::Io`] if the system refuses.
pub fn settle(pending: &Pending, root: &OwnedFd, parent_root: Option<&OwnedFd>) -> Result<Settled> {
    let mut layer = Layer { root, pending, copies: HashMap::new() };
    let mut lower = parent_root.map(Lower::new);
    if let Some(lower) = &mut lower
        && layer.goes_through_links(lower)?
    {
        return Ok(Settled::Again);
    }
    if let Some((entry, reason)) = &pending.refused {
        return Err(refused(entry, reason.clone()));
    }
    for (path, target) in &pending.targets {
        layer.target(path, target, lower.as_mut())?;
    }
    for (path, target) in &pending.links {
        layer.link(path, target, lower.as_mut())?;
    }
    if let Some(lower) = &lower
        && pending.opaque_root
    {
        layer.hide_all(lower.root)?;
    }
    for path in &pending.hidden {
        layer.whiteout(path, lower.as_mut())?;
    }
    // Then folders, and inner ones first: making entries in a folder changes its times.
    for path in pending.implied.iter().rev() {
        layer.folder(path, lower.as_mut())?;
    }
    if let Some(lower) = &lower {
        layer.put_over(lower)?;
        if pending.undeclared_root {
            inherit(lower.root, root, Path::new("/"))?;
        }
    }
    Ok(Settled::Done)
}

/// The answer to [`settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    /// The layer is whole.
    Done,
    /// Nothing was changed. The layer has entries below links of the layers below: it is to be applied anew by
    /// [`apply_again`](super::apply_again), into a new folder, and what that leaves to be settled.
    Again,
}

/// The layer that takes.
struct Layer<'a> {
    root: &'a OwnedFd,
    pending: &'a Pending,
    /// Where the lower targets of hard links were copied to.
    copies: HashMap<Inode, Copied>,
}

/// A copy of a file of the layers below.
struct Copied {
    /// Where it is in the layer.
    path: PathBuf,
    /// Where the file was found.
    target: PathBuf,
    /// It has other names, too.
    has_more: bool,
}

impl Layer<'_> {
    /// Whether a layer below has a link where this one has taken something for a folder.
    fn goes_through_links(&self, lower: &mut Lower<'_>) -> Result<bool> {
        for path in &self.pending.guesses {
            let there = lower.look(path).map_err(at("look at what is below", path))?;
            if there.is_some_and(|(_, stat)| kind(&stat) == FileType::Symlink) {
                return Ok(true);
            }
        }
        Ok(false)
    }

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

    /// Looks up the lower target of a hard link; an error if it cannot be one.
    fn target(
        &self,
        path: &Path,
        target: &Path,
        lower: Option<&mut Lower<'_>>,
    ) -> Result<(Rc<OwnedFd>, Stat)> {
        let there = lower.map(|lower| lower.look(target)).transpose().map_err(at("look up", target))?;
        match there.flatten() {
            None => {
                Err(refused(path, format!("it is a hard link to {target:?}, which is in no layer below")))
            }
            Some((_, stat)) if kind(&stat) == FileType::Directory => {
                Err(refused(path, format!("it is a hard link to the folder {target:?}")))
            }
            Some(there) => Ok(there),
        }
    }

    /// Makes a hard link to a file of the layers below: a copy of it.
    fn link(&mut self, path: &Path, target: &Path, lower: Option<&mut Lower<'_>>) -> Result<()> {
        let (from, stat) = self.target(path, target, lower)?;
        let name = path.file_name().expect("a link has a name");
        let folder = open_real(self.root, parent(path)).map_err(at("open the folder of", path))?;
        let before = fstat(&folder).map_err(at("look at the folder of", path))?;
        let inode = (stat.st_dev, stat.st_ino);
        match self.copies.get(&inode) {
            Some(Copied { path: copy, .. }) => {
                self.link_copy(copy, &folder, name).map_err(at("link", path))?;
            }
            None => {
                let target_name = target.file_name().expect("it was found there");
                copy_up(&from, target_name, &stat, &folder, name, path)?;
                let (path, target) = (path.to_owned(), target.to_owned());
                self.copies.insert(inode, Copied { path, target, has_more: stat.st_nlink > 1 });
            }
        }
        futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", path))
    }

    fn link_copy(&self, copy: &Path, folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
        let there = open_real(self.root, parent(copy))?;
        linkat(&there, copy.file_name().expect("a copy has a name"), folder, name, AtFlags::empty())
    }

    /// Links the copies of lower files to all names of these that the layer shows.
    fn put_over(&self, lower: &Lower<'_>) -> Result<()> {
        let has_more = self.copies.values().any(|copy| copy.has_more);
        let names = has_more.then(|| lower.names()).transpose();
        let names = names.map_err(at("look at what is below", Path::new("/")))?.unwrap_or_default();
        for (inode, copy) in &self.copies {
            for name in names.get(inode).unwrap_or(&vec![copy.target.clone()]) {
                self.put_copy_over(&copy.path, lower.root, name)?;
            }
        }
        Ok(())
    }

    fn put_copy_over(&self, copy: &Path, lower: &OwnedFd, real: &Path) -> Result<()> {
        let Some(folder) = self.folder_like_below(lower, parent(real))? else { return Ok(()) };
        let before = fstat(&folder).map_err(at("look at the folder of", real))?;
        match self.link_copy(copy, &folder, real.file_name().expect("a target has a name")) {
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
        let hides = lower.map(|lower| lower.look(path)).transpose();
        if hides.map_err(at("look at what is below", path))?.flatten().is_some() {
            return Ok(());
        }
        let folder = open_real(self.root, parent(path)).map_err(at("open the folder of", path))?;
        let before = fstat(&folder).map_err(at("look at the folder of", path))?;
        unlinkat(&folder, name, AtFlags::empty()).map_err(at("remove the whiteout of", path))?;
        futimens(&folder, &times_of(&before)).map_err(at("set the times of the folder of", path))
    }

    /// Gives a folder that the layer does not declare what the layers below say of it.
    fn folder(&self, path: &Path, lower: Option<&mut Lower<'_>>) -> Result<()> {
        let made = open_real(self.root, path).map_err(at("open", path))?;
        let below = lower.map(|lower| lower.folder(path)).transpose();
        match below.map_err(at("look at what is below", path))?.flatten() {
            Some(below) => inherit(&below, &made, path),
            None => self.remove_if_it_only_hides(path, &made),
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
