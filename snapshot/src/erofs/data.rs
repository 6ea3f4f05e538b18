//! Writes an image from its beginning to its end: the data of files, block after block, and then the metadata.

use std::{
    fs::File,
    io::{self, BufRead},
    os::unix::fs::FileExt,
};

use super::{
    Image, Tree,
    format::{BLOCK, BLOCK_BITS, DEVICE_SIZE, HOLE, SUPER_OFFSET, SUPER_SIZE, Super, put_device},
    layout::Plan,
    place::{Data, Place},
};
use crate::sync_range::WriteBack;

/// How much is written at once, in bytes.
const BUFFER: usize = 1 << 20;
/// What is as long as this is written at once: to collect it would be one copy more.
const LARGE: usize = 64 << 10;
/// Where the device slots begin.
const DEVICES_OFFSET: u64 = (SUPER_OFFSET + SUPER_SIZE) as u64;
/// How many chunks a file with holes may have, beside some for each of its pieces.
const CHUNKS: u64 = 1024;

/// Writes an image into a file: the data of all files first, in one pass, then the metadata.
///
/// Nothing of the image can be read before [`finish`](Self::finish).
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// What is to be written at `start`: the first `filled` bytes of the buffer.
    buffer: Vec<u8>,
    filled: usize,
    start: u64,
    /// How many blocks the superblock and the device slots take.
    head: u64,
    write_back: WriteBack,
}

/// How an image is finished.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// What tells the image from others. If not set, it is all zeros, so that the same tree gives the same bytes.
    pub uuid: [u8; 16],
    /// When it was made, in seconds since the epoch. 0 by default, for the same reason.
    pub time: u64,
    /// The devices that the data of some files is on.
    pub(super) devices: Vec<Device>,
}

impl Options {
    /// Sets what tells the image from others. All zeros if not set.
    pub fn uuid(self, uuid: [u8; 16]) -> Self {
        Self { uuid, ..self }
    }

    /// Sets when the image was made, in seconds since the epoch. 0 if not set.
    pub fn time(self, time: u64) -> Self {
        Self { time, ..self }
    }
}

/// A device that holds the data of some files.
#[derive(Clone, Debug)]
pub(super) struct Device {
    /// By which it is known again.
    pub(super) tag: [u8; 64],
    pub(super) blocks: u32,
}

