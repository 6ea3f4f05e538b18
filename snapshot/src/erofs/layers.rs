//! Images of layers on top of each other: their merged tree, and what is made of it.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Image, Node, Options, Tree, Writer,
    data::{DataError, Device},
    format::{BLOCK_BITS, SECTOR_BITS},
    place::{Piece, Place},
    read::Opened,
    settle::Refused,
    tree::Content as NodeContent,
};
use crate::{Error, Result, Supposed, folders::io};

/// How much of a layer is read at once, in bytes.
const BUFFER: usize = 128 << 10;

/// The tar of an index, beside it.
pub(super) const TAR: &str = "layer.tar";
/// The number of the first device of a merged tree: those below are a layer's own image and tar.
const FIRST: u16 = 2;

/// Layers, the lowest first. Their data is on the devices, whose numbers count from [`FIRST`].
#[derive(Debug, Default)]
pub(super) struct Layers {
    paths: Vec<PathBuf>,
    devices: Vec<(PathBuf, Device)>,
    /// The size (its logarithm) of blocks that fits all of them.
    bits: Option<u32>,
    tree: Option<Tree>,
}

impl Layers {
    /// Opens layers, and reads their merged tree.
    pub(super) fn open(paths: Vec<PathBuf>) -> Result<Self> {
        let mut layers = Self::default();
        layers.extend(paths)?;
        Ok(layers)
    }

    /// Makes these the layers. What was read of the lower ones is used again if they are the same.
    fn set(&mut self, paths: Vec<PathBuf>) -> Result<()> {
        match paths.strip_prefix(&self.paths[..]) {
            Some(new) => self.extend(new.to_vec()),
            None => {
                *self = Self::open(paths)?;
                Ok(())
            }
        }
    }

    fn extend(&mut self, paths: Vec<PathBuf>) -> Result<()> {
        for path in paths {
            let opened = Opened::open(&path)?;
            let layer = opened.tree(&path)?;
            let mut numbers = [0, 1];
            for (own, device) in devices(&path, &opened)? {
                let number =
                    u16::try_from(self.devices.len()).ok().and_then(|count| count.checked_add(FIRST));
                numbers[own] =
                    number.ok_or_else(|| image(&path, "there are more than 65,533 layers".to_owned()))?;
                self.devices.push(device);
            }
            let tree = self.tree.get_or_insert_default();
            tree.stack(&layer, numbers).map_err(|reason| image(&path, reason.to_owned()))?;
            self.bits = Some(self.bits.unwrap_or(opened.header.bits).min(opened.header.bits));
            self.paths.push(path);
        }
        Ok(())
    }

    pub(super) fn tree(&self) -> Option<&Tree> {
        self.tree.as_ref()
    }

    /// The devices of a merged tree of these layers, and by which each is known.
    pub(super) fn devices(paths: &[PathBuf]) -> Result<Vec<(PathBuf, [u8; 64])>> {
        let mut all = Vec::new();
        for path in paths {
            let found = devices(path, &Opened::open(path)?)?;
            all.extend(found.into_iter().map(|(_, (path, device))| (path, device.tag)));
        }
        Ok(all)
    }

