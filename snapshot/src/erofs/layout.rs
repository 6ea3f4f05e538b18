//! The metadata of an image: where each inode goes, and its bytes.
//!
//! ```text
//! inodes, each with its attributes and the end of its entries │ blocks of entries │ shared attributes
//! ```

use std::{collections::HashMap, io};

use super::{
    Tree, Writer,
    format::{
        CHUNK_SIZE, ENTRY_SIZE, HOLE, INODE_SIZE, Layout, RawInode, SECTOR_BITS, SLOT, XATTR_HEAD,
        chunk_format, entry_kind, put_chunk,
    },
    place::Place,
    tree::{Content, Node},
    xattrs::XattrSet,
};

/// How many shared attributes an inode may have.
const SHARED_MAX: usize = 255;

/// Where everything goes.
#[derive(Debug)]
pub(super) struct Plan {
    /// All nodes, in the order of their inodes: those of one folder follow each other.
    order: Vec<Node>,
    /// The slot of each node's inode; 0 if it has no name any more.
    slots: Vec<u32>,
    /// How many names each node has.
    links: Vec<u32>,
    /// For nodes whose content takes whole blocks: the first of them.
    blocks: HashMap<Node, u32>,
    /// For nodes whose content does not end with the inode, although it does not fill a block.
    apart: std::collections::HashSet<Node>,
    shared: Shared,
    /// The size (its logarithm) of a block.
    bits: u32,
    meta_block: u32,
    inode_bytes: u64,
    xattr_block: u32,
    chunks: bool,
}

/// The attributes that several inodes have: kept once.
#[derive(Debug, Default)]
struct Shared {
    /// How many inodes have each set.
    uses: Vec<u32>,
    bytes: Vec<u8>,
    /// For each set that is shared, where its entries are, in units of four bytes.
    places: HashMap<XattrSet, Vec<u32>>,
}

impl Plan {
    /// Plans the metadata behind `meta_block`, in blocks of that size (its logarithm). `None` if there is no room for it.
    pub(super) fn new(tree: &mut Tree, meta_block: u32, bits: u32) -> Option<Self> {
        let block = 1 << bits;
        let (order, links) = walk(tree);
        let shared = Shared::new(tree, &order);
        let mut slots = vec![0; tree.inodes.len()];
        let (mut apart, mut chunks) = (std::collections::HashSet::new(), false);
        let mut full = Vec::new();
        // No inode has the number 0: programs take it for "none".
        let mut at = SLOT;
        for node in &order {
            let head = INODE_SIZE + shared.length(tree, *node);
            let content = content_length(tree, *node, block);
            let (mut whole, mut rest) = (content / block, content % block);
            // What follows the inode is in one block; of a symbolic link, in the inode's own.
            let within =
                |at: u64| if tree.target(*node).is_some() { at % block + head } else { (at + head) % block };
            if rest > 0 && within(0) + rest > block {
                // It never fits: a block of its own.
                apart.insert(*node);
                (whole, rest) = (whole + 1, 0);
            }
            if rest > 0 && within(at) + rest > block {
                at = at.next_multiple_of(block);
            }
            if whole > 0 {
                full.push((*node, whole));
            }
            slots[node.0 as usize] = u32::try_from(at / SLOT).ok()?;
            at += head + rest;
            if let Some(count) = chunk_count(tree, *node) {
                if matches!(tree.inode(*node).content, Content::Plain { size, .. } if size >> 31 > block) {
                    // A chunk has at most 2^31 blocks.
                    return None;
                }
                chunks = true;
                at = at.next_multiple_of(CHUNK_SIZE) + count * CHUNK_SIZE;
            }
            at = at.next_multiple_of(SLOT);
        }
        let inode_bytes = at.next_multiple_of(block);
        let mut next = u64::from(meta_block) + inode_bytes / block;
        let mut blocks = HashMap::new();
        for (node, count) in full {
            blocks.insert(node, u32::try_from(next).ok()?);
            next += count;
        }
        let xattr_block = u32::try_from(next).ok()?;
        Some(Self {
            order,
            slots,
            links,
            blocks,
            apart,
            shared,
            bits,
            meta_block,
            inode_bytes,
            xattr_block,
            chunks,
        })
    }

    /// How long the metadata is, in bytes.
    pub(super) fn length(&self) -> u64 {
        (u64::from(self.xattr_block - self.meta_block) << self.bits) + self.shared.bytes.len() as u64
    }

    pub(super) fn root(&self) -> u16 {
        u16::try_from(self.slots[0]).expect("the root comes first")
    }

    pub(super) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    pub(super) fn xattr_block(&self) -> u32 {
        self.xattr_block
    }

    pub(super) fn has_chunks(&self) -> bool {
        self.chunks
    }

