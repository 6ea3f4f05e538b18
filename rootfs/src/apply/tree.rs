//! Makes what a layer says in a tree. Every change is made relative to a folder's handle that was got inside the root.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, fstat, futimens, linkat, makedev, mkdirat, mknodat, openat,
        renameat, statat, symlinkat, utimensat,
    },
    io::Errno,
};
use tar::EntryType;

use super::{
    Pending,
    archive::Archive,
    content,
    entry::Meta,
    made::{Hides, Id, Last, Made, ROOT, times_of},
    refused, remove,
    rules::{FOLDER, Rules, at, remove_acls, remove_xattrs},
    walk::{Place, Tree, Walked, Walker, gives},
};
use crate::{Error, Result};

/// A tree that a layer is being applied to.
pub(super) struct Target<'a> {
    tree: Tree<'a>,
    here: Walker,
    /// For the targets of hard links, which are often far away.
    there: Walker,
    /// See [`content::likes_room`].
    likes_room: bool,
    pub(super) skipped: u64,
}

impl<'a> Target<'a> {
    /// `lower` is what the layers below show, for a layer that is applied alone once they are there.
    pub(super) fn new(root: &OwnedFd, lower: Option<&'a OwnedFd>, rules: Rules<'a>) -> Result<Self> {
        let whole = Path::new("/");
        let root = openat(root, ".", FOLDER, Mode::empty()).map_err(at("open", whole))?;
        let stat = fstat(&root).map_err(at("look at", whole))?;
        let mut made = Made::new(gives(&root, stat.st_gid, stat.st_mode));
        made.at_mut(ROOT).last = Some(Last::at(times_of(&stat)));
        let likes_room = content::likes_room(&root);
        let root = Rc::new(root);
        let (here, there) = (Walker::new(&root), Walker::new(&root));
        Ok(Self { tree: Tree { root, lower, rules, made }, here, there, likes_room, skipped: 0 })
    }

    /// Sets owner, mode, attributes and times of the root.
    pub(super) fn root_folder(&mut self, meta: &Meta) -> Result<()> {
        let root = self.tree.root.clone();
        self.declare(&root, ROOT, meta)?;
        self.tree.made.at_mut(ROOT).gives.group = meta.gid;
        Ok(())
    }

    /// Makes an entry, in the place of what is there.
    pub(super) fn put<R: BufRead>(&mut self, meta: &Meta, data: &mut Archive<R>) -> Result<()> {
        let path = &meta.path;
        let place = self.here.make(parent(path), &mut self.tree)?;
        let name = path.file_name().expect("the root is no entry");
        match meta.kind {
            EntryType::Directory => return self.put_folder(&place, name, meta),
            EntryType::Link => self.put_link(&place, name, meta)?,
            EntryType::Symlink => {
                self.in_place(&place, name, path, || symlinkat(&meta.link, &*place.handle, name))?;
                let owner = self.tree.rules.owner(meta, self.tree.made.at(place.id).gives)?;
                self.tree.rules.finish_unopened(&place.handle, name, meta, owner, None)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => self.put_device(&place, name, meta)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.put_file(&place, name, meta, data)?;
            }
            other => {
                return Err(refused(path, format!("its type {:?} is not known", other.as_byte() as char)));
            }
        }
        if self.tree.rules.removes {
            self.tree.made.at_mut(place.id).others.insert(name.to_owned());
        }
        self.tree.made.keep(place.id);
        Ok(())
    }

    /// Whether what was made supposes anything of links in the layers below.
    pub(super) fn guesses(&self) -> bool {
        self.tree.made.has_guesses()
    }

