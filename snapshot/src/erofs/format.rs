//! The bytes of an EROFS image, as far as we write them: superblock, inodes, directory entries, chunk indexes, device slots.
//!
//! All numbers are little-endian. The kernel's `Documentation/filesystems/erofs.rst` has the picture. An inode is named by its
//! **nid**: its offset from the start of the metadata, in slots of 32 bytes.

use std::fmt;

/// The size (its logarithm) of the blocks of an image that has its data in itself.
pub(super) const BLOCK_BITS: u32 = 12;
/// The size (its logarithm) of the blocks of an image whose data is in a tar, where files begin at any multiple of that. In these
/// units, places are also counted in memory.
pub(super) const SECTOR_BITS: u32 = 9;
/// What a nid counts.
pub(super) const SLOT: u64 = 32;
/// Where the superblock is, and how long it is.
pub(super) const SUPER_OFFSET: usize = 1024;
pub(super) const SUPER_SIZE: usize = 128;
/// How long an inode is before its attributes.
pub(super) const INODE_SIZE: u64 = 64;
/// How long the head of an inode's attributes is.
pub(super) const XATTR_HEAD: u64 = 12;
/// How long the fixed part of a directory entry is.
pub(super) const ENTRY_SIZE: usize = 12;
/// How long a chunk index is.
pub(super) const CHUNK_SIZE: u64 = 8;
/// How long a device slot is.
pub(super) const DEVICE_SIZE: u64 = 128;
/// The block of a chunk that is a hole.
pub(super) const HOLE: u32 = u32::MAX;
/// The longest name.
pub(super) const NAME_MAX: usize = 255;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;

/// Where the data of an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In blocks that follow each other.
    Plain,
    /// The same, but what does not fill a block follows the inode.
    Inline,
    /// In chunks, each anywhere.
    Chunks,
}

/// The superblock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Super {
    /// The size (its logarithm) of all blocks.
    pub(super) bits: u32,
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) build_time: u64,
    pub(super) build_nanos: u32,
    /// The size of the image, in blocks.
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) xattr_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) chunks: bool,
    pub(super) devices: u16,
    /// Where the device slots are, in slots.
    pub(super) device_slot: u16,
}

/// How long a superblock's checksum is: that of its block from there on, if that is the first one.
fn checked(bits: u32) -> usize {
    match 1 << bits {
        block if block > SUPER_OFFSET => block - SUPER_OFFSET,
        block => block,
    }
}

