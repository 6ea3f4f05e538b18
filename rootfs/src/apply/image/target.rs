//! The tree of an image that a layer is applied to: what `apply::tree` does with folders, done in memory.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tar::EntryType;
use windlass_snapshot::{
    Whiteouts,
    erofs::{DataError, IMPLIED, Kind, LINK, Missing, Node, Tree, Writer, XattrSet},
};

use super::{
    Options,
    acl::{self, List},
    cannot_write,
};
use crate::{
    Error, Result,
    apply::{Meta, entry, refused, tar_error, tree::parent},
};

/// How many bytes of extended attributes an image may have, each set of them counted once: they are kept in memory.
const XATTR_BYTES: u64 = 256 << 20;
/// The attribute of a folder that hides what is below it.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// A tree that a layer is being applied to.
pub(super) struct Target {
    tree: Tree,
    overlay: bool,
    marks: bool,
    entries: u64,
    /// The folder of the last entry: the next one is most often in it, too.
    last: Option<(PathBuf, Node)>,
    root_declared: bool,
}

impl Target {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            tree: Tree::new(),
            overlay: options.whiteouts == Whiteouts::Overlay,
            marks: options.marks && options.whiteouts == Whiteouts::Overlay,
            entries: options.limits.entries,
            last: None,
            root_declared: false,
        }
    }

    /// Makes an entry, in the place of what is there, or hides what it says is gone.
    pub(super) fn apply(&mut self, meta: &Meta, data: &mut dyn Read, writer: &mut Writer) -> Result<()> {
        // Beside the entries themselves there are the folders that they imply.
        if self.tree.len() as u64 > self.entries.saturating_add(1) {
            let (entry, limit) = (meta.path.clone(), self.entries);
            return Err(Error::Limit { entry, what: "entries, with the folders that they are in", limit });
        }
        if self.tree.xattr_bytes() > XATTR_BYTES {
            let (entry, what) = (meta.path.clone(), "bytes of extended attributes of all entries");
            return Err(Error::Limit { entry, what, limit: XATTR_BYTES });
        }
        let Some(name) = meta.path.file_name() else {
            return match meta.kind {
                EntryType::Directory => self.root_folder(meta),
                _ => Err(refused(&meta.path, "the root is a folder, and stays one")),
            };
        };
        let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") else {
            return self.put(meta, name, data, writer);
        };
        let folder = parent(&meta.path);
        match hidden {
            b".wh..opq" => self.hide_all_in(folder),
            // What AUFS kept for itself.
            other if other.starts_with(b".wh.") => Ok(()),
            b"" | b"." | b".." => Err(refused(&meta.path, "it hides nothing that has a name")),
            other => self.hide(&folder.join(entry::os_str(other))),
        }
    }

    /// The tree, with all marks.
    pub(super) fn finish(mut self) -> Tree {
        if self.marks && !self.root_declared {
            self.tree.mark(self.tree.root(), IMPLIED, Some(b"y"));
        }
        self.tree
    }

    fn root_folder(&mut self, meta: &Meta) -> Result<()> {
        self.root_declared = true;
        self.declare(self.tree.root(), meta)
    }

    fn put(&mut self, meta: &Meta, name: &OsStr, data: &mut dyn Read, writer: &mut Writer) -> Result<()> {
        let path = &meta.path;
        let folder = self.folder(parent(path))?;
        let kind = match meta.kind {
            EntryType::Directory => return self.put_folder(folder, name, meta),
            EntryType::Link => return self.put_link(folder, name, meta),
            EntryType::Symlink => Kind::Symlink(meta.link.as_os_str().as_bytes()),
            EntryType::Char if meta.device == (0, 0) => {
                return Err(refused(path, "a character device 0/0 is how overlayfs hides a name"));
            }
            EntryType::Char => Kind::Char(meta.device.0, meta.device.1),
            EntryType::Block => Kind::Block(meta.device.0, meta.device.1),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let content = &meta.content;
                let data = writer.data(data, &content.pieces, content.size);
                Kind::File(content.size, data.map_err(|error| data_error(error, path))?)
            }
            other => {
                return Err(refused(path, format!("its type {:?} is not known", other.as_byte() as char)));
            }
        };
        self.forget(folder, name);
        let attributes = self.attributes(meta, &[])?;
        let put = self.tree.put(folder, name.as_bytes(), attributes, kind);
        put.map(drop).map_err(|reason| refused(path, reason))
    }

    fn put_folder(&mut self, folder: Node, name: &OsStr, meta: &Meta) -> Result<()> {
        let made = self.make_folder(folder, name, &meta.path)?;
        self.declare(made, meta)
    }

    /// Gives a folder what the layer says of it. Attributes that it has already stay, unless they are set anew.
    fn declare(&mut self, folder: Node, meta: &Meta) -> Result<()> {
        let mut kept = self.tree.xattrs_of(folder);
        kept.retain(|(name, _)| name != IMPLIED);
        let attributes = self.attributes(meta, &kept)?;
        self.tree.set_meta(folder, attributes);
        Ok(())
    }

    fn put_link(&mut self, folder: Node, name: &OsStr, meta: &Meta) -> Result<()> {
        let (path, link) = (&meta.path, &meta.link);
        if path == link {
            return Ok(());
        }
        let Some(target) = link.file_name() else {
            return Err(refused(path, "it is a hard link to the root"));
        };
        self.forget(folder, name);
        self.tree.remove(folder, name.as_bytes());
        let found = match self.tree.folder_at(bytes(parent(link))) {
            Ok(from) => self.tree.child(from, target.as_bytes()),
            Err(Missing::NotThere) => None,
            Err(Missing::NotFolder | Missing::Loop) => {
                return Err(refused(
                    path,
                    format!("it is a hard link to {link:?}, which leads through no folder"),
                ));
            }
        };
        let done = match found {
            Some(node) if self.tree.is_folder(node) => {
                return Err(refused(path, format!("it is a hard link to the folder {link:?}")));
            }
            Some(node) => self.tree.link(folder, name.as_bytes(), node),
            // The target is in a layer below, which is not here. A socket, which no layer can bring, stands for it.
            None if self.marks => {
                let set = self.tree.xattrs([(LINK, bytes(link))]).map_err(|reason| refused(path, reason))?;
                let placeholder = windlass_snapshot::erofs::Meta { xattrs: set, ..Default::default() };
                self.tree.put(folder, name.as_bytes(), placeholder, Kind::Socket).map(drop)
            }
            None => {
                return Err(refused(
                    path,
                    format!("it is a hard link to {link:?}, which is not in the layer"),
                ));
            }
        };
        done.map_err(|reason| refused(path, reason))
    }

    /// Hides what the layers below have at a path. What this layer has there stays.
    fn hide(&mut self, path: &Path) -> Result<()> {
        if !self.overlay {
            return Ok(());
        }
        let folder = self.folder(parent(path))?;
        let name = path.file_name().expect("a whiteout has a name").as_bytes();
        match self.tree.child(folder, name) {
            Some(there) if self.tree.is_folder(there) => self.tree.mark(there, OPAQUE, Some(b"y")),
            Some(_) => {}
            None => {
                let put = self.tree.put(folder, name, Default::default(), Kind::Char(0, 0));
                put.map_err(|reason| refused(path, reason))?;
            }
        }
        Ok(())
    }

    /// Hides all that the layers below have in a folder. What this layer has there stays.
    fn hide_all_in(&mut self, path: &Path) -> Result<()> {
        if !self.overlay {
            return Ok(());
        }
        let folder = self.folder(path)?;
        self.tree.mark(folder, OPAQUE, Some(b"y"));
        Ok(())
    }

    /// A folder; what is missing of it is made.
    fn folder(&mut self, path: &Path) -> Result<Node> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(*folder);
        }
        let folder = match self.tree.folder_at(bytes(path)) {
            Ok(folder) => folder,
            Err(Missing::Loop) => return Err(refused(path, "it goes through too many links")),
            Err(Missing::NotThere | Missing::NotFolder) => {
                let above = self.folder(parent(path))?;
                let name = path.file_name().expect("the root is there");
                let made = self.make_folder(above, name, path)?;
                if self.marks {
                    self.tree.mark(made, IMPLIED, Some(b"y"));
                }
                made
            }
        };
        self.last = Some((path.to_owned(), folder));
        Ok(folder)
    }

    /// Makes a folder, unless there is one. Anything else that is there goes.
    fn make_folder(&mut self, folder: Node, name: &OsStr, path: &Path) -> Result<Node> {
        let there = self.tree.child(folder, name.as_bytes());
        if let Some(there) = there.filter(|there| self.tree.is_folder(*there)) {
            return Ok(there);
        }
        let above = self.tree.meta(folder);
        // As everywhere, what is made in a set-group-id folder is of its group.
        let gid = if above.mode & 0o2000 != 0 { above.gid } else { 0 };
        let meta = windlass_snapshot::erofs::Meta { mode: 0o755, gid, ..Default::default() };
        let made = self.tree.put(folder, name.as_bytes(), meta, Kind::Folder);
        let made = made.map_err(|reason| refused(path, reason))?;
        if there.is_some() && self.overlay {
            // What was there, a whiteout perhaps, hid what is below; so must the folder.
            self.tree.mark(made, OPAQUE, Some(b"y"));
        }
        Ok(made)
    }

    /// The folder of the last entry is looked up anew if what has this name was a folder, or a link to one.
    fn forget(&mut self, folder: Node, name: &OsStr) {
        if self.tree.child(folder, name.as_bytes()).is_some() {
            self.last = None;
        }
    }

    /// Owner, mode, time and attributes as the kernel would leave them, `kept` among them.
    fn attributes(
        &mut self,
        meta: &Meta,
        kept: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<windlass_snapshot::erofs::Meta> {
        let mut mode = meta.mode as u16;
        let mut xattrs: Vec<(&[u8], &[u8])> =
            kept.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let is_folder = meta.kind == EntryType::Directory;
        let is_file = matches!(meta.kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        for (name, value) in &meta.xattrs {
            let refuse = |reason: &str| Err(refused(&meta.path, reason));
            if name.starts_with(b"user.") && !is_folder && !is_file {
                return refuse("only files and folders have attributes of users");
            }
            if name == acl::ACCESS || name == acl::DEFAULT {
                if meta.kind == EntryType::Symlink {
                    return refuse("a symbolic link has no access list");
                }
                xattrs.retain(|(other, _)| other != name);
                match acl::read(value) {
                    None => return refuse("its access list is malformed"),
                    Some(List::Empty) => continue,
                    Some(_) if name == acl::DEFAULT && !is_folder => {
                        return refuse("only a folder has an access list for what is made in it");
                    }
                    Some(List::Mode(bits)) if name == acl::ACCESS => {
                        mode = mode & 0o7000 | bits;
                        continue;
                    }
                    Some(List::Extended(bits)) if name == acl::ACCESS => mode = mode & 0o7000 | bits,
                    Some(_) => {}
                }
            }
            xattrs.push((name, value));
        }
        let xattrs = match xattrs.is_empty() {
            true => XattrSet::default(),
            false => self.tree.xattrs(xattrs).map_err(|reason| refused(&meta.path, reason))?,
        };
        let nanos = u32::try_from(meta.mtime.tv_nsec).expect("less than a second");
        Ok(windlass_snapshot::erofs::Meta {
            mode: if meta.kind == EntryType::Symlink { 0o777 } else { mode },
            uid: meta.uid,
            gid: meta.gid,
            mtime: (meta.mtime.tv_sec, nanos),
            xattrs,
        })
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// What went wrong with an entry's data.
pub(super) fn data_error(error: DataError, entry: &Path) -> Error {
    match error {
        DataError::Read(source) => tar_error(source),
        DataError::Write(source) => cannot_write(source),
        other => refused(entry, other.to_string()),
    }
}