    fn put_file<R: BufRead>(
        &mut self,
        place: &Place,
        name: &OsStr,
        meta: &Meta,
        data: &mut Archive<R>,
    ) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made_mode = if self.tree.rules.exact_modes { meta.mode & 0o777 } else { 0o600 };
        let mode = Mode::from_raw_mode(made_mode);
        let file = self.in_place(place, name, &meta.path, || openat(&*place.handle, name, flags, mode))?;
        let mut file = File::from(file);
        content::write(&mut file, meta, data, self.likes_room)?;
        let gives = self.tree.made.at(place.id).gives;
        let owner = self.tree.rules.owner(meta, gives)?;
        let mut has = self.tree.rules.exact_modes.then_some(made_mode);
        if gives.acl {
            remove_acls(file.as_fd()).map_err(at("remove the inherited ACL of", &meta.path))?;
            has = None;
        }
        self.tree.rules.finish(file.as_fd(), meta, owner, has)?;
        futimens(&file, &meta.times()).map_err(at("set the times of", &meta.path))
    }

    fn put_device(&mut self, place: &Place, name: &OsStr, meta: &Meta) -> Result<()> {
        if meta.kind == EntryType::Char && meta.device == (0, 0) {
            return Err(refused(&meta.path, "a character device 0/0 is how overlayfs hides a name"));
        }
        let kind = match meta.kind {
            EntryType::Char => FileType::CharacterDevice,
            EntryType::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = makedev(meta.device.0, meta.device.1);
        let gives = self.tree.made.at(place.id).gives;
        let made_mode = meta.mode & 0o777;
        let mode = Mode::from_raw_mode(made_mode);
        let made =
            self.in_place(place, name, &meta.path, || mknodat(&*place.handle, name, kind, mode, device));
        match made {
            Err(Error::Io { source, .. })
                if meta.kind != EntryType::Fifo
                    && Errno::from_io_error(&source)
                        .is_some_and(|errno| self.tree.rules.skips(errno, "a device", &meta.path)) =>
            {
                self.skipped += 1;
                return self.remove(place, name, &meta.path);
            }
            made => made?,
        }
        let owner = self.tree.rules.owner(meta, gives)?;
        if gives.acl {
            let opened = openat(&*place.handle, name, super::walk::FILE | OFlags::PATH, Mode::empty());
            let file = opened.map_err(at("open", &meta.path))?;
            for attribute in ["system.posix_acl_access"] {
                match rustix::fs::removexattr(super::rules::in_proc(&file), attribute) {
                    Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                    Err(errno) => return Err(at("remove the inherited ACL of", &meta.path)(errno)),
                }
            }
        }
        let has = (self.tree.rules.exact_modes && !gives.acl).then_some(made_mode);
        self.tree.rules.finish_unopened(&place.handle, name, meta, owner, has)
    }

    fn put_folder(&mut self, place: &Place, name: &OsStr, meta: &Meta) -> Result<()> {
        let path = &meta.path;
        let there = self.tree.made.at(place.id);
        let known = there.folders.contains_key(name) || there.links.contains_key(name);
        let made = match known {
            true => Err(Errno::EXIST),
            false => mkdirat(&*place.handle, name, Mode::from_raw_mode(meta.mode & 0o777 | 0o700)),
        };
        let there = match made {
            Ok(()) => None,
            Err(Errno::EXIST) => match self.tree.enter(place, name) {
                Ok(there) => Some(there),
                Err(Errno::NOTDIR | Errno::LOOP) => None,
                // A hard link that is made later.
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(at("open", path)(errno)),
            },
            Err(errno) => return Err(at("create", path)(errno)),
        };
        let id = match (there, made) {
            (Some((id, handle)), _) => {
                self.declare(&handle, id, meta)?;
                id
            }
            (None, made) => self.put_new_folder(place, name, meta, made.is_ok())?,
        };
        self.tree.made.at_mut(id).declared = true;
        self.tree.made.keep(id);
        Ok(())
    }

    /// Gives a folder that was made a moment ago, or is to be made in the place of something else, what an entry says.
    fn put_new_folder(&mut self, place: &Place, name: &OsStr, meta: &Meta, is_made: bool) -> Result<Id> {
        let path = &meta.path;
        let id = match is_made {
            true => self.tree.note_folder(place, name, meta.mode, path)?,
            false => self.tree.make_folder(place, name, meta.mode, path)?,
        };
        let gives = self.tree.made.at(place.id).gives;
        let owner = self.tree.rules.owner(meta, gives)?;
        if owner.is_some() || !meta.xattrs.is_empty() {
            let (handle, _) = self.tree.rules.open(&place.handle, name).map_err(at("open", path))?;
            // The mode comes last.
            self.tree.rules.finish(handle.as_fd(), meta, owner, Some(meta.mode))?;
        }
        let default_acl = self.tree.rules.default_acl(meta)?;
        let folder = self.tree.made.at_mut(id);
        folder.gives.group = owner.map_or(folder.gives.group, |(_, gid)| gid.as_raw());
        let mode = (meta.mode & 0o777 | 0o700 != meta.mode).then_some(meta.mode);
        folder.last = Some(Last { mode, default_acl, ..Last::at(meta.times()) });
        Ok(id)
    }

    /// Gives a folder that was there what an entry says, and nothing else.
    fn declare(&mut self, handle: &OwnedFd, id: Id, meta: &Meta) -> Result<()> {
        remove_xattrs(handle.as_fd()).map_err(at("remove the attributes of", &meta.path))?;
        let rules = &self.tree.rules;
        let owner = rules.any_owner(meta)?;
        // The mode comes last.
        rules.finish(handle.as_fd(), meta, owner, Some(meta.mode))?;
        let default_acl = rules.default_acl(meta)?;
        let folder = self.tree.made.at_mut(id);
        folder.declared = true;
        // It has the old mode until then; the ACL for what is made in it is gone.
        folder.gives.acl = false;
        folder.gives.group = owner.map_or(folder.gives.group, |(_, gid)| gid.as_raw());
        folder.last = Some(Last { mode: Some(meta.mode), default_acl, ..Last::at(meta.times()) });
        Ok(())
    }

    fn put_link(&mut self, place: &Place, name: &OsStr, meta: &Meta) -> Result<()> {
        let (path, link) = (&meta.path, &meta.link);
        let Some(target) = link.file_name() else {
            return Err(refused(path, "it is a hard link to the root"));
        };
        let nowhere = || refused(path, format!("it is a hard link to {link:?}, which is in no layer below"));
        let from = match self.tree.rules.alone() {
            // If it is below, it is the same in the layer.
            true => self.there.reach(parent(link), &mut self.tree)?,
            false => self.there.find(parent(link), &mut self.tree)?,
        };
        let Walked::To(from) = from else { return Err(nowhere()) };
        let known = self.tree.made.at(from.id);
        let is_seen = self.tree.rules.alone() && !self.tree.made.is_hidden_in(from.id);
        let below = self.tree.made.path(from.id).join(target);
        match known.folders.get(target) {
            Some(id)
                if self.tree.made.at(*id).real
                    || !self.tree.rules.alone()
                    || self.tree.made.line(place.id).contains(id) =>
            {
                return Err(refused(path, format!("it is a hard link to the folder {link:?}")));
            }
            // It was made for whiteouts alone: a layer below may have a file there.
            Some(_) if is_seen => return self.link_later(place, name, path, &below),
            Some(_) => return Err(nowhere()),
            None => {}
        }
        if known.whiteouts.contains(target) {
            return Err(nowhere());
        }
        if let Some(link) = known.links.get(target).cloned() {
            return self.link_later(place, name, path, &link);
        }
        if from.id == place.id && target == name {
            return match statat(&*place.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    Err(refused(path, format!("it is a hard link to the folder {link:?}")))
                }
                Ok(_) => Ok(()),
                Err(Errno::NOENT) if is_seen => self.link_later(place, name, path, &below),
                Err(Errno::NOENT) => Err(nowhere()),
                Err(errno) => Err(at("look at", path)(errno)),
            };
        }
        let make = |name: &OsStr| linkat(&*from.handle, target, &*place.handle, name, AtFlags::empty());
        let answer = match make(name) {
            Err(Errno::EXIST) => {
                // What gives way may hold the target.
                let aside = OsStr::new(".wh..wh.windlass");
                let made = make(aside);
                if made.is_ok() {
                    self.remove(place, name, path)?;
                    renameat(&*place.handle, aside, &*place.handle, name).map_err(at("link", path))?;
                }
                made
            }
            answer => answer,
        };
        match answer {
            Ok(()) => {
                self.tree.made.at_mut(place.id).links.remove(name);
                Ok(())
            }
            Err(Errno::NOENT) if is_seen => self.link_later(place, name, path, &below),
            Err(Errno::NOENT) => Err(nowhere()),
            Err(Errno::PERM | Errno::ISDIR) => {
                Err(refused(path, format!("it is a hard link to {link:?}, which can have no other name")))
            }
            Err(errno) => Err(at("link", path)(errno)),
        }
    }

    /// The target is in a layer below, which is not here.
    fn link_later(&mut self, place: &Place, name: &OsStr, path: &Path, link: &Path) -> Result<()> {
        self.remove(place, name, path)?;
        self.tree.made.at_mut(place.id).links.insert(name.to_owned(), link.to_owned());
        self.tree.made.links.push((path.to_owned(), link.to_owned()));
        Ok(())
    }

    /// Hides what the layers below have at a path. What this layer has there stays.
    pub(super) fn hide(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().expect("a whiteout has a name");
        if self.tree.rules.alone() {
            return self.write_whiteout(path, name);
        }
        if !self.tree.rules.removes {
            return Ok(());
        }
        let Walked::To(place) = self.here.find(parent(path), &mut self.tree)? else {
            return Ok(());
        };
        let known = self.tree.made.at(place.id);
        match known.folders.get(name).copied() {
            _ if known.others.contains(name) => Ok(()),
            Some(id) if self.tree.made.at(id).real => {
                let (handle, had) = self.tree.rules.open(&place.handle, name).map_err(at("open", path))?;
                remove::reset(&mut self.tree.made, id, &handle, had).map_err(at("look at", path))?;
                self.clear(handle, id, path)
            }
            _ => self.remove(&place, name, path),
        }
    }

    fn write_whiteout(&mut self, path: &Path, name: &OsStr) -> Result<()> {
        let Walked::To(place) = self.here.reach(parent(path), &mut self.tree)? else { return Ok(()) };
        let known = self.tree.made.at(place.id);
        if self.tree.made.is_hidden_in(place.id) || known.links.contains_key(name) {
            return Ok(());
        }
        match known.folders.get(name).copied() {
            Some(id) if self.tree.made.at(id).real => {
                let (handle, _) = self.tree.rules.open(&place.handle, name).map_err(at("open", path))?;
                return self.tree.make_opaque(&handle, id, Hides::Itself, path);
            }
            // It was made for whiteouts alone.
            Some(_) => self.remove(&place, name, path)?,
            None => {}
        }
        match mknodat(&*place.handle, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => {
                self.tree.made.at_mut(place.id).whiteouts.insert(name.to_owned());
                Ok(())
            }
            // What the layer has there hides it already.
            Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(at("write the whiteout of", path)(errno)),
        }
    }

    /// Hides all that the layers below have in a folder. What this layer has there stays.
    pub(super) fn hide_all_in(&mut self, path: &Path) -> Result<()> {
        if !self.tree.rules.alone() {
            return match self.here.find(path, &mut self.tree)? {
                Walked::To(place) if self.tree.rules.removes => {
                    let again = openat(&*place.handle, ".", FOLDER, Mode::empty());
                    self.clear(again.map_err(at("open", path))?, place.id, path)
                }
                _ => Ok(()),
            };
        }
        let Walked::To(place) = self.here.reach(path, &mut self.tree)? else { return Ok(()) };
        if place.id == ROOT {
            self.tree.made.at_mut(ROOT).hides = Hides::Content;
            return Ok(());
        }
        self.tree.make_opaque(&place.handle, place.id, Hides::Content, path)
    }

    fn clear(&mut self, handle: OwnedFd, id: Id, path: &Path) -> Result<()> {
        if self.tree.made.at(id).cleared {
            return Ok(());
        }
        // Folders that were only gone through go, too.
        self.here.restart();
        self.there.restart();
        remove::clear(handle, id, &mut self.tree.made, &self.tree.rules).map_err(at("hide what is in", path))
    }

    /// Makes something whose name may be taken: then what is there goes first.
    fn in_place<T>(
        &mut self,
        place: &Place,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T> {
        let answer = match make() {
            Err(Errno::EXIST) => {
                self.remove(place, name, path)?;
                make()
            }
            answer => answer,
        };
        if answer.is_ok() && !self.tree.made.at(place.id).links.is_empty() {
            self.tree.made.at_mut(place.id).links.remove(name);
        }
        answer.map_err(at("create", path))
    }

    /// Removes whatever has a name; nothing there is fine.
    fn remove(&mut self, place: &Place, name: &OsStr, path: &Path) -> Result<()> {
        if let Some(id) = self.tree.made.at(place.id).folders.get(name) {
            self.here.forget(*id);
            self.there.forget(*id);
        }
        self.tree.made.forget(place.id, name);
        remove::remove(&place.handle, name, &self.tree.rules).map_err(at("replace", path))
    }

    /// Sets the folders' times, and says what is to be taken from below.
    pub(super) fn finish(mut self) -> Result<Pending> {
        let pending = match self.tree.rules.alone() {
            true => self.pending()?,
            false => Pending::default(),
        };
        // Inner folders first: the mode of an outer one may keep us out.
        for id in self.tree.made.all().into_iter().rev() {
            let inner: Vec<_> = self.tree.made.at(id).folders.values().copied().collect();
            if inner.iter().all(|id| self.tree.made.at(*id).last.is_none()) {
                continue;
            }
            let place = self.here.open(id, &mut self.tree)?;
            for id in inner {
                if let Some(last) = self.tree.made.at_mut(id).last.take() {
                    self.set_last(&place, id, &last)?;
                }
            }
        }
        if let Some(last) = self.tree.made.at_mut(ROOT).last.take() {
            let root = self.tree.root.clone();
            self.tree.rules.set_last(&root, &last, Path::new("/"))?;
        }
        Ok(pending)
    }

    fn set_last(&mut self, place: &Place, id: Id, last: &Last) -> Result<()> {
        let name = self.tree.made.at(id).name.clone();
        if last.mode.is_none() && last.default_acl.is_none() && !last.reset {
            let set = utimensat(&*place.handle, &name, &last.times, AtFlags::SYMLINK_NOFOLLOW);
            return set.map_err(|errno| at("set the times of", &self.tree.made.path(id))(errno));
        }
        let path = self.tree.made.path(id);
        let (handle, _) = self.tree.rules.open(&place.handle, &name).map_err(at("open", &path))?;
        self.tree.rules.set_last(&handle, last, &path)
    }

    /// What is to be looked up in the layers below. Takes away what was made for whiteouts where nothing is left to hide.
    fn pending(&mut self) -> Result<Pending> {
        let targets = std::mem::take(&mut self.tree.made.links);
        let root = self.tree.made.at(ROOT);
        let mut pending = Pending {
            opaque: self.tree.rules.whiteouts.opaque(),
            opaque_root: root.hides != Hides::Nothing,
            undeclared_root: !root.declared,
            guesses: self.tree.made.guesses(),
            targets,
            ..Pending::default()
        };
        // A folder, and whether nothing of the layers below is seen in it.
        let mut open = vec![(ROOT, root.hides != Hides::Nothing)];
        while let Some((id, hidden)) = open.pop() {
            let path = self.tree.made.path(id);
            if hidden {
                self.remove_what_only_hides(id)?;
            }
            let folder = self.tree.made.at(id);
            let links = folder.links.iter().map(|(name, target)| (path.join(name), target.clone()));
            pending.links.extend(links);
            pending.hidden.extend(folder.whiteouts.iter().map(|name| path.join(name)));
            for (name, inner) in &folder.folders {
                let folder = self.tree.made.at(*inner);
                let implied = !folder.declared && !folder.existed;
                if implied && !hidden && folder.hides != Hides::Itself {
                    pending.implied.push(path.join(name));
                }
                open.push((*inner, hidden || folder.hides != Hides::Nothing));
            }
        }
        // Parents before children, and always the same.
        pending.implied.sort_unstable();
        pending.links.sort_unstable();
        pending.hidden.sort_unstable();
        Ok(pending)
    }

    fn remove_what_only_hides(&mut self, id: Id) -> Result<()> {
        let folder = self.tree.made.at(id);
        let only_hides = |id: &Id| !self.tree.made.at(*id).real;
        let inner = folder.folders.iter().filter(|(_, id)| only_hides(id)).map(|(name, _)| name);
        let names: Vec<_> = inner.chain(&folder.whiteouts).cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let place = self.here.open(id, &mut self.tree)?;
        for name in names {
            self.remove(&place, &name, &PathBuf::from(&name))?;
        }
        Ok(())
    }
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// Whether nothing is in a folder.
pub(super) fn is_empty(folder: &OwnedFd) -> io::Result<bool> {
    let folder = openat(folder, ".", FOLDER, Mode::empty())?;
    Ok(remove::list(&folder)?.is_empty())
}
