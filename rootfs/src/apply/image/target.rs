//! The tree of an image that a layer is applied to: what `apply::tree` does with folders, done in memory.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::{OsStr, OsString},
    io::BufRead,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use tar::EntryType;
use windlass_snapshot::{
    Supposed, Whiteouts,
    erofs::{DataError, IMPLIED, Kind, LINK, Meta as Attributes, Node, Tree, Writer, XattrSet},
};

use super::{
    Options,
    acl::{self, List},
    cannot_write,
};
use crate::{
    Error, Result,
    apply::{
        archive::Archive,
        entry::{Meta, Role},
        made::Hides,
        refused,
        tree::parent,
        walk::Makes,
    },
};

/// How many bytes of extended attributes an image may have, each set of them counted once: they are kept in memory.
const XATTR_BYTES: u64 = 256 << 20;
/// The attribute of a folder that hides what is below it.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// A tree that a layer is being applied to.
pub(super) struct Target<'a> {
    pub(super) tree: Tree,
    /// What the layers below show, for a layer that is made anew once they are there.
    pub(super) lower: Option<&'a OwnedFd>,
    /// What is supposed to be no link below, as long as the layers below are not at hand.
    pub(super) folders_below: BTreeSet<PathBuf>,
    /// All hard links to what is below, whatever has become of them, and their targets.
    links_below: Vec<(PathBuf, PathBuf)>,
    /// Whether the image is to be put on others.
    pub(super) alone: bool,
    marks: bool,
    entries: u64,
    /// What is known of folders, beside what is in the tree.
    folders: HashMap<Node, Folder>,
    /// The folder of the last entry, if no link is on the way there: the next one is most often in it, too.
    pub(super) last: Option<(PathBuf, Node)>,
}

/// What is known of a folder.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Folder {
    /// The layer has an entry for it.
    declared: bool,
    /// It is in the layer, or something in it is. Else it was only made for a whiteout.
    real: bool,
    /// What the layer hides of it.
    pub(super) hides: Hides,
}

impl<'a> Target<'a> {
    pub(super) fn new(options: &Options, lower: Option<&'a OwnedFd>) -> Self {
        let alone = options.whiteouts != Whiteouts::Remove;
        Self {
            tree: Tree::new(),
            lower,
            folders_below: BTreeSet::new(),
            links_below: Vec::new(),
            alone,
            marks: options.marks && alone,
            entries: options.limits.entries,
            folders: HashMap::new(),
            last: None,
        }
    }

    /// Makes an entry, in the place of what is there, or hides what it says is gone. `offset` is where its data is in the tar, if the
    /// image is an index of that.
    pub(super) fn apply<R: BufRead>(
        &mut self,
        meta: &Meta,
        offset: Option<u64>,
        data: &mut Archive<R>,
        writer: &mut Writer,
    ) -> Result<()> {
        // Beside the entries themselves there are the folders that they imply.
        if self.tree.len() as u64 > self.entries.saturating_add(1) {
            let (entry, limit) = (meta.path.clone(), self.entries);
            return Err(Error::Limit { entry, what: "entries, with the folders that they are in", limit });
        }
        if self.tree.xattr_bytes() > XATTR_BYTES {
            let (entry, what) = (meta.path.clone(), "bytes of extended attributes of all entries");
            return Err(Error::Limit { entry, what, limit: XATTR_BYTES });
        }
        match &meta.role {
            // Nothing is below that could be hidden.
            Role::Hides(_) | Role::HidesAllIn(_) if !self.alone => Ok(()),
            Role::Hides(path) => self.hide(path),
            Role::HidesAllIn(folder) => self.hide_all_in(folder),
            Role::Leftover => Ok(()),
            Role::Entry if !meta.path.as_os_str().is_empty() => self.put(meta, offset, data, writer),
            Role::Entry if meta.kind == EntryType::Directory => self.declare(self.tree.root(), meta),
            Role::Entry => Err(refused(&meta.path, "the root is a folder, and stays one")),
        }
    }

