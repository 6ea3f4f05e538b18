//! The tree of an image in memory: names, attributes, and where the data is, but no data.

use std::{fmt, hash::BuildHasher};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{
    format::NAME_MAX,
    place::{Data, Place},
    xattrs::{XattrSet, Xattrs},
};

/// The number that says "none".
const NONE: u32 = u32::MAX;
/// The bits of a mode that say what kind a file is.
pub(super) const KIND: u16 = 0o170_000;
/// The attribute by which overlayfs knows a folder that hides what is below it.
pub(super) const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// A file, folder, link or device of a [`Tree`]. It may have several names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub(super) u32);

/// Owner, permissions, time and extended attributes of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The permission bits, with set-user-id, set-group-id and sticky: twelve bits.
    pub mode: u16,
    /// The user who owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// When it was modified: seconds since the epoch, and nanoseconds.
    pub mtime: (i64, u32),
    /// Its extended attributes, from [`Tree::xattrs`].
    pub xattrs: XattrSet,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A folder, empty at first.
    Folder,
    /// A regular file of that many bytes, with the data that [`Writer::data`](super::Writer::data) has written.
    File(u64, Data),
    /// A symbolic link, and where it points.
    Symlink(&'a [u8]),
    /// A character device: major and minor number. 0 and 0 is how overlayfs hides a name.
    Char(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// All that an inode says, as it is kept in memory.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// Kind and permissions.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nanos: u32,
    pub(super) mtime: i64,
    pub(super) xattrs: XattrSet,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Its first entry, the folder that it is in, and the entry there that names it.
    Folder {
        first: u32,
        parent: u32,
        entry: u32,
    },
    File {
        size: u64,
        place: Box<Place>,
    },
    /// Most files: data in blocks that follow each other.
    Plain {
        size: u64,
        device: u16,
        block: u32,
    },
    Symlink {
        text: u32,
        length: u32,
    },
    /// As it is stored.
    Device(u32),
    Nothing,
}

/// A name in a folder.
#[derive(Clone, Copy, Debug)]
struct Entry {
    folder: u32,
    node: u32,
    name: u32,
    length: u32,
    next: u32,
    before: u32,
}

/// A tree that becomes an image: see the [module's page](super).
///
/// It takes some 150 bytes for each entry, and holds no data.
pub struct Tree {
    pub(super) inodes: Vec<Inode>,
    entries: Vec<Entry>,
    /// Entries by folder and name.
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Names, and targets of symbolic links.
    text: Vec<u8>,
    pub(super) sets: Xattrs,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("nodes", &self.inodes.len()).finish_non_exhaustive()
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// A tree with nothing but a root, of mode 0755, root's, from the epoch.
    pub fn new() -> Self {
        let root = Inode {
            mode: 0o040_755,
            uid: 0,
            gid: 0,
            nanos: 0,
            mtime: 0,
            xattrs: XattrSet::default(),
            content: Content::Folder { first: NONE, parent: 0, entry: NONE },
        };
        Self {
            inodes: vec![root],
            entries: Vec::new(),
            index: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            text: Vec::new(),
            sets: Xattrs::default(),
        }
    }

    /// The top folder.
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// How many nodes were ever added: what the tree's memory is proportional to.
    pub fn len(&self) -> usize {
        self.inodes.len().max(self.entries.len())
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many bytes the extended attributes take, each set of them counted once.
    pub fn xattr_bytes(&self) -> u64 {
        self.sets.bytes()
    }

    /// Makes a set of extended attributes, given as names with prefixes and values.
    ///
    /// # Errors
    ///
    /// Which attribute no file system takes, in words.
    pub fn xattrs<'a>(
        &mut self,
        attributes: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<XattrSet, &'static str> {
        self.sets.add(attributes)
    }

    /// The names, with prefixes, and values of a node's extended attributes.
    pub fn xattrs_of(&self, node: Node) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.sets.list(self.inode(node).xattrs)
    }

    /// What a folder has under a name. `None` also if it is no folder.
    pub fn child(&self, folder: Node, name: &[u8]) -> Option<Node> {
        self.find(folder, name).map(|entry| Node(self.entries[entry as usize].node))
    }

    /// Puts a new node into a folder, in the place of what has that name.
    ///
    /// # Errors
    ///
    /// In words, why a file system would refuse the name or the node.
    pub fn put(
        &mut self,
        folder: Node,
        name: &[u8],
        meta: Meta,
        kind: Kind<'_>,
    ) -> Result<Node, &'static str> {
        let node =
            Node(u32::try_from(self.inodes.len()).ok().filter(|n| *n != NONE).ok_or("there are too many")?);
        let (bits, content) = match kind {
            Kind::Folder => (0o040_000, Content::Folder { first: NONE, parent: folder.0, entry: NONE }),
            Kind::File(size, Data(Place::At { device, block })) => {
                (0o100_000, Content::Plain { size, device, block })
            }
            Kind::File(size, Data(place)) => (0o100_000, Content::File { size, place: Box::new(place) }),
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > 4095 || target.contains(&0) {
                    return Err(
                        "it is a symbolic link that is empty, longer than 4,095 bytes, or has a zero byte",
                    );
                }
                (0o120_000, self.symlink(target)?)
            }
            Kind::Char(major, minor) => {
                (0o020_000, Content::Device(super::format::device_number(major, minor)))
            }
            Kind::Block(major, minor) => {
                (0o060_000, Content::Device(super::format::device_number(major, minor)))
            }
            Kind::Fifo => (0o010_000, Content::Nothing),
            Kind::Socket => (0o140_000, Content::Nothing),
        };
        self.inodes.push(Inode {
            mode: bits | meta.mode & 0o7777,
            uid: meta.uid,
            gid: meta.gid,
            nanos: meta.mtime.1,
            mtime: meta.mtime.0,
            xattrs: meta.xattrs,
            content,
        });
        self.link(folder, name, node)?;
        Ok(node)
    }

    /// Gives a node that is no folder one more name, in the place of what has that name.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub fn link(&mut self, folder: Node, name: &[u8], node: Node) -> Result<(), &'static str> {
        if name.is_empty() || name.len() > NAME_MAX || matches!(name, b"." | b"..") {
            return Err("its name is empty, `.`, `..`, or longer than 255 bytes");
        }
        if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            return Err("its name has a zero byte or a `/`");
        }
        if let Some(entry) = self.find(folder, name) {
            self.entries[entry as usize].node = node.0;
            self.set_entry(node, entry);
            return Ok(());
        }
        let entry =
            u32::try_from(self.entries.len()).ok().filter(|n| *n != NONE).ok_or("there are too many")?;
        let text = self.keep(name)?;
        let Content::Folder { first, .. } = &mut self.inodes[folder.0 as usize].content else {
            return Err("what it is in is no folder");
        };
        let next = std::mem::replace(first, entry);
        if next != NONE {
            self.entries[next as usize].before = entry;
        }
        let length = name.len() as u32;
        self.entries.push(Entry { folder: folder.0, node: node.0, name: text, length, next, before: NONE });
        let Self { index, entries, text, hasher, .. } = self;
        let hash = |entry: &u32| hash(hasher, entries[*entry as usize], text);
        index.insert_unique(hash(&entry), entry, hash);
        self.set_entry(node, entry);
        Ok(())
    }

    fn set_entry(&mut self, node: Node, named: u32) {
        if let Content::Folder { entry, .. } = &mut self.inodes[node.0 as usize].content {
            *entry = named;
        }
    }

    /// Takes a name away. What is below it, if it was a folder, goes with it.
    pub fn remove(&mut self, folder: Node, name: &[u8]) {
        let Some(entry) = self.find(folder, name) else { return };
        let Entry { next, before, .. } = self.entries[entry as usize];
        if next != NONE {
            self.entries[next as usize].before = before;
        }
        match &mut self.inodes[folder.0 as usize].content {
            Content::Folder { first, .. } if before == NONE => *first = next,
            _ => self.entries[before as usize].next = next,
        }
        let hash = hash(&self.hasher, self.entries[entry as usize], &self.text);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == entry) {
            found.remove();
        }
    }

    /// Owner, permissions, time and attributes of a node.
    pub fn meta(&self, node: Node) -> Meta {
        let inode = self.inode(node);
        Meta {
            mode: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            mtime: (inode.mtime, inode.nanos),
            xattrs: inode.xattrs,
        }
    }

    /// Replaces owner, permissions, time and attributes of a node.
    pub fn set_meta(&mut self, node: Node, meta: Meta) {
        let inode = &mut self.inodes[node.0 as usize];
        inode.mode = inode.mode & KIND | meta.mode & 0o7777;
        (inode.uid, inode.gid) = (meta.uid, meta.gid);
        (inode.mtime, inode.nanos) = meta.mtime;
        inode.xattrs = meta.xattrs;
    }

    /// Sets one extended attribute of a node, or takes it away.
    ///
    /// # Panics
    ///
    /// If file systems do not know the name, or there are more than 8 KiB of such marks.
    pub fn mark(&mut self, node: Node, name: &[u8], value: Option<&[u8]>) {
        let set = self.inode(node).xattrs;
        if value.is_some() || set != XattrSet::default() {
            self.inodes[node.0 as usize].xattrs = self.sets.with(set, name, value);
        }
    }

    /// The value of one extended attribute of a node.
    pub fn marked(&self, node: Node, name: &[u8]) -> Option<Vec<u8>> {
        self.sets.get(self.inode(node).xattrs, name)
    }

    /// Whether a node is a folder.
    pub fn is_folder(&self, node: Node) -> bool {
        matches!(self.inode(node).content, Content::Folder { .. })
    }

    /// Whether a node is what hides a name from overlayfs.
    pub fn is_whiteout(&self, node: Node) -> bool {
        let inode = self.inode(node);
        inode.mode & KIND == 0o020_000 && matches!(inode.content, Content::Device(0))
    }

    /// Where a symbolic link points; `None` if it is something else.
    pub fn target(&self, node: Node) -> Option<&[u8]> {
        match self.inode(node).content {
            Content::Symlink { text, length } => Some(&self.text[text as usize..][..length as usize]),
            _ => None,
        }
    }

    /// The folder that a folder is in; the root is in itself.
    pub fn parent(&self, folder: Node) -> Option<Node> {
        match self.inode(folder).content {
            Content::Folder { parent, .. } => Some(Node(parent)),
            _ => None,
        }
    }

    /// Where a folder is, from the root on; where it was, if it was removed.
    pub fn path(&self, folder: Node) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = folder;
        while let Content::Folder { parent, entry, .. } = self.inode(at).content
            && let Some(entry) = self.entries.get(entry as usize)
        {
            names.push(self.name(entry));
            at = Node(parent);
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The names in a folder, in no order of use, and what they name.
    pub fn children(&self, folder: Node) -> impl Iterator<Item = (&[u8], Node)> {
        let mut next = match self.inode(folder).content {
            Content::Folder { first, .. } => first,
            _ => NONE,
        };
        std::iter::from_fn(move || {
            let entry = self.entries.get(next as usize)?;
            next = entry.next;
            Some((self.name(entry), Node(entry.node)))
        })
    }

    /// As [`children`](Self::children), but copied, so that the tree can be changed meanwhile.
    pub(super) fn listed(&self, folder: Node) -> Vec<(Vec<u8>, Node)> {
        self.children(folder).map(|(name, node)| (name.to_vec(), node)).collect()
    }

    /// Brings the children of a folder into the order of an image: by the bytes of their names.
    pub(super) fn sort(&mut self, folder: Node) {
        let mut order = Vec::new();
        let Content::Folder { first, .. } = self.inode(folder).content else { return };
        let mut next = first;
        while next != NONE {
            order.push(next);
            next = self.entries[next as usize].next;
        }
        let name = |entry: &u32| self.name(&self.entries[*entry as usize]);
        order.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        for (at, entry) in order.iter().enumerate() {
            self.entries[*entry as usize].before = if at == 0 { NONE } else { order[at - 1] };
            self.entries[*entry as usize].next = order.get(at + 1).copied().unwrap_or(NONE);
        }
        if let Content::Folder { first, .. } = &mut self.inodes[folder.0 as usize].content {
            *first = order.first().copied().unwrap_or(NONE);
        }
    }

    pub(super) fn inode(&self, node: Node) -> &Inode {
        &self.inodes[node.0 as usize]
    }

    /// Adds an inode that has no name yet.
    pub(super) fn adopt(&mut self, inode: Inode) -> Node {
        self.inodes.push(inode);
        Node(self.inodes.len() as u32 - 1)
    }

    pub(super) fn set_parent(&mut self, folder: Node, above: Node) {
        if let Content::Folder { parent, .. } = &mut self.inodes[folder.0 as usize].content {
            *parent = above.0;
        }
    }

    /// Keeps the target of a symbolic link.
    pub(super) fn symlink(&mut self, target: &[u8]) -> Result<Content, &'static str> {
        let text = self.keep(target)?;
        Ok(Content::Symlink { text, length: target.len() as u32 })
    }

    /// A copy of another tree's inode, for this tree. A folder is empty. What is in the other's own image, or in its
    /// tar, is on these devices here.
    pub(super) fn import(
        &mut self,
        other: &Self,
        node: Node,
        devices: [u16; 2],
    ) -> Result<Inode, &'static str> {
        let mut inode = other.inode(node).clone();
        inode.xattrs = self.sets.import(&other.sets, inode.xattrs);
        if let Some(target) = other.target(node) {
            inode.content = self.symlink(target)?;
        }
        let here = |device: u16| devices.get(usize::from(device)).copied().unwrap_or(device);
        match &mut inode.content {
            Content::Folder { first, .. } => *first = NONE,
            Content::Plain { device, .. } => *device = here(*device),
            Content::File { place, .. } => {
                if let Place::Chunks { device, .. } = &mut **place {
                    *device = here(*device);
                }
            }
            _ => {}
        }
        Ok(inode)
    }

    fn keep(&mut self, text: &[u8]) -> Result<u32, &'static str> {
        let start = self.text.len();
        let end =
            u32::try_from(start + text.len()).map_err(|_| "all names together are longer than 4 GiB")?;
        self.text.extend_from_slice(text);
        Ok(end - text.len() as u32)
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        &self.text[entry.name as usize..][..entry.length as usize]
    }

    fn find(&self, folder: Node, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one((folder.0, name));
        let is = |entry: &u32| {
            let entry = &self.entries[*entry as usize];
            entry.folder == folder.0 && self.name(entry) == name
        };
        self.index.find(hash, is).copied()
    }
}