    /// Writes an image of the merged tree alone, whose data is on the layers as devices.
    pub(super) fn write_index(mut self, path: &Path) -> Result<Image> {
        let failed = |source| io("write", path, source);
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path);
        let bits = self.bits.unwrap_or(BLOCK_BITS);
        let writer = Writer::with_devices(file.map_err(failed)?, bits, self.devices.len()).map_err(failed)?;
        let mut options = Options::default();
        options.devices.extend(self.devices.into_iter().map(|(_, device)| device));
        let mut tree = self.tree.take().unwrap_or_default();
        // In an image, device 1 is the first one.
        tree.shift_devices(FIRST - 1);
        writer.finish(&mut tree, &options).map_err(|error| data(error, path))
    }

    /// Writes an image of the merged tree with all its data: only what is seen.
    pub(super) fn write_whole(mut self, file: File, path: &Path, options: &Options) -> Result<Image> {
        let mut writer = Writer::new(file).map_err(|source| io("write", path, source))?;
        let mut tree = self.tree.take().unwrap_or_default();
        self.take_in(&mut tree, &mut writer, path)?;
        writer.finish(&mut tree, options).map_err(|error| data(error, path))
    }

    /// Gives a layer, which an applier wrote, what it takes from those below it, which become these layers if anybody asks.
    /// Gives the path that the layer took for a folder and that is a link, if there is one: then the layer is as it was.
    pub(super) fn settle<'a>(
        &mut self,
        path: &Path,
        below: &[PathBuf],
        supposed: &'a Supposed,
    ) -> Result<Option<&'a Path>> {
        let opened = Opened::open(path)?;
        let mut tree = opened.tree(path)?;
        let is_settled = tree.is_settled();
        if is_settled && *supposed == Supposed::default() {
            return Ok(None);
        }
        self.set(below.to_vec())?;
        if let Some(link) = self.tree().and_then(|lower| lower.link_among(&supposed.folders)) {
            return Ok(Some(link));
        }
        if let Some((entry, reason)) = &supposed.refused {
            return Err(image(path, format!("entry {entry:?} is refused: {reason}")));
        }
        tree.settle(self.tree(), &supposed.files).map_err(|Refused { entry, reason }| {
            image(path, format!("entry {:?} is refused: {reason}", String::from_utf8_lossy(&entry)))
        })?;
        if is_settled {
            return Ok(None);
        }
        let failed = |source| io("write", path, source);
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let mut writer = Writer::behind_data(file, &opened.header).map_err(failed)?;
        self.take_in(&mut tree, &mut writer, path)?;
        let mut options = Options::default().uuid(opened.header.uuid).time(opened.header.build_time);
        if opened.is_index() {
            let (tag, blocks) = opened.slot(0, path)?;
            options.devices.push(Device { tag, length: u64::from(blocks) << opened.header.bits });
        }
        writer.finish(&mut tree, &options).map_err(|error| data(error, path))?;
        Ok(None)
    }

    /// Copies all data that is on a layer into an image.
    fn take_in(&self, tree: &mut Tree, writer: &mut Writer, path: &Path) -> Result<()> {
        let mut found = Vec::new();
        for node in tree.named() {
            if let Some((_, device, pieces)) = tree.data_of(node)
                && device >= FIRST
            {
                found.push((device, pieces.first().map(|(_, block, _)| *block), node));
            }
        }
        // As they are on the disk.
        found.sort_unstable();
        let mut opened = None;
        for (device, _, node) in found {
            let (size, _, pieces) = tree.data_of(node).expect("it was found");
            let (from, _) = &self.devices[usize::from(device - FIRST)];
            let failed = |source| io("read", from, source);
            if opened.as_ref().is_none_or(|(number, _)| *number != device) {
                opened = Some((device, File::open(from).map_err(failed)?));
            }
            let (_, file) = opened.as_ref().expect("it was just opened");
            let place = |(_, sector, length): &Piece| (u64::from(*sector) << SECTOR_BITS, *length);
            let content = Content { file, left: pieces.iter().map(place).collect() };
            let mut content = io::BufReader::with_capacity(BUFFER, content);
            let pieces: Vec<_> = pieces.into_iter().map(|(offset, _, length)| (offset, length)).collect();
            let written = writer.data(&mut content, &pieces, size).map_err(|error| match error {
                DataError::Read(source) => failed(source),
                other => data(other, path),
            })?;
            tree.set_data(node, written);
        }
        Ok(())
    }
}

/// The data of a file on a layer, read from there.
struct Content<'a> {
    file: &'a File,
    /// Offsets and lengths.
    left: VecDeque<(u64, u64)>,
}

impl io::Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((offset, length)) = self.left.front_mut() else { return Ok(0) };
        let wanted = buf.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buf[..wanted], *offset)?;
        (*offset, *length) = (*offset + read as u64, *length - read as u64);
        if *length == 0 {
            self.left.pop_front();
        }
        Ok(read)
    }
}

/// The devices that the data of a layer is on: whether it is its image (0) or its tar (1), and the device.
fn devices(path: &Path, opened: &Opened) -> Result<Vec<(usize, (PathBuf, Device))>> {
    let tag = opened.tag();
    let mut all = Vec::new();
    if opened.has_data() {
        let length = u64::from(opened.header.blocks) << opened.header.bits;
        all.push((0, (path.to_owned(), Device { tag, length })));
    }
    if opened.is_index() {
        let (_, blocks) = opened.slot(0, path)?;
        let mut tag = tag;
        tag[63] = 1;
        let length = u64::from(blocks) << opened.header.bits;
        all.push((1, (path.with_file_name(TAR), Device { tag, length })));
    }
    Ok(all)
}

fn image(path: &Path, reason: String) -> Error {
    Error::Image { path: path.to_owned(), reason }
}

fn data(error: DataError, path: &Path) -> Error {
    match error {
        DataError::Read(source) => io("read", path, source),
        DataError::Write(source) => io("write", path, source),
        other => image(path, other.to_string()),
    }
}

impl Tree {
    /// Lowers the number of each device.
    fn shift_devices(&mut self, by: u16) {
        for inode in &mut self.inodes {
            match &mut inode.content {
                NodeContent::Plain { device, .. } => *device = device.saturating_sub(by),
                NodeContent::File { place, .. } => {
                    if let Place::Chunks { device, .. } = &mut **place {
                        *device = device.saturating_sub(by);
                    }
                }
                _ => {}
            }
        }
    }

    /// All nodes that have a name, in some order.
    fn named(&self) -> Vec<Node> {
        let mut seen = vec![false; self.inodes.len()];
        let mut open = vec![self.root()];
        let mut named = Vec::new();
        while let Some(folder) = open.pop() {
            for (_, child) in self.children(folder) {
                if std::mem::replace(&mut seen[child.0 as usize], true) {
                    continue;
                }
                named.push(child);
                if self.is_folder(child) {
                    open.push(child);
                }
            }
        }
        named
    }
}