impl Super {
    /// Writes it, with its checksum, into the beginning of an image, where the device slots are already.
    pub(super) fn put(&self, first: &mut [u8]) {
        let features = if self.chunks { INCOMPAT_CHUNKED_FILE } else { 0 }
            | if self.devices > 0 { INCOMPAT_DEVICE_TABLE } else { 0 };
        // With small blocks the checksum is there for us alone: erofs-utils up to 1.8 take it for one of a length below zero.
        let checksummed = if self.bits == BLOCK_BITS { COMPAT_CHECKSUM } else { 0 };
        let mut out = Bytes::new(&mut first[SUPER_OFFSET..SUPER_OFFSET + SUPER_SIZE]);
        out.u32(MAGIC).u32(0).u32(COMPAT_MTIME | checksummed).u8(self.bits as u8).u8(0);
        out.u16(self.root_nid).u64(self.inodes).u64(self.build_time).u32(self.build_nanos);
        out.u32(self.blocks).u32(self.meta_block).u32(self.xattr_block).bytes(&self.uuid).bytes(&[0; 16]);
        out.u32(features)
            .u16(0)
            .u16(self.devices)
            .u16(self.device_slot)
            .u8(0)
            .u8(0)
            .u32(0)
            .u64(0)
            .bytes(&[0; 24]);
        let checksum = checksum(&first[SUPER_OFFSET..SUPER_OFFSET + checked(self.bits)]);
        first[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads it from the first bytes of an image.
    pub(super) fn get(first: &[u8]) -> Result<Self, Damage> {
        let bytes = Reader(first.get(SUPER_OFFSET..).ok_or(Damage("it is too short"))?);
        if bytes.u32(0)? != MAGIC {
            return Err(Damage("it is no EROFS image"));
        }
        let (stored, features, bits) = (bytes.u32(4)?, bytes.u32(80)?, bytes.u8(12)?.into());
        if ![SECTOR_BITS, BLOCK_BITS].contains(&bits)
            || features & !(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE) != 0
        {
            return Err(Damage("it has features that this program does not write"));
        }
        let read = Self {
            bits,
            root_nid: bytes.u16(14)?,
            inodes: bytes.u64(16)?,
            build_time: bytes.u64(24)?,
            build_nanos: bytes.u32(32)?,
            blocks: bytes.u32(36)?,
            meta_block: bytes.u32(40)?,
            xattr_block: bytes.u32(44)?,
            uuid: bytes.array(48)?,
            chunks: features & INCOMPAT_CHUNKED_FILE != 0,
            devices: bytes.u16(86)?,
            device_slot: bytes.u16(88)?,
        };
        let mut block = bytes.slice(0, checked(bits) as u64)?.to_vec();
        block[4..8].fill(0);
        match checksum(&block) == stored {
            true => Ok(read),
            false => Err(Damage("the checksum of its superblock is wrong")),
        }
    }
}

/// The checksum of a superblock: CRC-32C without the last inversion.
fn checksum(block: &[u8]) -> u32 {
    !crc32c::crc32c(block)
}

/// An inode's own 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RawInode {
    pub(super) layout: Layout,
    /// How long its attributes are, in bytes: none, or the head and a multiple of four.
    pub(super) xattr_bytes: u64,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// A block, a device's number or a format of chunks.
    pub(super) place: u32,
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) nanos: u32,
    pub(super) links: u32,
}

impl RawInode {
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunks => 4,
        };
        let words = if self.xattr_bytes == 0 { 0 } else { 1 + (self.xattr_bytes - XATTR_HEAD) / 4 };
        let start = out.len();
        out.resize(start + INODE_SIZE as usize, 0);
        let mut to = Bytes::new(&mut out[start..]);
        to.u16(1 | layout << 1)
            .u16(u16::try_from(words).expect("attributes are limited"))
            .u16(self.mode)
            .u16(0);
        to.u64(self.size).u32(self.place).u32(self.number).u32(self.uid).u32(self.gid);
        to.u64(self.mtime.cast_unsigned()).u32(self.nanos).u32(self.links);
    }

    pub(super) fn get(bytes: &[u8]) -> Result<Self, Damage> {
        let bytes = Reader(bytes);
        let layout = match bytes.u16(0)? {
            1 => Layout::Plain,
            5 => Layout::Inline,
            9 => Layout::Chunks,
            _ => return Err(Damage("an inode has a format that this program does not write")),
        };
        let words = u64::from(bytes.u16(2)?);
        Ok(Self {
            layout,
            xattr_bytes: if words == 0 { 0 } else { XATTR_HEAD + (words - 1) * 4 },
            mode: bytes.u16(4)?,
            size: bytes.u64(8)?,
            place: bytes.u32(16)?,
            number: bytes.u32(20)?,
            uid: bytes.u32(24)?,
            gid: bytes.u32(28)?,
            mtime: bytes.u64(32)?.cast_signed(),
            nanos: bytes.u32(40)?,
            links: bytes.u32(44)?,
        })
    }
}

/// How chunks of a size are announced: the logarithm of the size, and that each has an index.
pub(super) fn chunk_format(bits: u32, block_bits: u32) -> u32 {
    0x20 | (bits - block_bits)
}

/// The logarithm of the size of chunks.
pub(super) fn chunk_bits(format: u32, block_bits: u32) -> Result<u32, Damage> {
    match format & !0x3f {
        0 if format & 0x20 != 0 => Ok(block_bits + (format & 0x1f)),
        _ => Err(Damage("a chunk format is not known")),
    }
}

/// Writes where a chunk is.
pub(super) fn put_chunk(out: &mut Vec<u8>, device: u16, block: u32) {
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&device.to_le_bytes());
    out.extend_from_slice(&block.to_le_bytes());
}

