//! Writes an image from its beginning to its end: the data of files, block after block, and then the metadata.

use std::{
    fs::File,
    io::{self, BufRead},
    os::unix::fs::FileExt,
};

use super::{
    Image, Tree,
    format::{BLOCK_BITS, DEVICE_SIZE, HOLE, SECTOR_BITS, SUPER_OFFSET, SUPER_SIZE, Super, put_device},
    layout::{Plan, one_chunk},
    place::{Data, Place},
};
use crate::sync_range::WriteBack;

/// What fills a block.
const ZEROS: [u8; 1 << BLOCK_BITS] = [0; 1 << BLOCK_BITS];
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
    /// The size (its logarithm) of a block.
    bits: u32,
    /// What is to be written at `start`: the first `filled` bytes of the buffer.
    buffer: Vec<u8>,
    filled: usize,
    start: u64,
    /// How many bytes the superblock and the device slots take.
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
    /// How long it is, in bytes.
    pub(super) length: u64,
}

/// Why data could not be written into an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The data cannot be read, or ends early.
    #[error("cannot read the data")]
    Read(#[source] io::Error),
    /// Places are counted in 32 bits, in units of 512 bytes.
    #[error("the image would be larger than 2 TiB")]
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
        Self::with_devices(file, BLOCK_BITS, 0)
    }

    /// Begins an index of a tar in a file, which is emptied first: an image that has names and attributes, and the data of files in the
    /// tar, as its only device. It takes Linux 6.4. To be ended with [`finish_index`](Self::finish_index).
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub fn index(file: File) -> io::Result<Self> {
        Self::with_devices(file, SECTOR_BITS, 1)
    }

    /// Begins an image that has blocks of that size (its logarithm) and that many devices.
    pub(super) fn with_devices(file: File, bits: u32, devices: usize) -> io::Result<Self> {
        file.set_len(0)?;
        let head = head(devices as u64, bits);
        Ok(Self::at(file, bits, head, head))
    }

    /// Goes on with an image behind its data: the metadata after it is written anew.
    pub(super) fn behind_data(file: File, header: &Super) -> io::Result<Self> {
        let end = u64::from(header.meta_block) << header.bits;
        file.set_len(end)?;
        let head =
            (DEVICES_OFFSET + u64::from(header.devices) * DEVICE_SIZE).next_multiple_of(1 << header.bits);
        Ok(Self::at(file, header.bits, head, end))
    }

    fn at(file: File, bits: u32, head: u64, start: u64) -> Self {
        let (buffer, write_back) = (vec![0; BUFFER], WriteBack::default());
        Self { file, bits, buffer, filled: 0, start, head, write_back }
    }

    /// Where the data of a file is in the tar, if an index can say it: `offset` is where it begins there, `size` and `pieces` are as for
    /// [`data`](Self::data). `None` if it is to be taken in: pieces that are not at multiples of 512, or too many for the size.
    pub fn tar_data(&self, offset: u64, pieces: &[(u64, u64)], size: u64) -> Option<Data> {
        let device = 1;
        let sector = |offset: u64| {
            let sector = u32::try_from(offset >> SECTOR_BITS).ok().filter(|sector| *sector != HOLE);
            sector.filter(|_| offset.is_multiple_of(1 << SECTOR_BITS))
        };
        if size == 0 {
            return Some(Data(Place::Nowhere));
        }
        // A chunk has at most 2^31 blocks.
        if size > 1 << (self.bits + 31) {
            return None;
        }
        if let [(0, length)] = pieces
            && *length == size
        {
            return Some(Data(Place::At { device, block: sector(offset)? }));
        }
        // The largest chunks that are either all there or all hole.
        let ends = pieces.iter().map(|(at, length)| at + length).filter(|end| *end != size);
        let common = pieces.iter().map(|(at, _)| *at).chain(ends).fold(0, |all, edge| all | edge);
        let bits = common.trailing_zeros().min(one_chunk(size, self.bits));
        if bits < self.bits || (size - 1) >> bits >= CHUNKS + 16 * pieces.len() as u64 {
            return None;
        }
        let mut blocks = vec![HOLE; ((size - 1) >> bits) as usize + 1].into_boxed_slice();
        let mut from = offset;
        for (at, length) in pieces {
            for chunk in (*at..at + length).step_by(1 << bits) {
                blocks[(chunk >> bits) as usize] = sector(from + (chunk - at))?;
            }
            from += length;
        }
        Some(Data(Place::Chunks { bits, device, blocks }))
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
                let block = self.sector(size)?;
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
            (self.bits..64).find(|bits| (size - 1) >> bits < most).expect("one chunk is always enough");
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
                    blocks[(offset >> bits) as usize] = self.sector(end - at)?;
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

    /// Where the next block is, in units of 512 bytes, if there is room for so many bytes.
    pub(super) fn sector(&self, size: u64) -> Result<u32, DataError> {
        let next = self.position() >> SECTOR_BITS;
        let end = next.checked_add(size.div_ceil(1 << SECTOR_BITS)).filter(|end| *end < u64::from(HOLE));
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
        if length > ZEROS.len() as u64 {
            self.flush()?;
            self.start += length;
            return Ok(());
        }
        self.put(&ZEROS[..length as usize])
    }

    /// Fills the block.
    pub(super) fn align(&mut self) -> io::Result<()> {
        self.skip(self.position().wrapping_neg() % (1 << self.bits))
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

    /// As [`finish`](Self::finish), for an index of a tar of that length, in bytes.
    ///
    /// # Errors
    ///
    /// [`DataError::TooLarge`] and [`DataError::Write`].
    pub fn finish_index(self, tree: &mut Tree, options: &Options, tar: u64) -> Result<Image, DataError> {
        let mut tag = [0; 64];
        tag[..16].copy_from_slice(&options.uuid);
        let options = Options { devices: vec![Device { tag, length: tar }], ..options.clone() };
        self.finish(tree, &options)
    }

    /// Writes the tree behind the data, and the superblock before it: now it is an image.
    ///
    /// # Errors
    ///
    /// [`DataError::TooLarge`] and [`DataError::Write`].
    pub fn finish(mut self, tree: &mut Tree, options: &Options) -> Result<Image, DataError> {
        let shift = self.bits - SECTOR_BITS;
        let meta_block = self.sector(0)? >> shift;
        let plan = Plan::new(tree, meta_block, self.bits).ok_or(DataError::TooLarge)?;
        self.sector(plan.length())?;
        plan.write(tree, &mut self).map_err(DataError::Write)?;
        let blocks = self.sector(0)? >> shift;
        let header = Super {
            bits: self.bits,
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
            let blocks =
                u32::try_from(device.length.div_ceil(1 << self.bits)).map_err(|_| DataError::TooLarge)?;
            put_device(&mut head, &device.tag, blocks);
        }
        head.resize(self.head as usize, 0);
        header.put(&mut head);
        let done = self.flush().and_then(|()| self.file.write_all_at(&head, 0));
        done.and_then(|()| self.file.set_len(u64::from(blocks) << self.bits)).map_err(DataError::Write)?;
        Ok(Image { file: self.file, header })
    }
}

/// How many bytes the superblock and the slots of devices take.
pub(super) fn head(devices: u64, bits: u32) -> u64 {
    (DEVICES_OFFSET + devices * DEVICE_SIZE).next_multiple_of(1 << bits)
}
