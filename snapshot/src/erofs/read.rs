//! Reads the tree of an image that this module wrote. What is wrong with one is an error, whatever its bytes are.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
};

use super::{
    Meta, Tree,
    data::head,
    format::{
        BLOCK_BITS, CHUNK_SIZE, DEVICE_SIZE, Damage, ENTRY_SIZE, HOLE, INODE_SIZE, Layout, RawInode, Reader,
        SECTOR_BITS, SLOT, Super, XATTR_HEAD, chunk_bits,
    },
    place::Place,
    tree::{Content, Inode, KIND, Node},
};
use crate::{Error, Result};

/// An image that was opened to be read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) header: Super,
}

impl Opened {
    /// Opens an image, and looks at its superblock.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { op: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mut first = vec![0; 1 << BLOCK_BITS];
        let length = file.metadata().map_err(io)?.len();
        first.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        file.read_exact_at(&mut first, 0).map_err(io)?;
        let header = Super::get(&first);
        let whole = |header: &Super| {
            u64::from(header.blocks) << header.bits <= length && header.meta_block <= header.blocks
        };
        match header {
            Ok(header) if whole(&header) => Ok(Self { file, header }),
            Ok(_) => Err(damaged(path, Damage("it is too short"))),
            Err(damage) => Err(damaged(path, damage)),
        }
    }

    /// Reads the tree.
    pub(super) fn tree(&self, path: &Path) -> Result<Tree> {
        let start = self.data_end();
        let mut bytes = vec![0; ((u64::from(self.header.blocks) << self.header.bits) - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(|source| Error::Io {
            op: "read",
            path: path.to_owned(),
            source,
        })?;
        let tar = if self.is_index() { self.slot(0, path)?.1 } else { 0 };
        let source = Source { meta: Reader(&bytes), header: &self.header, tar };
        source.tree().map_err(|damage| damaged(path, damage))
    }
}

impl Opened {
    /// By which the image is known as a device of another.
    pub(super) fn tag(&self) -> [u8; 64] {
        let Super { uuid, blocks, meta_block, inodes, .. } = &self.header;
        let mut tag = [0; 64];
        tag[..16].copy_from_slice(uuid);
        tag[16..20].copy_from_slice(&blocks.to_le_bytes());
        tag[20..24].copy_from_slice(&meta_block.to_le_bytes());
        tag[24..32].copy_from_slice(&inodes.to_le_bytes());
        tag
    }

    /// Whether its data is in a tar.
    pub(super) fn is_index(&self) -> bool {
        self.header.devices == 1
    }

    /// Whether any data is in the image itself. That of one that is no index always counts.
    pub(super) fn has_data(&self) -> bool {
        !self.is_index() || self.data_end() > head(1, self.header.bits)
    }

    /// Where its own data ends, in bytes: the superblock and the device slots count.
    pub(super) fn data_end(&self) -> u64 {
        u64::from(self.header.meta_block) << self.header.bits
    }

    /// The tags of the devices that its data is on.
    pub(super) fn devices(&self, path: &Path) -> Result<Vec<[u8; 64]>> {
        (0..self.header.devices).map(|number| Ok(self.slot(number, path)?.0)).collect()
    }

    /// The tag of a device, and how many blocks it has.
    pub(super) fn slot(&self, number: u16, path: &Path) -> Result<([u8; 64], u32)> {
        let mut slot = [0; DEVICE_SIZE as usize];
        let at = (u64::from(self.header.device_slot) + u64::from(number)) * DEVICE_SIZE;
        self.file.read_exact_at(&mut slot, at).map_err(|source| Error::Io {
            op: "read",
            path: path.to_owned(),
            source,
        })?;
        let blocks = Reader(&slot).u32(64).expect("it is in there");
        Ok((slot[..64].try_into().expect("it was cut to that length"), blocks))
    }

    /// Owner, permissions and time of the root.
    pub(super) fn root(&self, path: &Path) -> Result<Meta> {
        let at = self.data_end() + u64::from(self.header.root_nid) * SLOT;
        let mut bytes = [0; INODE_SIZE as usize];
        self.file.read_exact_at(&mut bytes, at).map_err(|source| Error::Io {
            op: "read",
            path: path.to_owned(),
            source,
        })?;
        let raw = RawInode::get(&bytes).map_err(|damage| damaged(path, damage))?;
        let (mode, mtime) = (raw.mode & !KIND, (raw.mtime, raw.nanos));
        Ok(Meta { mode, uid: raw.uid, gid: raw.gid, mtime, xattrs: Default::default() })
    }
}

fn damaged(path: &Path, damage: Damage) -> Error {
    Error::Image { path: path.to_owned(), reason: damage.to_string() }
}

/// The metadata of an image.
struct Source<'a> {
    meta: Reader<'a>,
    header: &'a Super,
    /// How many blocks the tar has that its data is in.
    tar: u32,
}

