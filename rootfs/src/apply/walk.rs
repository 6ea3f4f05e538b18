//! Finds folders inside the root: one name after the other from a handle that was got inside it, links followed by hand.
//!
//! The kernel never follows a link here, so that neither a layer nor another process can lead a lookup out of the root.

use std::{
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, XattrFlags, fchmod, fsetxattr, fstat, mkdirat, openat2, readlinkat},
    io::Errno,
};

use super::{
    made::{Folder, Gives, Hides, Id, Last, Made, ROOT, times_of},
    remove,
    rules::{FOLDER, Rules, at, has_default_acl, remove_acls},
    tree::parent,
};
use crate::Result;

/// How many folders are kept open: more would leave none for others where layers are deep.
const OPEN: usize = 32;
/// How many links are followed on one path, as in the kernel.
pub(super) const LINKS: usize = 40;
/// How much of a path is looked up at once, in bytes.
const LONGEST: usize = 4000;

/// The tree that a layer is applied to.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    pub(super) root: Rc<OwnedFd>,
    /// What the layers below show, for a layer that is applied alone once they are there.
    pub(super) lower: Option<&'a OwnedFd>,
    pub(super) rules: Rules<'a>,
    pub(super) made: Made,
}

/// The way to the folder that was looked up last: the next one is most often near.
#[derive(Debug)]
pub(super) struct Walker {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    id: Id,
    handle: Option<Rc<OwnedFd>>,
}

/// A link on the way.
#[derive(Debug)]
struct Detour {
    above: Id,
    name: OsString,
    /// What of the path comes after it, last name first.
    rest: Vec<OsString>,
}

/// A folder in the tree.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) id: Id,
    pub(super) handle: Rc<OwnedFd>,
}

/// What a walk came to.
#[derive(Debug)]
pub(super) enum Walked {
    To(Place),
    /// There is no such folder.
    Nowhere,
}

/// What a walk makes where a folder is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Makes {
    Nothing,
    /// What a layer below may have: not where the layer has something else, or hides what is below.
    Seen,
    /// A folder, in the place of anything else.
    All,
}

impl Walker {
    pub(super) fn new(root: &Rc<OwnedFd>) -> Self {
        Self { steps: vec![Step { id: ROOT, handle: Some(root.clone()) }] }
    }

    /// Forgets a folder that is removed.
    pub(super) fn forget(&mut self, id: Id) {
        if let Some(index) = self.steps.iter().position(|step| step.id == id) {
            self.steps.truncate(index);
        }
    }

    /// Forgets all but the root.
    pub(super) fn restart(&mut self) {
        self.steps.truncate(1);
    }

    /// The folder of a path, all that is missing of it made. Links lead where they would lead inside the root.
    pub(super) fn make(&mut self, path: &Path, tree: &mut Tree<'_>) -> Result<Place> {
        match self.walk(path, Makes::All, tree)? {
            Walked::To(place) => Ok(place),
            Walked::Nowhere => unreachable!("what is missing was made"),
        }
    }

    /// The folder of a path, if the layer or one below may have it.
    pub(super) fn reach(&mut self, path: &Path, tree: &mut Tree<'_>) -> Result<Walked> {
        self.walk(path, Makes::Seen, tree)
    }

    /// The folder of a path, if it is there.
    pub(super) fn find(&mut self, path: &Path, tree: &mut Tree<'_>) -> Result<Walked> {
        self.walk(path, Makes::Nothing, tree)
    }

    /// A folder that is known.
    pub(super) fn open(&mut self, id: Id, tree: &mut Tree<'_>) -> Result<Place> {
        let line = tree.made.line(id);
        let same = line.iter().zip(&self.steps[1..]).take_while(|(id, step)| **id == step.id).count();
        self.steps.truncate(1 + same);
        for (index, id) in line.iter().enumerate().skip(same) {
            let above = self.place(index, tree)?;
            let name = tree.made.at(*id).name.clone();
            let opened = tree.rules.open(&above.handle, &name);
            let (handle, _) = opened.map_err(|errno| at("open", &tree.made.path(*id))(errno))?;
            self.push(*id, handle);
        }
        self.place(line.len(), tree)
    }

