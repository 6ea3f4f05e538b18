//! The content of files: where it is, whether two files have the same, and writing it into an archive.

use std::{fs::File, io::Write, os::unix::fs::FileExt, path::Path};

use rustix::{
    fs::{SeekFrom, Stat, fstat, seek},
    io::Errno,
};

use super::{archive::Archive, changed, failed, refused_by_output};
use crate::{Error, Result};

/// How much is read at once, in bytes.
pub(super) const CHUNK: usize = 256 << 10;

/// Where a file has data, as offset and length: `None` if everywhere. A hole at the end is an empty piece there, by which GNU
/// tar knows of it.
pub(super) fn pieces(file: &File, stat: &Stat, path: &Path) -> Result<Option<Vec<(u64, u64)>>> {
    let size = stat.st_size.cast_unsigned();
    // So much is on the disk that there is no room for a hole.
    if stat.st_blocks.cast_unsigned().saturating_mul(512) >= size {
        return Ok(None);
    }
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(failed("find the holes of", path)(errno)),
        };
        let end = seek(file, SeekFrom::Hole(start)).map_err(|errno| match errno {
            Errno::NXIO => changed(path),
            errno => failed("find the holes of", path)(errno),
        })?;
        if start >= size {
            break;
        }
        let end = end.min(size);
        pieces.push((start, end - start));
        at = end;
    }
    match pieces[..] {
        [(0, length)] if length == size => Ok(None),
        _ => {
            if at < size {
                pieces.push((size, 0));
            }
            Ok(Some(pieces))
        }
    }
}

/// Writes the data of a file, that was `before` when its entry was written.
pub(super) fn copy<W: Write>(
    file: &File,
    before: &Stat,
    pieces: Option<&[(u64, u64)]>,
    archive: &mut Archive<W>,
    buffer: &mut [u8],
    path: &Path,
) -> Result<()> {
    let whole = [(0, before.st_size.cast_unsigned())];
    for (start, length) in pieces.unwrap_or(&whole) {
        let (mut at, end) = (*start, start + length);
        while at < end {
            let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let read = read_at(file, &mut buffer[..wanted], at, path)?;
            if read == 0 {
                return Err(changed(path));
            }
            archive.data(&buffer[..read]).map_err(refused_by_output)?;
            at += read as u64;
        }
    }
    archive.pad().map_err(refused_by_output)?;
    let after = fstat(file).map_err(failed("look at", path))?;
    let state = |it: &Stat| (it.st_size, it.st_mtime, it.st_mtime_nsec);
    match state(before) == state(&after) {
        true => Ok(()),
        false => Err(changed(path)),
    }
}

/// Whether two files of the same size have the same content.
pub(super) fn is_same(left: &File, right: &File, buffer: &mut [u8], path: &Path) -> Result<bool> {
    let middle = buffer.len() / 2;
    let (here, there) = buffer.split_at_mut(middle);
    let mut at = 0;
    loop {
        let read = read_at(left, here, at, path)?;
        let mut matched = 0;
        while matched < read {
            match read_at(right, &mut there[matched..read], at + matched as u64, path)? {
                0 => return Ok(false),
                more => matched += more,
            }
        }
        if here[..read] != there[..read] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(read_at(right, &mut there[..1], at, path)? == 0);
        }
        at += read as u64;
    }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64, path: &Path) -> Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            answer => {
                return answer.map_err(|source| Error::Io { op: "read", path: path.to_owned(), source });
            }
        }
    }
}