impl Source<'_> {
    fn tree(&self) -> Result<Tree, Damage> {
        if self.header.devices > 1 {
            return Err(Damage("its data is on other devices"));
        }
        let mut tree = Tree::new();
        let mut nodes: HashMap<u64, Node> = HashMap::new();
        let root = u64::from(self.header.root_nid);
        let (inode, _) = self.inode(root, &mut tree)?;
        if !matches!(inode.content, Content::Folder { .. }) {
            return Err(Damage("its root is no folder"));
        }
        tree.inodes[0] = inode;
        nodes.insert(root, tree.root());
        let mut open = vec![(tree.root(), root)];
        while let Some((folder, nid)) = open.pop() {
            let (raw, after) = self.raw(nid)?;
            for (name, child) in self.entries(&raw, after)? {
                if matches!(&name[..], b"." | b"..") {
                    continue;
                }
                let node = match nodes.entry(child) {
                    Entry::Occupied(known) if tree.is_folder(*known.get()) => {
                        return Err(Damage("a folder has two names"));
                    }
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let (inode, _) = self.inode(child, &mut tree)?;
                        let node = tree.adopt(inode);
                        if tree.is_folder(node) {
                            tree.set_parent(node, folder);
                            open.push((node, child));
                        }
                        *new.insert(node)
                    }
                };
                if tree.child(folder, &name).is_some() {
                    return Err(Damage("a folder has the same name twice"));
                }
                tree.link(folder, &name, node).map_err(Damage)?;
            }
        }
        Ok(tree)
    }

    /// An inode's own bytes, and where what follows its attributes begins.
    fn raw(&self, nid: u64) -> Result<(RawInode, u64), Damage> {
        let at = nid.checked_mul(SLOT).ok_or(Damage("an inode is outside of it"))?;
        let raw = RawInode::get(self.meta.slice(at, INODE_SIZE)?)?;
        let after = at + INODE_SIZE + raw.xattr_bytes;
        Ok((raw, after))
    }

    fn inode(&self, nid: u64, tree: &mut Tree) -> Result<(Inode, u64), Damage> {
        let (raw, after) = self.raw(nid)?;
        let xattrs = match raw.xattr_bytes {
            0 => Default::default(),
            length => {
                let bytes = Reader(self.meta.slice(after - length, length)?);
                let shared = u64::from(bytes.u8(4)?);
                let area =
                    u64::from(self.header.xattr_block - self.header.meta_block.min(self.header.xattr_block))
                        << self.header.bits;
                let mut entries = Vec::new();
                for number in 0..shared {
                    let place = area + 4 * u64::from(bytes.u32(XATTR_HEAD + 4 * number)?);
                    let rest = self.meta.slice(place, (self.meta.0.len() as u64).saturating_sub(place))?;
                    let length = super::xattrs::entry_length(rest)
                        .ok_or(Damage("an extended attribute ends outside of it"))?;
                    entries.push(&rest[..length]);
                }
                let own = XATTR_HEAD + 4 * shared;
                entries.push(bytes.slice(
                    own,
                    length.checked_sub(own).ok_or(Damage("an inode's attributes are cut off"))?,
                )?);
                tree.sets.read(entries)?
            }
        };
        let content = match raw.mode & KIND {
            0o040_000 => Content::Folder { first: u32::MAX, parent: 0, entry: u32::MAX },
            0o120_000 => {
                let target = self.content(&raw, after)?;
                tree.symlink(&target).map_err(Damage)?
            }
            0o100_000 => self.file(&raw, after)?,
            0o020_000 | 0o060_000 => Content::Device(raw.place),
            0o010_000 | 0o140_000 => Content::Nothing,
            _ => return Err(Damage("an inode is of no kind")),
        };
        let inode = Inode {
            mode: raw.mode,
            uid: raw.uid,
            gid: raw.gid,
            nanos: raw.nanos,
            mtime: raw.mtime,
            xattrs,
            content,
        };
        Ok((inode, after))
    }

    fn file(&self, raw: &RawInode, after: u64) -> Result<Content, Damage> {
        let block = 1_u64 << self.header.bits;
        let place = |device: u16, at: u32, length: u64| {
            let end = if device == 0 { self.header.meta_block } else { self.tar };
            let inside =
                device <= self.header.devices && u64::from(at) + length.div_ceil(block) <= end.into();
            let sector = u64::from(at) << (self.header.bits - SECTOR_BITS);
            let sector = u32::try_from(sector).ok().filter(|sector| inside && *sector != HOLE);
            sector.ok_or(Damage("the data of a file is outside of it"))
        };
        let size = raw.size;
        match raw.layout {
            _ if size == 0 => Ok(Content::File { size, place: Box::new(Place::Nowhere) }),
            Layout::Plain => Ok(Content::Plain { size, device: 0, block: place(0, raw.place, size)? }),
            Layout::Chunks => {
                let bits = chunk_bits(raw.place, self.header.bits)?;
                let count = ((size - 1) >> bits) + 1;
                let index = Reader(
                    self.meta.slice(after.next_multiple_of(CHUNK_SIZE), count.saturating_mul(CHUNK_SIZE))?,
                );
                let mut on = None;
                let mut blocks = Vec::with_capacity(count as usize);
                for number in 0..count {
                    let (at, device) =
                        (index.u32(number * CHUNK_SIZE + 4)?, index.u16(number * CHUNK_SIZE + 2)?);
                    if at == HOLE {
                        blocks.push(HOLE);
                        continue;
                    }
                    if *on.get_or_insert(device) != device {
                        return Err(Damage("the data of a file is on several devices"));
                    }
                    blocks.push(place(device, at, (1 << bits).min(size - (number << bits)))?);
                }
                let device = on.unwrap_or(0);
                if let [block] = blocks[..]
                    && device > 0
                {
                    return Ok(Content::Plain { size, device, block });
                }
                let place = Place::Chunks { bits, device, blocks: blocks.into() };
                Ok(Content::File { size, place: Box::new(place) })
            }
            Layout::Inline => Err(Damage("a file is laid out as this program does not do it")),
        }
    }

    /// What a folder or a symbolic link holds.
    fn content(&self, raw: &RawInode, after: u64) -> Result<Vec<u8>, Damage> {
        let inline = if raw.layout == Layout::Inline { raw.size % (1 << self.header.bits) } else { 0 };
        let whole = raw.size - inline;
        let mut content = Vec::new();
        if whole > 0 {
            let block =
                raw.place.checked_sub(self.header.meta_block).ok_or(Damage("a folder is outside of it"))?;
            content.extend_from_slice(self.meta.slice(u64::from(block) << self.header.bits, whole)?);
        }
        content.extend_from_slice(self.meta.slice(after, inline)?);
        Ok(content)
    }

    /// The names in a folder, and the nids of what they name.
    fn entries(&self, raw: &RawInode, after: u64) -> Result<Vec<(Vec<u8>, u64)>, Damage> {
        let content = self.content(raw, after)?;
        let mut entries = Vec::new();
        for block in content.chunks(1 << self.header.bits) {
            let bytes = Reader(block);
            let names = u64::from(bytes.u16(8)?);
            let count = names / ENTRY_SIZE as u64;
            for number in 0..count {
                let at = number * ENTRY_SIZE as u64;
                let start = u64::from(bytes.u16(at + 8)?);
                let end = match number + 1 < count {
                    true => u64::from(bytes.u16(at + ENTRY_SIZE as u64 + 8)?),
                    false => block.len() as u64,
                };
                let name = bytes
                    .slice(start, end.checked_sub(start).ok_or(Damage("a name ends before it begins"))?)?;
                // Zeros fill the block behind the last name.
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                entries.push((name.to_vec(), bytes.u64(at)?));
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::erofs::{Kind, Options, Writer, layers::Layers};

    /// An image with something of everything.
    fn image() -> Vec<u8> {
        let mut tree = Tree::new();
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let mut writer = Writer::new(file.reopen().expect("it is there")).expect("there is room");
        let put = |tree: &mut Tree, folder, name: &str, kind| {
            let xattrs =
                tree.xattrs([(&b"user.a"[..], name.as_bytes()), (b"trusted.b", b"x")]).expect("known");
            let meta = Meta { mode: 0o755, uid: 1, gid: 70_000, mtime: (-1, 5), xattrs };
            tree.put(folder, name.as_bytes(), meta, kind).expect("the name is good")
        };
        let root = tree.root();
        let folder = put(&mut tree, root, "folder", Kind::Folder);
        put(&mut tree, root, "link", Kind::Symlink(b"folder/target"));
        put(&mut tree, root, "device", Kind::Char(1, 3));
        let content = [7; 5000];
        let data = writer.data(&mut &content[..], &[(0, 5000)], 5000).expect("there is room");
        let plain = put(&mut tree, folder, "plain", Kind::File(5000, data));
        tree.link(folder, b"again", plain).expect("the name is good");
        let data = writer.data(&mut &content[..], &[(9000, 5000)], 100_000).expect("there is room");
        put(&mut tree, folder, "sparse", Kind::File(100_000, data));
        for number in 0..300 {
            put(&mut tree, folder, &format!("a-name-that-is-long-{number}"), Kind::Fifo);
        }
        writer.finish(&mut tree, &Options::default()).expect("there is room");
        std::fs::read(file.path()).expect("it is there")
    }

    fn written(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("there is room");
        file.write_all(bytes).expect("there is room");
        file
    }

    #[test]
    fn a_tree_that_was_read_is_written_as_it_was() {
        let bytes = image();
        let file = written(&bytes);
        let opened = Opened::open(file.path()).expect("it is an image");
        let mut tree = opened.tree(file.path()).expect("it is whole");

        let again = tempfile::NamedTempFile::new().expect("there is room");
        std::fs::copy(file.path(), again.path()).expect("there is room");
        let writer = Writer::behind_data(again.reopen().expect("it is there"), &opened.header);
        writer.expect("there is room").finish(&mut tree, &Options::default()).expect("there is room");

        assert!(std::fs::read(again.path()).expect("it is there") == bytes, "bit for bit");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn a_damaged_image_is_an_error_or_read(changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
            let mut bytes = image();
            // The metadata, where the checksum does not look.
            let start = 5 << BLOCK_BITS;
            for (at, value) in changes {
                let length = bytes.len();
                bytes[start + usize::from(at) % (length - start)] = value;
            }
            let file = written(&bytes);
            // Whatever comes of it, nothing panics.
            let _ = Layers::open(vec![file.path().to_owned()]);
        }
    }
}