/// Why data could not be written into an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The data cannot be read, or ends early.
    #[error("cannot read the data")]
    Read(#[source] io::Error),
    /// An image has at most 2^32 blocks of 4,096 bytes.
    #[error("the image would be larger than 16 TiB")]
    TooLarge,
    /// The image cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

impl Writer {
    /// Begins an image in a file, which is emptied first.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub fn new(file: File) -> io::Result<Self> {
        Self::with_devices(file, 0)
    }

    /// Begins an image that has that many devices.
    pub(super) fn with_devices(file: File, devices: usize) -> io::Result<Self> {
        let head = (DEVICES_OFFSET + devices as u64 * DEVICE_SIZE).div_ceil(BLOCK);
        file.set_len(0)?;
        Ok(Self::at(file, head, head))
    }

    /// Goes on with an image without devices, behind its data: the metadata after it is written anew.
    pub(super) fn behind_data(file: File, end: u32) -> io::Result<Self> {
        file.set_len(u64::from(end) * BLOCK)?;
        Ok(Self::at(file, 1, end.into()))
    }

    fn at(file: File, head: u64, block: u64) -> Self {
        let (buffer, write_back) = (vec![0; BUFFER], WriteBack::default());
        Self { file, buffer, filled: 0, start: block * BLOCK, head, write_back }
    }

    /// Takes the data of a file in: `size` bytes, of which only `pieces` (offset and length, in order) are read from `data`.
    /// The others are holes.
    ///
    /// # Errors
    ///
    /// [`DataError`]; the image is then to be thrown away.
    ///
    /// # Panics
    ///
    /// If the pieces overlap, are not in order, or reach beyond `size`.
    pub fn data(
        &mut self,
        data: &mut dyn BufRead,
        pieces: &[(u64, u64)],
        size: u64,
    ) -> Result<Data, DataError> {
        let pieces: Vec<_> = pieces.iter().copied().filter(|(_, length)| *length > 0).collect();
        match pieces[..] {
            [] if size == 0 => Ok(Data(Place::Nowhere)),
            [(0, length)] if length == size => {
                let block = self.block(size)?;
                self.read(data, size)?;
                self.align().map_err(DataError::Write)?;
                Ok(Data(Place::At { device: 0, block }))
            }
            _ => self.chunks(data, &pieces, size).map(Data),
        }
    }

    /// Chunks are larger the less of a large file is there, so that their number is bounded by that of its pieces.
    fn chunks(
        &mut self,
        data: &mut dyn BufRead,
        pieces: &[(u64, u64)],
        size: u64,
    ) -> Result<Place, DataError> {
        let most = if pieces.is_empty() { 1 } else { CHUNKS + 16 * pieces.len() as u64 };
        let bits =
            (BLOCK_BITS..64).find(|bits| (size - 1) >> bits < most).expect("one chunk is always enough");
        let mut blocks = vec![HOLE; ((size - 1) >> bits) as usize + 1].into_boxed_slice();
        // Where in the file the next byte that is written belongs, and where the chunk that it is in ends.
        let (mut at, mut end) = (0, 0);
        for (offset, length) in pieces {
            assert!(*offset >= at.min(end) && offset + length <= size, "the pieces fit the file");
            let (mut offset, last) = (*offset, offset + length);
            while offset < last {
                if offset >= end {
                    self.skip(end - at).map_err(DataError::Write)?;
                    self.align().map_err(DataError::Write)?;
                    at = offset >> bits << bits;
                    end = size.min(at + (1 << bits));
                    blocks[(offset >> bits) as usize] = self.block(end - at)?;
                }
                self.skip(offset - at).map_err(DataError::Write)?;
                let here = last.min(end) - offset;
                self.read(data, here)?;
                offset += here;
                at = offset;
            }
        }
        self.skip(end - at).map_err(DataError::Write)?;
        self.align().map_err(DataError::Write)?;
        Ok(Place::Chunks { bits, device: 0, blocks })
    }

    /// The block that comes next, if there is room for so many bytes.
    pub(super) fn block(&self, size: u64) -> Result<u32, DataError> {
        let next = self.position() / BLOCK;
        let end = next.checked_add(size.div_ceil(BLOCK)).filter(|end| *end < u64::from(HOLE));
        end.map(|_| next as u32).ok_or(DataError::TooLarge)
    }

    /// Where the next byte goes.
    fn position(&self) -> u64 {
        self.start + self.filled as u64
    }

    fn read(&mut self, data: &mut dyn BufRead, length: u64) -> Result<(), DataError> {
        let mut left = length;
        while left > 0 {
            let there = match data.fill_buf() {
                Ok([]) => return Err(DataError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(there) => there,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(DataError::Read(error)),
            };
            let some = there.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.put(&there[..some]).map_err(DataError::Write)?;
            data.consume(some);
            left -= some as u64;
        }
        Ok(())
    }

    /// Writes bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.len() >= LARGE {
            self.flush()?;
            self.file.write_all_at(bytes, self.start)?;
            self.start += bytes.len() as u64;
            return Ok(());
        }
        while !bytes.is_empty() {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(BUFFER - self.filled));
            self.buffer[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = rest;
        }
        Ok(())
    }

    /// Writes zeros; many of them become a hole in the file.
    fn skip(&mut self, length: u64) -> io::Result<()> {
        if length > BLOCK {
            self.flush()?;
            self.start += length;
            return Ok(());
        }
        self.put(&[0; BLOCK as usize][..length as usize])
    }

    /// Fills the block.
    pub(super) fn align(&mut self) -> io::Result<()> {
        self.skip(self.position().wrapping_neg() % BLOCK)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.file.write_all_at(&self.buffer[..self.filled], self.start)?;
            self.start += self.filled as u64;
            self.filled = 0;
        }
        self.write_back.advance(&self.file, self.start);
        Ok(())
    }

    /// Writes the tree behind the data, and the superblock before it: now it is an image.
    ///
    /// # Errors
    ///
    /// [`DataError::TooLarge`] and [`DataError::Write`].
    pub fn finish(mut self, tree: &mut Tree, options: &Options) -> Result<Image, DataError> {
        let meta_block = self.block(0)?;
        let plan = Plan::new(tree, meta_block).ok_or(DataError::TooLarge)?;
        self.block(plan.length())?;
        plan.write(tree, &mut self).map_err(DataError::Write)?;
        let blocks = self.block(0)?;
        let header = Super {
            root_nid: plan.root(),
            inodes: plan.inodes(),
            build_time: options.time,
            build_nanos: 0,
            blocks,
            meta_block,
            xattr_block: plan.xattr_block(),
            uuid: options.uuid,
            chunks: plan.has_chunks(),
            devices: u16::try_from(options.devices.len()).map_err(|_| DataError::TooLarge)?,
            device_slot: if options.devices.is_empty() { 0 } else { (DEVICES_OFFSET / DEVICE_SIZE) as u16 },
        };
        let mut head = vec![0; DEVICES_OFFSET as usize];
        for device in &options.devices {
            put_device(&mut head, &device.tag, device.blocks);
        }
        head.resize((self.head * BLOCK) as usize, 0);
        header.put(&mut head[..BLOCK as usize]);
        let done = self.flush().and_then(|()| self.file.write_all_at(&head, 0));
        done.and_then(|()| self.file.set_len(u64::from(blocks) * BLOCK)).map_err(DataError::Write)?;
        Ok(Image { file: self.file, inodes: header.inodes, blocks, meta_block })
    }
}