    fn walk(&mut self, path: &Path, makes: Makes, tree: &mut Tree<'_>) -> Result<Walked> {
        let mut index = 0;
        let mut names = path.iter();
        let mut rest = names.clone();
        while let Some(name) = names.next()
            && self.steps.get(index + 1).is_some_and(|step| tree.made.at(step.id).name == name)
        {
            index += 1;
            rest = names.clone();
        }
        if rest.as_path().as_os_str().is_empty() {
            return self.place(index, tree).map(Walked::To);
        }
        // What is still to be walked, last name first.
        let mut rest: Vec<OsString> = rest.rev().map(OsStr::to_owned).collect();
        let mut links = 0;
        // The link in `path` that is being followed, until the name after it is looked up.
        let mut detour: Option<Detour> = None;
        while let Some(mut name) = rest.pop() {
            if name == ".." {
                index = index.saturating_sub(1);
                continue;
            }
            if self.steps.get(index + 1).is_some_and(|step| tree.made.at(step.id).name == name) {
                index += 1;
                continue;
            }
            let mut above = self.place(index, tree)?;
            self.steps.truncate(index + 1);
            let errno = match tree.enter(&above, &name) {
                Ok((id, handle)) => {
                    self.push(id, handle);
                    index += 1;
                    continue;
                }
                Err(errno) => errno,
            };
            let mut taken = errno != Errno::NOENT;
            let link = match errno {
                Errno::NOENT => tree.lower_link(&above, &name).map_err(at("look below at", path))?,
                Errno::NOTDIR | Errno::LOOP => {
                    read_link(&above.handle, &name).map_err(at("read the link", path))?
                }
                errno => return Err(at("open the folder of", path)(errno)),
            };
            if let Some(target) = link {
                taken = true;
                if links < LINKS {
                    links += 1;
                    if detour.as_ref().is_none_or(|detour| rest.len() < detour.rest.len()) {
                        detour = Some(Detour { above: above.id, name, rest: rest.clone() });
                    }
                    if target.as_bytes().starts_with(b"/") {
                        index = 0;
                    }
                    rest.extend(names_of(Path::new(&target)).into_iter().rev());
                    continue;
                }
                // A circle: the link that led into it is no folder.
                let entrance = detour.take().expect("a link was followed");
                above = self.open(entrance.above, tree)?;
                index = self.steps.len() - 1;
                (name, rest) = (entrance.name, entrance.rest);
            }
            let later = tree.made.at(above.id).links.get(&name).cloned();
            taken |= later.is_some();
            // Where a layer below may have a folder, one is made; if it stays empty and there is none, it goes again.
            if let Some(back) = steps_back(&rest)
                && (taken || !tree.rules.alone() || tree.made.is_hidden_in(above.id))
            {
                tree.goes_through(later);
                rest.truncate(rest.len() - back);
                continue;
            }
            // What is there and no folder hides what is below, like a link that is made later.
            let may =
                makes == Makes::All || makes == Makes::Seen && !taken && !tree.made.is_hidden_in(above.id);
            if !may {
                tree.goes_through(later);
                return Ok(Walked::Nowhere);
            }
            let (id, handle) = tree.make_implied(&above, &name, path)?;
            self.push(id, handle);
            index += 1;
        }
        self.place(index, tree).map(Walked::To)
    }

    fn push(&mut self, id: Id, handle: OwnedFd) {
        self.steps.push(Step { id, handle: Some(Rc::new(handle)) });
        if let Some(far) = self.steps.len().checked_sub(OPEN).filter(|far| *far > 0) {
            self.steps[far].handle = None;
        }
    }

    fn place(&mut self, index: usize, tree: &Tree<'_>) -> Result<Place> {
        let step = &mut self.steps[index];
        let handle = match &step.handle {
            Some(handle) => handle.clone(),
            None => {
                let path = tree.made.path(step.id);
                let opened = open_real(&tree.root, &path).map_err(at("open", &path))?;
                step.handle.insert(Rc::new(opened)).clone()
            }
        };
        Ok(Place { id: step.id, handle })
    }
}

