//! Where the data of files is.

use super::{
    format::HOLE,
    tree::{Content, Node, Tree},
};

/// Where the data of a file is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Data(pub(super) Place);

/// Where the data of a file is on a device, in units of 512 bytes. Device 0 is the image itself, device 1 the tar that it is an index of;
/// in the merged tree of some layers, higher ones are theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// There is none.
    #[default]
    Nowhere,
    /// In one piece.
    At { device: u16, block: u32 },
    /// In chunks of that size (its logarithm), some of them holes.
    Chunks { bits: u32, device: u16, blocks: Box<[u32]> },
}

/// Some data of a file: its offset there, where it is, in units of 512 bytes, and its length in bytes.
pub(super) type Piece = (u64, u32, u64);

impl Tree {
    /// Says where the data of a file is.
    pub(super) fn set_data(&mut self, node: Node, Data(data): Data) {
        match (&mut self.inodes[node.0 as usize].content, data) {
            (Content::Plain { device, block, .. }, Place::At { device: new, block: there }) => {
                (*device, *block) = (new, there);
            }
            (content @ (Content::Plain { .. } | Content::File { .. }), place) => {
                let (Content::Plain { size, .. } | Content::File { size, .. }) = *content else { return };
                *content = Content::File { size, place: Box::new(place) };
            }
            _ => {}
        }
    }

    /// The size of a file, the device that its data is on, and where on it each piece is.
    pub(super) fn data_of(&self, node: Node) -> Option<(u64, u16, Vec<Piece>)> {
        match &self.inode(node).content {
            Content::Plain { size, device, block } => Some((*size, *device, vec![(0, *block, *size)])),
            Content::File { size, place } => match &**place {
                Place::Chunks { bits, device, blocks } => {
                    let pieces = blocks.iter().enumerate().filter(|(_, block)| **block != HOLE);
                    let piece = |(at, block): (usize, &u32)| {
                        let offset = (at as u64) << bits;
                        (offset, *block, (*size - offset).min(1 << bits))
                    };
                    Some((*size, *device, pieces.map(piece).collect()))
                }
                _ => None,
            },
            _ => None,
        }
    }
}
