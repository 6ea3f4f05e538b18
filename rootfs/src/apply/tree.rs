//! The tree that a layer is applied to: every change is made relative to a folder's handle that was got inside the root.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
        chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat,
        openat, openat2, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use tar::EntryType;
use windlass_snapshot::Whiteouts;

use super::{Pending, entry::Meta, refused, tar_error};
use crate::{Error, Result};

/// How much of a file is copied at once, in bytes.
const CHUNK: usize = 256 << 10;

/// A tree that a layer is being applied to.
pub(super) struct Target<'a> {
    root: &'a OwnedFd,
    whiteouts: Whiteouts,
    /// The folder of the last entry: the next one is most often in it, too.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Every path that this layer made or went through: whiteouts do not hide these.
    kept: HashSet<PathBuf>,
    /// Folders' times, set last: making entries in a folder changes them.
    times: Vec<(PathBuf, Timestamps)>,
    /// The times of folders that were there, with their device and inode numbers.
    kept_times: Vec<(PathBuf, Timestamps, (u64, u64))>,
    /// The folders whose times are in `times`, or are not to be kept.
    timed: HashSet<PathBuf>,
    implied: Vec<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    hidden: Vec<PathBuf>,
    opaque_root: bool,
    root_declared: bool,
    buffer: Vec<u8>,
}

impl<'a> Target<'a> {
    pub(super) fn new(root: &'a OwnedFd, whiteouts: Whiteouts) -> Self {
        Self {
            root,
            whiteouts,
            last: None,
            kept: HashSet::new(),
            times: Vec::new(),
            kept_times: Vec::new(),
            timed: HashSet::new(),
            implied: Vec::new(),
            links: Vec::new(),
            hidden: Vec::new(),
            opaque_root: false,
            root_declared: false,
            buffer: Vec::new(),
        }
    }

    /// Sets owner, mode, attributes and times of the root.
    pub(super) fn root_folder(&mut self, meta: &Meta) -> Result<()> {
        let root = openat(self.root, ".", FOLDER, Mode::empty()).map_err(at("open", &meta.path))?;
        set_owner_mode_xattrs(root.as_fd(), meta)?;
        self.root_declared = true;
        self.timed.insert(PathBuf::new());
        self.times.push((PathBuf::new(), meta.times()));
        Ok(())
    }

    /// Makes an entry, in the place of what is there.
    pub(super) fn put(&mut self, meta: &Meta, data: &mut impl Read) -> Result<()> {
        let path = &meta.path;
        let folder = self.folder(parent(path))?;
        let name = path.file_name().expect("the root is no entry");
        match meta.kind {
            EntryType::Directory => self.put_folder(&folder, name, meta)?,
            EntryType::Link => self.put_link(&folder, name, meta)?,
            EntryType::Symlink => {
                self.in_place(&folder, name, path, || symlinkat(&meta.link, &*folder, name))?;
                set_without_following(&folder, name, meta)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if meta.kind == EntryType::Char && meta.device == (0, 0) {
                    return Err(refused(path, "a character device 0/0 is how overlayfs hides a name"));
                }
                let kind = match meta.kind {
                    EntryType::Char => FileType::CharacterDevice,
                    EntryType::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = makedev(meta.device.0, meta.device.1);
                let mode = Mode::from_raw_mode(0o600);
                self.in_place(&folder, name, path, || mknodat(&*folder, name, kind, mode, device))?;
                set_without_following(&folder, name, meta)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.put_file(&folder, name, meta, data)?;
            }
            other => {
                return Err(refused(path, format!("its type {:?} is not known", other.as_byte() as char)));
            }
        }
        self.keep(path);
        Ok(())
    }

    fn put_file(&mut self, folder: &OwnedFd, name: &OsStr, meta: &Meta, data: &mut impl Read) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = self.in_place(folder, name, &meta.path, || openat(folder, name, flags, mode))?;
        let mut file = File::from(file);
        self.buffer.resize(CHUNK, 0);
        let failed = |source| Error::Io { op: "write", path: meta.path.clone(), source };
        let mut end = 0;
        for (offset, length) in &meta.content.pieces {
            if *offset != end {
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
            }
            let mut left = *length;
            while left > 0 {
                let wanted = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let read = data.read(&mut self.buffer[..wanted]).map_err(tar_error)?;
                file.write_all(&self.buffer[..read]).map_err(failed)?;
                left -= read as u64;
            }
            end = offset + length;
        }
        if end != meta.content.size {
            // It ends in a hole.
            file.set_len(meta.content.size).map_err(failed)?;
        }
        set_owner_mode_xattrs(file.as_fd(), meta)?;
        futimens(&file, &meta.times()).map_err(at("set the times of", &meta.path))
    }

