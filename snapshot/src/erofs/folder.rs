//! Puts a folder into an image: the upper layer of an overlay becomes a layer.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, SeekFrom as To, Stat, fstat, lgetxattr, llistxattr, major,
        minor, openat, readlinkat, seek, statat,
    },
    io::Errno,
};

use super::{
    Image, Kind, Meta, Node, Options, Tree, Writer, data::DataError, tree::OPAQUE, xattrs::XattrSet,
};
use crate::{
    Error, Result,
    folders::io,
    tree::{Descent, names, open_folder},
};

/// The kernel's limit for the list of a file's attributes, and for the value of one.
const XATTRS: usize = 64 * 1024;
/// How much of a file is read at once, in bytes.
const BUFFER: usize = 128 << 10;

/// Writes an image of all that is in a folder.
pub(super) fn pack(folder: &Path, image: &Path) -> Result<Image> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(image);
    let writer = file.and_then(Writer::new).map_err(|source| io("write", image, source))?;
    let top = open_folder(CWD, folder).map_err(|err| io("open", folder, err.into()))?;
    let mut packer = Packer { tree: Tree::new(), writer, files: HashMap::new(), value: vec![0; XATTRS] };
    let done =
        packer.run(top).and_then(|()| Ok(packer.writer.finish(&mut packer.tree, &Options::default())?));
    done.map_err(|failure| match failure {
        Failure::Data(DataError::Write(source)) => io("write", image, source),
        Failure::Data(DataError::Read(source)) => io("read a file of", folder, source),
        Failure::System(err) => io("read a file of", folder, err.into()),
        Failure::Data(other) => Error::Image { path: image.to_owned(), reason: other.to_string() },
        Failure::Refused(reason) => Error::Image { path: image.to_owned(), reason: reason.to_owned() },
    })
}

enum Failure {
    Data(DataError),
    Refused(&'static str),
    System(Errno),
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self::Refused(reason)
    }
}

struct Packer {
    tree: Tree,
    writer: Writer,
    /// Files with several names, by device and inode.
    files: HashMap<(u64, u64), Node>,
    value: Vec<u8>,
}

impl Packer {
    fn run(&mut self, top: OwnedFd) -> Result<(), Failure> {
        let mut descent = Descent::new(top)?;
        let meta = self.meta(&descent, c".", &fstat(descent.here())?)?;
        self.tree.set_meta(self.tree.root(), meta);
        let mut levels = vec![(self.tree.root(), sorted(&descent)?)];
        while let Some((folder, left)) = levels.last_mut() {
            let folder = *folder;
            let Some(name) = left.pop() else {
                levels.pop();
                if !levels.is_empty() {
                    descent.leave()?;
                }
                continue;
            };
            let stat = statat(descent.here(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                let meta = self.meta(&descent, &name, &stat)?;
                let made = self.tree.put(folder, name.to_bytes(), meta, Kind::Folder)?;
                descent.enter(&name)?;
                levels.push((made, sorted(&descent)?));
            } else {
                self.file(&descent, folder, &name, &stat)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, at: &Descent, folder: Node, name: &CStr, stat: &Stat) -> Result<(), Failure> {
        let id = (stat.st_dev, stat.st_ino);
        if let Some(known) = self.files.get(&id) {
            return Ok(self.tree.link(folder, name.to_bytes(), *known)?);
        }
        let meta = self.meta(at, name, stat)?;
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let target;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                // What was a file a moment ago may be a fifo now, which must not hold us up.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let mut file = File::from(openat(at.here(), name, flags, Mode::empty())?);
                let size = fstat(&file)?.st_size.cast_unsigned();
                let pieces = pieces(&file, size)?;
                let data = Pieces { pieces: &pieces, at: 0, file: &mut file };
                let mut data = io::BufReader::with_capacity(BUFFER, data);
                Kind::File(size, self.writer.data(&mut data, &pieces, size)?)
            }
            FileType::Symlink => {
                target = readlinkat(at.here(), name, Vec::new())?;
                Kind::Symlink(target.to_bytes())
            }
            FileType::CharacterDevice => Kind::Char(major, minor),
            FileType::BlockDevice => Kind::Block(major, minor),
            FileType::Fifo => Kind::Fifo,
            _ => Kind::Socket,
        };
        let node = self.tree.put(folder, name.to_bytes(), meta, kind)?;
        if stat.st_nlink > 1 {
            self.files.insert(id, node);
        }
        Ok(())
    }

    fn meta(&mut self, at: &Descent, name: &CStr, stat: &Stat) -> Result<Meta, Failure> {
        Ok(Meta {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            xattrs: self.xattrs(at, name)?,
        })
    }

    /// Through /proc, because the attributes of a link or a device cannot be had from an open handle.
    fn xattrs(&mut self, at: &Descent, name: &CStr) -> Result<XattrSet, Failure> {
        let mut path = format!("/proc/self/fd/{}/", at.here().as_raw_fd()).into_bytes();
        path.extend_from_slice(name.to_bytes());
        let list = match llistxattr(&path, &mut self.value[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(XattrSet::default()),
            length => self.value[..length?].to_vec(),
        };
        let mut all = Vec::new();
        for key in list.split(|byte| *byte == 0).filter(|key| is_kept(key)) {
            let length = lgetxattr(&path, key, &mut self.value[..])?;
            all.push((key.to_vec(), self.value[..length].to_vec()));
        }
        Ok(self.tree.xattrs(all.iter().map(|(name, value)| (&name[..], &value[..])))?)
    }
}

/// How overlayfs keeps its books is no part of a layer, but what a folder hides is. A label of SELinux says where a file is, not
/// what it is.
fn is_kept(key: &[u8]) -> bool {
    !key.is_empty() && key != b"security.selinux" && (key == OPAQUE || !key.starts_with(b"trusted.overlay."))
}

/// The names in a folder, the first one last.
fn sorted(descent: &Descent) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = names(descent.here())?;
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

/// What of a file is no hole.
fn pieces(file: &File, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut pieces = Vec::new();
    let mut offset = 0;
    while offset < size {
        let data = match seek(file, To::Data(offset)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // This file system does not know its holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(vec![(0, size)]),
            Err(err) => return Err(err),
        };
        let hole = seek(file, To::Hole(data))?.min(size);
        if hole > data {
            pieces.push((data, hole - data));
        }
        offset = hole;
    }
    Ok(pieces)
}

/// Reads pieces of a file, one after the other.
struct Pieces<'a> {
    pieces: &'a [(u64, u64)],
    /// How much of the first one was read.
    at: u64,
    file: &'a mut File,
}

impl io::Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let [(offset, length), rest @ ..] = self.pieces else { return Ok(0) };
        if self.at == 0 {
            self.file.seek(SeekFrom::Start(*offset))?;
        }
        let wanted = buf.len().min(usize::try_from(length - self.at).unwrap_or(usize::MAX));
        let read = self.file.read(&mut buf[..wanted])?;
        self.at += read as u64;
        if self.at == *length {
            (self.pieces, self.at) = (rest, 0);
        }
        Ok(read)
    }
}
