//! A dm-verity tree behind an image: the kernel then checks each block that it reads against one root hash.
//!
//! ```text
//! image │ superblock of the tree │ hashes of hashes (the root's block first) │ hashes of blocks
//! ```
//!
//! This is what `veritysetup format --hash-offset` writes (cryptsetup, "DMVerity": on-disk format version 1), so
//! `veritysetup open <file> <name> <file> <root hash> --hash-offset=<offset>` makes a device of it.

use std::{fs::File, io, os::unix::fs::FileExt};

use sha2::{Digest, Sha256};

use super::{Image, format::BLOCK_BITS};

/// How much is hashed at once, in bytes.
const BLOCK: u64 = 1 << BLOCK_BITS;
/// How many hashes a block has.
const HASHES: u64 = BLOCK / HASH as u64;
const HASH: usize = 32;

/// The tree that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verity {
    /// The hash that stands for the whole image.
    pub root: [u8; HASH],
    /// Where the tree begins in the file, in bytes: the image's length.
    pub offset: u64,
}

impl Image {
    /// Appends a dm-verity tree to the file. `salt` goes into every hash, and `uuid` tells the tree from others; the same image
    /// with the same ones gives the same bytes. Nothing is synced.
    ///
    /// # Errors
    ///
    /// What the system answers; [`io::ErrorKind::InvalidInput`] for a salt of more than 256 bytes, and for an index.
    pub fn append_verity(&self, salt: &[u8], uuid: [u8; 16]) -> io::Result<Verity> {
        let offset = self.length();
        if self.header.bits != BLOCK_BITS {
            let reason = "the data of an index is in a tar, where the tree would not reach it";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let root = Tree { file: &self.file, salt, offset, blocks: offset / BLOCK }.write(uuid)?;
        Ok(Verity { root, offset })
    }
}

struct Tree<'a> {
    file: &'a File,
    salt: &'a [u8],
    offset: u64,
    /// How many blocks are hashed.
    blocks: u64,
}

impl Tree<'_> {
    fn write(&self, uuid: [u8; 16]) -> io::Result<[u8; HASH]> {
        let mut header = vec![0; BLOCK as usize];
        header[..8].copy_from_slice(b"verity\0\0");
        header[8..12].copy_from_slice(&1_u32.to_le_bytes());
        header[12..16].copy_from_slice(&1_u32.to_le_bytes());
        header[16..32].copy_from_slice(&uuid);
        header[32..38].copy_from_slice(b"sha256");
        header[64..68].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        header[68..72].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        header[72..80].copy_from_slice(&self.blocks.to_le_bytes());
        let Some(salt) = header[88..344].get_mut(..self.salt.len()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a salt has at most 256 bytes"));
        };
        salt.copy_from_slice(self.salt);
        header[80..82].copy_from_slice(&(self.salt.len() as u16).to_le_bytes());
        self.file.write_all_at(&header, self.offset)?;

        // How many blocks each level has, the lowest first, until one block is left.
        let mut levels = Vec::new();
        let mut count = self.blocks;
        while count > 1 {
            count = count.div_ceil(HASHES);
            levels.push(count);
        }
        // The highest comes first.
        let mut end = self.offset + BLOCK + levels.iter().sum::<u64>() * BLOCK;
        let (mut from, mut count) = (0, self.blocks);
        for level in levels {
            end -= level * BLOCK;
            self.level(from, count, end)?;
            (from, count) = (end, level);
        }
        Ok(self.hash(&self.block(from)?))
    }

    /// Writes the hashes of some blocks.
    fn level(&self, from: u64, count: u64, to: u64) -> io::Result<()> {
        for group in 0..count.div_ceil(HASHES) {
            let mut hashes = vec![0; BLOCK as usize];
            let here = (group * HASHES..count).zip(hashes.chunks_mut(HASH));
            for (block, hash) in here {
                hash.copy_from_slice(&self.hash(&self.block(from + block * BLOCK)?));
            }
            self.file.write_all_at(&hashes, to + group * BLOCK)?;
        }
        Ok(())
    }

    fn block(&self, offset: u64) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK as usize];
        self.file.read_exact_at(&mut block, offset)?;
        Ok(block)
    }

    fn hash(&self, block: &[u8]) -> [u8; HASH] {
        Sha256::new().chain_update(self.salt).chain_update(block).finalize().into()
    }
}