    fn put_folder(&mut self, folder: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<()> {
        self.make_folder(folder, name, &meta.path)?;
        let made =
            openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", &meta.path))?;
        set_owner_mode_xattrs(made.as_fd(), meta)?;
        self.implied.retain(|implied| *implied != meta.path);
        self.timed.insert(meta.path.clone());
        self.times.push((meta.path.clone(), meta.times()));
        Ok(())
    }

    fn put_link(&mut self, folder: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<()> {
        let (path, link) = (&meta.path, &meta.link);
        if path == link {
            return Ok(());
        }
        let Some(target) = link.file_name() else {
            return Err(refused(path, "it is a hard link to the root"));
        };
        let from = match self.open_folder(parent(link)) {
            Ok(from) => from,
            Err(Errno::NOENT) if self.whiteouts != Whiteouts::Remove => {
                return self.link_later(folder, name, meta);
            }
            Err(errno) => return Err(at("open the target of the hard link", path)(errno)),
        };
        match self.in_place(folder, name, path, || linkat(&from, target, folder, name, AtFlags::empty())) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => match self.whiteouts
            {
                Whiteouts::Overlay | Whiteouts::UserOverlay => self.link_later(folder, name, meta),
                Whiteouts::Remove => {
                    Err(refused(path, format!("it is a hard link to {link:?}, which is in no layer below")))
                }
            },
            answer => answer,
        }
    }

    /// The target is in a layer below, which is not here.
    fn link_later(&mut self, folder: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<()> {
        self.remove(folder, name, &meta.path)?;
        self.links.push((meta.path.clone(), meta.link.clone()));
        Ok(())
    }

    /// Hides what the layers below have at a path. What this layer has there stays.
    pub(super) fn hide(&mut self, path: &Path) -> Result<()> {
        if self.whiteouts == Whiteouts::Remove {
            return match self.open_folder(parent(path)) {
                Ok(folder) => {
                    self.keep_times(&folder, parent(path))?;
                    self.remove_lower(&folder, path)
                }
                // Nothing is there to be hidden.
                Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                Err(errno) => Err(at("open the folder of", path)(errno)),
            };
        }
        let folder = self.folder(parent(path))?;
        self.keep(parent(path));
        let name = path.file_name().expect("a whiteout has a name");
        match statat(&*folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.make_opaque(&folder, name, path)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                self.hidden.push(path.to_owned());
                mknodat(&*folder, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(at("write the whiteout of", path))
            }
            Err(errno) => Err(at("look at", path)(errno)),
        }
    }

    /// Hides all that the layers below have in a folder. What this layer has there stays.
    pub(super) fn hide_all_in(&mut self, path: &Path) -> Result<()> {
        if self.whiteouts == Whiteouts::Remove {
            return match self.open_folder(path) {
                Ok(folder) => {
                    self.keep_times(&folder, path)?;
                    self.remove_lower_children(&folder, path)
                }
                Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                Err(errno) => Err(at("open", path)(errno)),
            };
        }
        let Some(name) = path.file_name() else {
            self.opaque_root = true;
            return Ok(());
        };
        self.folder(path)?;
        self.keep(path);
        let folder = self.folder(parent(path))?;
        self.make_opaque(&folder, name, path)
    }

    /// Sets the folders' times, and says what is to be taken from below.
    pub(super) fn finish(mut self) -> Result<Pending> {
        // These first: if the layer declares such a folder later, its own times count. A link on the way is followed, but
        // only to the folder that it led to then.
        for (path, times, id) in std::mem::take(&mut self.kept_times) {
            let Ok(folder) = self.open_folder(&path) else { continue };
            let stat = fstat(&folder).map_err(at("look at", &path))?;
            if (stat.st_dev, stat.st_ino) == id {
                futimens(&folder, &times).map_err(at("set the times of", &path))?;
            }
        }
        for (path, times) in std::mem::take(&mut self.times) {
            match openat2(self.root, below(&path), FOLDER | OFlags::NOFOLLOW, Mode::empty(), INSIDE) {
                Ok(folder) => futimens(&folder, &times).map_err(at("set the times of", &path))?,
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(at("open", &path)(errno)),
            }
        }
        let (implied, links) = match self.whiteouts {
            Whiteouts::Overlay | Whiteouts::UserOverlay => (self.implied, self.links),
            Whiteouts::Remove => (Vec::new(), Vec::new()),
        };
        let undeclared_root = !self.root_declared && self.whiteouts != Whiteouts::Remove;
        let hidden = self.hidden;
        let opaque = self.whiteouts.opaque();
        Ok(Pending { implied, links, hidden, opaque, opaque_root: self.opaque_root, undeclared_root })
    }

    /// A folder's handle; what is missing of it is made.
    fn folder(&mut self, path: &Path) -> Result<Rc<OwnedFd>> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(folder.clone());
        }
        let folder = match self.open_folder(path) {
            Ok(folder) => folder,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let above = self.folder(parent(path))?;
                let name = path.file_name().expect("the root is there");
                self.make_folder(&above, name, path)?;
                self.implied.push(path.to_owned());
                self.timed.insert(path.to_owned());
                // Nobody says when it is from, unless a layer below does; the same layers give the same tree.
                self.times.push((path.to_owned(), EPOCH));
                self.open_folder(path).map_err(at("open", path))?
            }
            Err(errno) => return Err(at("open", path)(errno)),
        };
        self.keep_times(&folder, path)?;
        let folder = Rc::new(folder);
        self.last = Some((path.to_owned(), folder.clone()));
        Ok(folder)
    }

    /// Remembers the times that a folder has before this layer changes what is in it. If the layer declares the folder, its
    /// own times come later, and count.
    fn keep_times(&mut self, folder: &OwnedFd, path: &Path) -> Result<()> {
        if self.timed.insert(path.to_owned()) {
            let stat = fstat(folder).map_err(at("look at", path))?;
            self.kept_times.push((path.to_owned(), times_of(&stat), (stat.st_dev, stat.st_ino)));
        }
        Ok(())
    }

    /// Opens a folder; links on the way lead where they would lead inside the root.
    fn open_folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        openat2(self.root, below(path), FOLDER, Mode::empty(), INSIDE)
    }

    /// Makes a folder, unless there is one. Anything else that is there goes.
    fn make_folder(&mut self, folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let make = || mkdirat(folder, name, Mode::from_raw_mode(0o755));
        match make() {
            Ok(()) => return self.clear_umask(folder, name, path),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(at("create", path)(errno)),
        }
        let there = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map_err(at("look at", path))?;
        if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
            return Ok(());
        }
        self.remove(folder, name, path)?;
        make().map_err(at("create", path))?;
        self.clear_umask(folder, name, path)?;
        match self.whiteouts {
            // What was there, a whiteout perhaps, hid what is below; so must the folder.
            Whiteouts::Remove => Ok(()),
            Whiteouts::Overlay | Whiteouts::UserOverlay => self.make_opaque(folder, name, path),
        }
    }

    /// Modes do not depend on the process's umask.
    fn clear_umask(&self, folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        rustix::fs::chmodat(folder, name, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(at("set the mode of", path))
    }

    fn make_opaque(&self, folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        let made =
            openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()).map_err(at("open", path))?;
        let attribute = self.whiteouts.opaque().expect("only overlays have opaque folders");
        fsetxattr(&made, attribute, b"y", XattrFlags::empty()).map_err(at("make opaque", path))
    }

    /// Makes something whose name may be taken: then what is there goes first.
    fn in_place<T>(
        &mut self,
        folder: &OwnedFd,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(folder, name, path)?;
                make().map_err(at("create", path))
            }
            answer => answer.map_err(at("create", path)),
        }
    }

    /// Removes whatever has a name; nothing there is fine.
    fn remove(&mut self, folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(errno) => return Err(at("replace", path)(errno)),
        }
        self.last = None;
        self.implied.retain(|implied| !implied.starts_with(path));
        self.links.retain(|(link, _)| !link.starts_with(path));
        remove_tree(folder, name).map_err(at("replace", path))
    }

    /// Removes what this layer did not make at a path. `folder` is its folder.
    fn remove_lower(&self, folder: &OwnedFd, path: &Path) -> Result<()> {
        let name = path.file_name().expect("the root is never removed");
        if self.kept.contains(path) {
            return match openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(kept) => self.remove_lower_children(&kept, path),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(errno) => Err(at("open", path)(errno)),
            };
        }
        match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => remove_tree(folder, name).map_err(at("remove", path)),
            Err(errno) => Err(at("remove", path)(errno)),
        }
    }

    fn remove_lower_children(&self, folder: &OwnedFd, path: &Path) -> Result<()> {
        for name in names(folder).map_err(at("list", path))? {
            self.remove_lower(folder, &path.join(&name))?;
        }
        Ok(())
    }

    /// Remembers that this layer has a path, and goes through the folders above it.
    fn keep(&mut self, path: &Path) {
        for path in path.ancestors() {
            if !self.kept.insert(path.to_owned()) {
                return;
            }
        }
    }
}