impl Tree<'_> {
    /// Opens a folder in a folder. What it gives to what is made in it, and its times, are noted before anything is.
    pub(super) fn enter(&mut self, above: &Place, name: &OsStr) -> Result<(Id, OwnedFd), Errno> {
        let (handle, had) = self.rules.open(&above.handle, name)?;
        if let Some(id) = self.made.at(above.id).folders.get(name) {
            return Ok((*id, handle));
        }
        let stat = fstat(&handle)?;
        let mut folder = Folder::found(above.id, name, gives(&handle, stat.st_gid, stat.st_mode));
        folder.last = Some(Last { mode: had, ..Last::at(times_of(&stat)) });
        Ok((self.made.add(folder), handle))
    }

    /// The link that a name is in the layers below, if it is none of the layer and they are at hand.
    fn lower_link(&self, above: &Place, name: &OsStr) -> Result<Option<OsString>, Errno> {
        let Some(lower) = self.lower else { return Ok(None) };
        let real = match self.made.at(above.id).links.get(name) {
            Some(target) => target.clone(),
            None if self.made.is_hidden_in(above.id) => return Ok(None),
            None => self.made.path(above.id).join(name),
        };
        read_lower_link(lower, &real)
    }

    /// Notes that a hard link to what is below was taken for what is no link.
    fn goes_through(&mut self, later: Option<PathBuf>) {
        if self.lower.is_none() {
            self.made.through.extend(later);
        }
    }

    /// Makes a folder that the layer does not declare, in the place of anything else. What a layer below, if any, says of it
    /// comes later; the same layers give the same tree.
    fn make_implied(&mut self, above: &Place, name: &OsStr, path: &Path) -> Result<(Id, OwnedFd)> {
        let through = self.made.at(above.id).links.get(name).cloned();
        let id = self.make_folder(above, name, 0o755, path)?;
        if self.rules.alone() && self.lower.is_none() {
            let seen = self.made.at(id).hides == Hides::Nothing && !self.made.is_hidden_in(above.id);
            self.made.at_mut(id).guessed = seen;
            self.made.through.extend(through);
        }
        let opened = self.rules.open(&above.handle, name);
        let (handle, _) = opened.map_err(at("open", path))?;
        if let Some((uid, gid)) = self.rules.owner_of_implied(self.made.at(above.id).gives, path)? {
            rustix::fs::fchown(&handle, Some(uid), Some(gid)).map_err(at("set the owner of", path))?;
            self.made.at_mut(id).gives.group = gid.as_raw();
        }
        Ok((id, handle))
    }

    /// Makes a folder where there is none. Anything else that is there goes. Its mode is `mode` and what lets us in.
    pub(super) fn make_folder(&mut self, above: &Place, name: &OsStr, mode: u32, path: &Path) -> Result<Id> {
        let make = || mkdirat(&*above.handle, name, Mode::from_raw_mode(mode & 0o777 | 0o700));
        let replaces = match make() {
            // A hard link that is made later is there, too.
            Ok(()) => self.made.at(above.id).links.contains_key(name),
            Err(Errno::EXIST) => {
                remove::remove(&above.handle, name, &self.rules).map_err(at("replace", path))?;
                make().map_err(at("create", path))?;
                true
            }
            Err(errno) => return Err(at("create", path)(errno)),
        };
        let id = self.note_folder(above, name, mode, path)?;
        if replaces && self.rules.alone() {
            // What was there, a whiteout perhaps, hid what is below; so must the folder.
            let (handle, _) = self.rules.open(&above.handle, name).map_err(at("open", path))?;
            self.make_opaque(&handle, id, Hides::Itself, path)?;
        }
        Ok(id)
    }

    /// Notes a folder that was made a moment ago, and takes away what it has from the folder that it is in.
    pub(super) fn note_folder(&mut self, above: &Place, name: &OsStr, mode: u32, path: &Path) -> Result<Id> {
        self.made.forget(above.id, name);
        let id = self.made.add(Folder::made(above.id, name, self.rules.group));
        let gives = self.made.at(above.id).gives;
        if !self.rules.exact_modes || gives.set_group || gives.acl {
            let (handle, _) = self.rules.open(&above.handle, name).map_err(at("open", path))?;
            if gives.acl {
                remove_acls(handle.as_fd()).map_err(at("remove the inherited ACL of", path))?;
            }
            fchmod(&handle, Mode::from_raw_mode(mode & 0o777 | 0o700))
                .map_err(at("set the mode of", path))?;
        }
        Ok(id)
    }

    /// Hides all that the layers below have in a folder.
    pub(super) fn make_opaque(&mut self, folder: &OwnedFd, id: Id, hides: Hides, path: &Path) -> Result<()> {
        let folder_hides = &mut self.made.at_mut(id).hides;
        if *folder_hides == Hides::Nothing {
            let attribute = self.rules.whiteouts.opaque().expect("only overlays have opaque folders");
            fsetxattr(folder, attribute, b"y", XattrFlags::empty()).map_err(at("make opaque", path))?;
        }
        *folder_hides = hides.max(*folder_hides);
        Ok(())
    }
}

/// What a folder gives to what is made in it.
pub(super) fn gives(folder: &OwnedFd, group: u32, mode: u32) -> Gives {
    Gives { group, set_group: mode & 0o2000 != 0, acl: has_default_acl(folder.as_fd()) }
}

/// The names in a path, without those that mean nothing.
pub(super) fn names_of(path: &Path) -> Vec<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

/// How many names, the last one first, lead into a folder and out of it again. None if they do not.
pub(super) fn steps_back(rest: &[OsString]) -> Option<usize> {
    let mut depth = 1_usize;
    let back = |name: &OsString| {
        depth = if name == ".." { depth - 1 } else { depth + 1 };
        depth == 0
    };
    rest.iter().rev().position(back).map(|index| index + 1)
}

/// Opens a folder inside a root whose path has no links. It may be longer than what the kernel takes at once.
pub(super) fn open_real(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |folder: &OwnedFd, part: &Path| openat2(folder, part, FOLDER, Mode::empty(), inside);
    let mut folder: Option<OwnedFd> = None;
    let mut part = PathBuf::from(".");
    for name in path {
        if part.as_os_str().len() + name.len() > LONGEST {
            folder = Some(open(folder.as_ref().unwrap_or(root), &part)?);
            part = ".".into();
        }
        part.push(name);
    }
    open(folder.as_ref().unwrap_or(root), &part)
}

/// Where the link at a path points, whose other names are no links; `None` if it is no link.
pub(super) fn read_lower_link(lower: &OwnedFd, path: &Path) -> Result<Option<OsString>, Errno> {
    match open_real(lower, parent(path)) {
        Ok(folder) => read_link(&folder, path.file_name().expect("it has a name")),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Where a link points; `None` if it is no link.
fn read_link(folder: &OwnedFd, name: &OsStr) -> Result<Option<OsString>, Errno> {
    match readlinkat(folder, name, Vec::new()) {
        Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()))),
        Err(Errno::INVAL | Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// As a path, for reading what is not a folder.
pub(super) const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