fn hash(hasher: &DefaultHashBuilder, entry: Entry, text: &[u8]) -> u64 {
    hasher.hash_one((entry.folder, &text[entry.name as usize..][..entry.length as usize]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROOT: Node = Node(0);

    fn put(tree: &mut Tree, folder: Node, name: &str) -> Node {
        tree.put(folder, name.as_bytes(), Meta::default(), Kind::Folder).expect("the name is good")
    }

    #[test]
    fn what_is_put_under_a_name_takes_its_place() {
        let mut tree = Tree::new();
        let first = put(&mut tree, ROOT, "a");
        put(&mut tree, first, "below");

        let second = put(&mut tree, ROOT, "a");

        assert_eq!(tree.child(tree.root(), b"a"), Some(second));
        assert_eq!(tree.child(second, b"below"), None);
        assert_eq!(tree.children(tree.root()).count(), 1);
    }

    #[test]
    fn names_that_no_file_system_takes_are_refused() {
        let long = "x".repeat(256);
        for name in ["", ".", "..", "a/b", "a\0b", &long] {
            let mut tree = Tree::new();
            let result = tree.put(tree.root(), name.as_bytes(), Meta::default(), Kind::Fifo);
            assert!(result.is_err(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn a_folder_is_a_map_of_names(steps in proptest::collection::vec((any::<bool>(), 0_u8..12), 0..60)) {
            let mut tree = Tree::new();
            let mut model = std::collections::BTreeMap::new();
            for (step, (put, name)) in steps.into_iter().enumerate() {
                let name = vec![b'a' + name];
                if put {
                    let meta = Meta { uid: step as u32, ..Meta::default() };
                    let node = tree.put(tree.root(), &name, meta, Kind::Fifo).expect("the name is good");
                    model.insert(name, node);
                } else {
                    tree.remove(tree.root(), &name);
                    model.remove(&name);
                }
                if step % 7 == 0 {
                    tree.sort(tree.root());
                }
            }
            tree.sort(tree.root());
            prop_assert_eq!(tree.listed(tree.root()), model.into_iter().collect::<Vec<_>>());
        }
    }
}