    /// Whether what was made supposes anything of links in the layers below.
    pub(super) fn guesses(&self) -> bool {
        !self.folders_below.is_empty()
    }

    /// The tree, with all marks, and what it was taken to mean. What was made for whiteouts is gone where nothing is left to hide.
    pub(super) fn finish(mut self) -> (Tree, Supposed) {
        if !self.alone {
            return (self.tree, Supposed::default());
        }
        let root = self.tree.root();
        let known = self.known(root);
        if self.marks && !known.declared {
            self.tree.mark(root, IMPLIED, Some(b"y"));
        }
        // A folder, and whether nothing of the layers below is seen in it.
        let mut open = vec![(root, known.hides != Hides::Nothing)];
        while let Some((folder, hidden)) = open.pop() {
            let children: Vec<_> =
                self.tree.children(folder).map(|(name, node)| (name.to_vec(), node)).collect();
            for (name, child) in children {
                let known = self.known(child);
                let is_folder = self.tree.is_folder(child);
                if hidden && (self.tree.is_whiteout(child) || is_folder && !known.real) {
                    self.tree.remove(folder, &name);
                } else if is_folder {
                    if self.marks && !known.declared && !hidden && known.hides != Hides::Itself {
                        self.tree.mark(child, IMPLIED, Some(b"y"));
                    }
                    open.push((child, hidden || known.hides != Hides::Nothing));
                }
            }
        }
        let folders = self.folders_below.into_iter().collect();
        (self.tree, Supposed { folders, files: self.links_below, refused: None })
    }

    pub(super) fn known(&self, folder: Node) -> Folder {
        self.folders.get(&folder).copied().unwrap_or_default()
    }