    /// Writes it all.
    pub(super) fn write(&self, tree: &Tree, out: &mut Writer) -> io::Result<()> {
        let mut at = 0;
        let mut bytes = Vec::new();
        for (number, node) in self.order.iter().enumerate() {
            let slot = u64::from(self.slots[node.0 as usize]) * SLOT;
            bytes.clear();
            bytes.resize((slot - at) as usize, 0);
            self.inode(tree, *node, number as u32 + 1, &mut bytes);
            out.put(&bytes)?;
            at += bytes.len() as u64;
        }
        bytes.clear();
        bytes.resize((self.inode_bytes - at) as usize, 0);
        out.put(&bytes)?;
        for node in self.order.iter().filter(|node| self.blocks.contains_key(node)) {
            let content = self.content(tree, *node);
            let whole = if self.apart.contains(node) {
                content.len()
            } else {
                content.len() >> self.bits << self.bits
            };
            out.put(&content[..whole])?;
            out.align()?;
        }
        out.put(&self.shared.bytes)?;
        out.align()
    }

    /// An inode with all that follows it.
    fn inode(&self, tree: &Tree, node: Node, number: u32, out: &mut Vec<u8>) {
        let inode = tree.inode(node);
        let start = out.len();
        let content = self.content(tree, node);
        let rest = if self.apart.contains(&node) { 0 } else { content.len() % (1 << self.bits) };
        let block = self.blocks.get(&node).copied();
        let (layout, size, place) = match &inode.content {
            Content::Folder { .. } | Content::Symlink { .. } => {
                let layout = if rest > 0 { Layout::Inline } else { Layout::Plain };
                (layout, content.len() as u64, block.unwrap_or(u32::MAX))
            }
            Content::Plain { size, device: 0, block } => (Layout::Plain, *size, self.block(*block)),
            Content::Plain { size, .. } => {
                (Layout::Chunks, *size, chunk_format(one_chunk(*size, self.bits), self.bits))
            }
            Content::File { size, place } => match &**place {
                Place::Chunks { bits, .. } => (Layout::Chunks, *size, chunk_format(*bits, self.bits)),
                _ => (Layout::Plain, *size, u32::MAX),
            },
            Content::Device(number) => (Layout::Plain, 0, *number),
            Content::Nothing => (Layout::Plain, 0, 0),
        };
        let raw = RawInode {
            layout,
            xattr_bytes: self.shared.length(tree, node),
            mode: inode.mode,
            size,
            place,
            number,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            nanos: inode.nanos,
            links: self.links[node.0 as usize],
        };
        raw.put(out);
        self.shared.put(tree, inode.xattrs, out);
        out.extend_from_slice(&content[content.len() - rest..]);
        if chunk_count(tree, node).is_some() {
            // An inode begins at a multiple of the size of a chunk index.
            let length = (out.len() - start).next_multiple_of(CHUNK_SIZE as usize);
            out.resize(start + length, 0);
        }
        match &inode.content {
            Content::Plain { device, block, .. } if *device > 0 => {
                put_chunk(out, *device, self.block(*block));
            }
            Content::File { place, .. } => {
                if let Place::Chunks { device, blocks, .. } = &**place {
                    blocks.iter().for_each(|block| put_chunk(out, *device, self.block(*block)));
                }
            }
            _ => {}
        }
    }

    /// The block of a place.
    fn block(&self, sector: u32) -> u32 {
        if sector == HOLE { HOLE } else { sector >> (self.bits - SECTOR_BITS) }
    }

    /// What a folder or a symbolic link holds.
    fn content(&self, tree: &Tree, node: Node) -> Vec<u8> {
        if let Some(target) = tree.target(node) {
            return target.to_vec();
        }
        let mut out = Vec::new();
        let entries = entries(tree, node);
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let (here, after) = rest.split_at(in_one_block(rest, 1 << self.bits));
            let start = out.len();
            let mut name = here.len() * ENTRY_SIZE;
            for (text, child) in here {
                out.extend_from_slice(&u64::from(self.slots[child.0 as usize]).to_le_bytes());
                out.extend_from_slice(&(name as u16).to_le_bytes());
                out.extend_from_slice(&[entry_kind(tree.inode(*child).mode), 0]);
                name += text.len();
            }
            here.iter().for_each(|(text, _)| out.extend_from_slice(text));
            if !after.is_empty() {
                out.resize(start + (1 << self.bits), 0);
            }
            rest = after;
        }
        out
    }
}