/// The beginning of time.
const EPOCH: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 0, tv_nsec: 0 },
};
/// How a folder is opened.
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// How a path is looked up.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A path for a system call: the root is `.`.
pub(super) fn below(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The times of a file, as they are set.
pub(super) fn times_of(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec { tv_sec, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Opens a folder inside a root.
pub(super) fn open_folder(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    openat2(root, below(path), FOLDER, Mode::empty(), INSIDE)
}

/// The names in a folder.
pub(super) fn names(folder: &OwnedFd) -> Result<Vec<std::ffi::OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Removes a folder and all below it, without following links.
fn remove_tree(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let inner = openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
    for child in names(&inner)? {
        match unlinkat(&inner, &child, AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(&inner, &child)?,
            answer => answer?,
        }
    }
    unlinkat(folder, name, AtFlags::REMOVEDIR)
}

/// In this order: a change of owner takes set-user-id bits and capabilities away.
fn set_owner_mode_xattrs(file: BorrowedFd<'_>, meta: &Meta) -> Result<()> {
    let (uid, gid) = owner(meta);
    fchown(file, uid, gid).map_err(at("set the owner of", &meta.path))?;
    fchmod(file, Mode::from_raw_mode(meta.mode)).map_err(at("set the mode of", &meta.path))?;
    for (name, value) in &meta.xattrs {
        fsetxattr(file, &name[..], value, XattrFlags::empty())
            .map_err(at("set an attribute of", &meta.path))?;
    }
    Ok(())
}

/// As [`set_owner_mode_xattrs`], with times, for what is not opened: links, devices, fifos.
fn set_without_following(folder: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<()> {
    let (uid, gid) = owner(meta);
    chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(at("set the owner of", &meta.path))?;
    if meta.kind != EntryType::Symlink {
        // It was made a moment ago by us, and is no link.
        rustix::fs::chmodat(folder, name, Mode::from_raw_mode(meta.mode), AtFlags::empty())
            .map_err(at("set the mode of", &meta.path))?;
    }
    for (attribute, value) in &meta.xattrs {
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        lsetxattr(path, &attribute[..], value, XattrFlags::empty())
            .map_err(at("set an attribute of", &meta.path))?;
    }
    utimensat(folder, name, &meta.times(), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(at("set the times of", &meta.path))
}

fn owner(meta: &Meta) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
}

/// Makes an error of what the system answered about an entry.
pub(super) fn at(op: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    let path = path.to_owned();
    move |errno| Error::Io { op, path, source: errno.into() }
}