    fn put<R: BufRead>(
        &mut self,
        meta: &Meta,
        offset: Option<u64>,
        data: &mut Archive<R>,
        writer: &mut Writer,
    ) -> Result<()> {
        let path = &meta.path;
        let folder = self.make(parent(path))?;
        let name = path.file_name().expect("the root is no entry");
        let kind = match meta.kind {
            EntryType::Directory => return self.put_folder(folder, name, meta),
            EntryType::Link => {
                self.put_link(folder, name, meta)?;
                self.keep(folder);
                return Ok(());
            }
            EntryType::Symlink => Kind::Symlink(meta.link.as_os_str().as_bytes()),
            EntryType::Char if meta.device == (0, 0) => {
                return Err(refused(path, "a character device 0/0 is how overlayfs hides a name"));
            }
            EntryType::Char => Kind::Char(meta.device.0, meta.device.1),
            EntryType::Block => Kind::Block(meta.device.0, meta.device.1),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let content = &meta.content;
                let (pieces, size) = (&content.pieces, content.size);
                let written = match offset.and_then(|offset| writer.tar_data(offset, pieces, size)) {
                    Some(there) => Ok(there),
                    None => writer.data(data, pieces, size),
                };
                Kind::File(
                    content.size,
                    written.map_err(|error| data_error(error, path, |it| data.failed(it)))?,
                )
            }
            other => {
                return Err(refused(path, format!("its type {:?} is not known", other.as_byte() as char)));
            }
        };
        let attributes = self.attributes(meta)?;
        self.remove(folder, name);
        let put = self.tree.put(folder, name.as_bytes(), attributes, kind);
        put.map_err(|reason| refused(path, reason))?;
        self.keep(folder);
        Ok(())
    }

    fn put_folder(&mut self, folder: Node, name: &OsStr, meta: &Meta) -> Result<()> {
        let there = self.tree.child(folder, name.as_bytes()).filter(|there| self.tree.is_folder(*there));
        let made = match there {
            Some(there) => there,
            None => self.make_folder(folder, name, &meta.path)?,
        };
        self.declare(made, meta)?;
        self.keep(made);
        Ok(())
    }

    /// Gives a folder what the layer says of it, and nothing else.
    fn declare(&mut self, folder: Node, meta: &Meta) -> Result<()> {
        let attributes = self.attributes(meta)?;
        let opaque = self.tree.marked(folder, OPAQUE).is_some();
        self.tree.set_meta(folder, attributes);
        if opaque {
            self.tree.mark(folder, OPAQUE, Some(b"y"));
        }
        self.folders.entry(folder).or_default().declared = true;
        Ok(())
    }

    fn put_link(&mut self, folder: Node, name: &OsStr, meta: &Meta) -> Result<()> {
        let (path, link) = (&meta.path, &meta.link);
        let Some(target) = link.file_name() else {
            return Err(refused(path, "it is a hard link to the root"));
        };
        let nowhere = || refused(path, format!("it is a hard link to {link:?}, which is in no layer below"));
        // If it is below, it is the same in the layer.
        let makes = if self.alone { Makes::Seen } else { Makes::Nothing };
        let from = self.walk(parent(link), makes)?.ok_or_else(nowhere)?;
        let is_seen = self.alone && !self.is_hidden_in(from);
        match self.tree.child(from, target.as_bytes()) {
            Some(node) if self.tree.is_folder(node) => {
                if !self.alone || self.known(node).real || self.line(folder).contains(&node) {
                    return Err(refused(path, format!("it is a hard link to the folder {link:?}")));
                }
                // It was made for whiteouts alone: a layer below may have a file there.
                if is_seen { self.link_later(folder, name, path, from, target) } else { Err(nowhere()) }
            }
            Some(node) if self.tree.is_whiteout(node) => Err(nowhere()),
            Some(_) if from == folder && target == name => Ok(()),
            Some(node) => {
                self.remove(folder, name);
                self.tree.link(folder, name.as_bytes(), node).map_err(|reason| refused(path, reason))
            }
            None if is_seen => self.link_later(folder, name, path, from, target),
            None => Err(nowhere()),
        }
    }

    /// The target is in a layer below, which is not here. A socket, which no layer can bring, stands for it.
    fn link_later(
        &mut self,
        folder: Node,
        name: &OsStr,
        path: &Path,
        from: Node,
        target: &OsStr,
    ) -> Result<()> {
        let link = self.path(from).join(target);
        if !self.marks {
            return Err(refused(path, format!("it is a hard link to {link:?}, which is not in the layer")));
        }
        self.remove(folder, name);
        self.links_below.push((path.to_owned(), link.clone()));
        let text = link.as_os_str().as_bytes();
        let xattrs = self.tree.xattrs([(LINK, text)]).map_err(|reason| refused(path, reason))?;
        let placeholder = Attributes { xattrs, ..Attributes::default() };
        let put = self.tree.put(folder, name.as_bytes(), placeholder, Kind::Socket);
        put.map(drop).map_err(|reason| refused(path, reason))
    }

    /// Hides what the layers below have at a path. What this layer has there stays.
    fn hide(&mut self, path: &Path) -> Result<()> {
        let Some(folder) = self.walk(parent(path), Makes::Seen)? else { return Ok(()) };
        let name = path.file_name().expect("a whiteout has a name");
        if self.is_hidden_in(folder) {
            return Ok(());
        }
        match self.tree.child(folder, name.as_bytes()) {
            Some(there) if self.tree.is_folder(there) => {
                if self.known(there).real {
                    self.make_opaque(there, Hides::Itself);
                    return Ok(());
                }
                // It was made for whiteouts alone.
                self.remove(folder, name);
            }
            // What the layer has there hides it already.
            Some(_) => return Ok(()),
            None => {}
        }
        let put = self.tree.put(folder, name.as_bytes(), Attributes::default(), Kind::Char(0, 0));
        put.map(drop).map_err(|reason| refused(path, reason))
    }

    /// Hides all that the layers below have in a folder. What this layer has there stays.
    fn hide_all_in(&mut self, path: &Path) -> Result<()> {
        let Some(folder) = self.walk(path, Makes::Seen)? else { return Ok(()) };
        self.make_opaque(folder, Hides::Content);
        Ok(())
    }

    pub(super) fn make_opaque(&mut self, folder: Node, hides: Hides) {
        let known = self.folders.entry(folder).or_default();
        if known.hides == Hides::Nothing {
            self.tree.mark(folder, OPAQUE, Some(b"y"));
        }
        known.hides = hides.max(known.hides);
    }

    /// Whether nothing of the layers below is seen in a folder.
    pub(super) fn is_hidden_in(&self, folder: Node) -> bool {
        let mut at = folder;
        loop {
            if self.known(at).hides != Hides::Nothing {
                return true;
            }
            if at == self.tree.root() {
                return false;
            }
            at = self.tree.parent(at).expect("it is a folder");
        }
    }

    /// A folder and those above it, without the root, lowest first.
    fn line(&self, folder: Node) -> Vec<Node> {
        let above = |at: &Node| self.tree.parent(*at);
        std::iter::successors(Some(folder), above).take_while(|at| *at != self.tree.root()).collect()
    }

    /// Where a folder is, relative to the root.
    pub(super) fn path(&self, folder: Node) -> PathBuf {
        OsString::from_vec(self.tree.path(folder)).into()
    }

    /// Notes that a folder is in the layer.
    pub(super) fn keep(&mut self, folder: Node) {
        let mut at = folder;
        while !std::mem::replace(&mut self.folders.entry(at).or_default().real, true) {
            at = self.tree.parent(at).expect("it is a folder");
        }
    }

    /// Removes whatever has a name; nothing there is fine.
    pub(super) fn remove(&mut self, folder: Node, name: &OsStr) {
        if self.tree.child(folder, name.as_bytes()).is_some() {
            self.tree.remove(folder, name.as_bytes());
            // It may have been the folder of the last entry, or one on the way there.
            self.last = None;
        }
    }

    /// Owner, mode, time and attributes as the kernel would leave them.
    fn attributes(&mut self, meta: &Meta) -> Result<Attributes> {
        let mut mode = meta.mode as u16;
        let mut xattrs: Vec<(&[u8], &[u8])> = Vec::new();
        for (name, value) in &meta.xattrs {
            if name == acl::ACCESS || name == acl::DEFAULT {
                let list =
                    acl::read(value).ok_or_else(|| refused(&meta.path, "its access list is malformed"))?;
                match list {
                    List::Empty => continue,
                    List::Mode(bits) if name == acl::ACCESS => {
                        mode = mode & 0o7000 | bits;
                        continue;
                    }
                    List::Extended(bits) if name == acl::ACCESS => mode = mode & 0o7000 | bits,
                    List::Mode(_) | List::Extended(_) => {}
                }
            }
            xattrs.push((name, value));
        }
        let xattrs = match xattrs.is_empty() {
            true => XattrSet::default(),
            false => self.tree.xattrs(xattrs).map_err(|reason| refused(&meta.path, reason))?,
        };
        let nanos = u32::try_from(meta.mtime.tv_nsec).expect("less than a second");
        Ok(Attributes {
            mode: if meta.kind == EntryType::Symlink { 0o777 } else { mode },
            uid: meta.uid,
            gid: meta.gid,
            mtime: (meta.mtime.tv_sec, nanos),
            xattrs,
        })
    }
}

/// What went wrong with an entry's data.
pub(super) fn data_error(
    error: DataError,
    entry: &Path,
    read: impl FnOnce(std::io::Error) -> Error,
) -> Error {
    match error {
        DataError::Read(source) => read(source),
        DataError::Write(source) => cannot_write(source),
        other => refused(entry, other.to_string()),
    }
}