impl Shared {
    fn new(tree: &Tree, order: &[Node]) -> Self {
        let mut shared = Self { uses: vec![0; tree.sets.len()], ..Self::default() };
        for node in order {
            shared.uses[tree.inode(*node).xattrs.0 as usize] += 1;
        }
        let mut known: HashMap<&[u8], u32> = HashMap::new();
        for node in order {
            let set = tree.inode(*node).xattrs;
            if set == XattrSet::default()
                || shared.uses[set.0 as usize] < 2
                || shared.places.contains_key(&set)
            {
                continue;
            }
            if tree.sets.entries(set).count() > SHARED_MAX {
                continue;
            }
            let mut places = Vec::new();
            for entry in tree.sets.entries(set) {
                let next = (shared.bytes.len() / 4) as u32;
                let place = *known.entry(entry).or_insert(next);
                if place == next {
                    shared.bytes.extend_from_slice(entry);
                }
                places.push(place);
            }
            shared.places.insert(set, places);
        }
        shared
    }

    /// How long a node's attributes are, as they follow its inode.
    fn length(&self, tree: &Tree, node: Node) -> u64 {
        let set = tree.inode(node).xattrs;
        match self.places.get(&set) {
            _ if set == XattrSet::default() => 0,
            Some(places) => XATTR_HEAD + 4 * places.len() as u64,
            None => XATTR_HEAD + tree.sets.raw(set).len() as u64,
        }
    }

    fn put(&self, tree: &Tree, set: XattrSet, out: &mut Vec<u8>) {
        if set == XattrSet::default() {
            return;
        }
        let places = self.places.get(&set);
        out.extend_from_slice(&[
            0,
            0,
            0,
            0,
            places.map_or(0, |places| places.len() as u8),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        match places {
            Some(places) => places.iter().for_each(|place| out.extend_from_slice(&place.to_le_bytes())),
            None => out.extend_from_slice(tree.sets.raw(set)),
        }
    }
}

/// All nodes that have a name, folder after folder, and how many names each has.
fn walk(tree: &mut Tree) -> (Vec<Node>, Vec<u32>) {
    let mut links = vec![0; tree.inodes.len()];
    let mut order = vec![tree.root()];
    links[0] = 2;
    let mut next = 0;
    while let Some(folder) = order.get(next).copied() {
        next += 1;
        if !tree.is_folder(folder) {
            continue;
        }
        tree.sort(folder);
        for (_, child) in tree.children(folder) {
            let is_folder = tree.is_folder(child);
            let known = &mut links[child.0 as usize];
            if *known == 0 {
                order.push(child);
            }
            // A folder is also in itself, as `.`, and in those inside, as `..`.
            *known += 1 + u32::from(is_folder);
            if is_folder {
                links[folder.0 as usize] += 1;
            }
        }
    }
    (order, links)
}

/// The entries of a folder, itself and its parent included, in the order of an image.
fn entries(tree: &Tree, folder: Node) -> Vec<(&[u8], Node)> {
    let Some(parent) = tree.parent(folder) else { return Vec::new() };
    let mut entries: Vec<_> = tree.children(folder).collect();
    for (name, node) in [(&b"."[..], folder), (b"..", parent)] {
        let at = entries.partition_point(|(other, _)| *other < name);
        entries.insert(at, (name, node));
    }
    entries
}

/// How many of some entries fit one block, from the first.
fn in_one_block(entries: &[(&[u8], Node)], block: u64) -> usize {
    let mut length = 0;
    let fits = |(name, _): &&(&[u8], Node)| {
        length += ENTRY_SIZE + name.len();
        length as u64 <= block
    };
    entries.iter().take_while(fits).count()
}

/// How long the entries of a folder or the target of a link are, in bytes.
fn content_length(tree: &Tree, node: Node, block: u64) -> u64 {
    if let Some(target) = tree.target(node) {
        return target.len() as u64;
    }
    let entries = entries(tree, node);
    let mut rest = &entries[..];
    let mut length = 0;
    while !rest.is_empty() {
        let (here, after) = rest.split_at(in_one_block(rest, block));
        length += match after {
            [] => here.iter().map(|(name, _)| ENTRY_SIZE as u64 + name.len() as u64).sum(),
            _ => block,
        };
        rest = after;
    }
    length
}

/// How many chunk indexes follow an inode; `None` if its data is not in chunks.
fn chunk_count(tree: &Tree, node: Node) -> Option<u64> {
    match &tree.inode(node).content {
        Content::Plain { device, .. } if *device > 0 => Some(1),
        Content::File { place, .. } => match &**place {
            Place::Chunks { blocks, .. } => Some(blocks.len() as u64),
            _ => None,
        },
        _ => None,
    }
}

/// The size (its logarithm) of a chunk that holds a whole file.
pub(super) fn one_chunk(size: u64, block_bits: u32) -> u32 {
    (block_bits..64).find(|bits| size <= 1 << bits).expect("files are not that large")
}