/// Writes the slot of a device that has so many blocks.
pub(super) fn put_device(out: &mut Vec<u8>, tag: &[u8], blocks: u32) {
    let start = out.len();
    out.resize(start + DEVICE_SIZE as usize, 0);
    out[start..start + tag.len().min(64)].copy_from_slice(&tag[..tag.len().min(64)]);
    out[start + 64..start + 68].copy_from_slice(&blocks.to_le_bytes());
}

/// A device as its number is stored: the way of the kernel's `new_encode_dev`.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The kind of a directory entry, from a file's mode.
pub(super) fn entry_kind(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o04 => 2,
        0o02 => 3,
        0o06 => 4,
        0o01 => 5,
        0o14 => 6,
        0o12 => 7,
        _ => 0,
    }
}

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage(pub(super) &'static str);

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Writes numbers one after the other.
struct Bytes<'a>(&'a mut [u8]);

impl<'a> Bytes<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let (to, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        to.copy_from_slice(bytes);
        self.0 = rest;
        self
    }

    fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
}

/// Reads numbers at offsets; what is not there is damage.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn slice(&self, offset: u64, length: u64) -> Result<&'a [u8], Damage> {
        let range = usize::try_from(offset).ok().zip(usize::try_from(length).ok());
        range
            .and_then(|(offset, length)| self.0.get(offset..offset.checked_add(length)?))
            .ok_or(Damage("something is outside of it"))
    }

    pub(super) fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], Damage> {
        Ok(self.slice(offset, N as u64)?.try_into().expect("it was cut to that length"))
    }

    pub(super) fn u8(&self, offset: u64) -> Result<u8, Damage> {
        Ok(self.array::<1>(offset)?[0])
    }

    pub(super) fn u16(&self, offset: u64) -> Result<u16, Damage> {
        Ok(u16::from_le_bytes(self.array(offset)?))
    }

    pub(super) fn u32(&self, offset: u64) -> Result<u32, Damage> {
        Ok(u32::from_le_bytes(self.array(offset)?))
    }

    pub(super) fn u64(&self, offset: u64) -> Result<u64, Damage> {
        Ok(u64::from_le_bytes(self.array(offset)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read_as_it_was_written_and_every_flipped_byte_is_noticed() {
        for bits in [SECTOR_BITS, BLOCK_BITS] {
            let written = Super {
                bits,
                root_nid: 1,
                inodes: 7,
                build_time: 1_700_000_000,
                build_nanos: 5,
                blocks: 900,
                meta_block: 800,
                xattr_block: 899,
                uuid: *b"0123456789abcdef",
                chunks: true,
                devices: 3,
                device_slot: 9,
            };
            let mut first = vec![0; 4096];
            written.put(&mut first);

            assert_eq!(Super::get(&first), Ok(written));
            for at in SUPER_OFFSET..SUPER_OFFSET + checked(bits) {
                first[at] ^= 1;
                assert!(Super::get(&first).is_err(), "byte {at}");
                first[at] ^= 1;
            }
        }
    }

    #[test]
    fn an_inode_is_read_as_it_was_written() {
        for (layout, xattr_bytes) in [(Layout::Plain, 0), (Layout::Inline, 12), (Layout::Chunks, 12 + 400)] {
            let written = RawInode {
                layout,
                xattr_bytes,
                mode: 0o104_755,
                size: 1 << 40,
                place: 7,
                number: 9,
                uid: u32::MAX - 1,
                gid: 70_000,
                mtime: -5,
                nanos: 999_999_999,
                links: 3,
            };
            let mut bytes = Vec::new();
            written.put(&mut bytes);
            assert_eq!(bytes.len() as u64, INODE_SIZE);
            assert_eq!(RawInode::get(&bytes), Ok(written));
        }
    }

    #[test]
    fn device_numbers_are_those_of_the_kernel() {
        for (major, minor, number) in
            [(0, 0, 0), (1, 3, 0x103), (8, 0x12_345, 0x1230_0845), (0xfff, 0xff, 0xf_ffff)]
        {
            assert_eq!(device_number(major, minor), number, "{major}:{minor}");
        }
    }
}
