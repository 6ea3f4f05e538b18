use std::os::fd::OwnedFd;

use rustix::{
    fs::{SeekFrom, copy_file_range, fstat, ftruncate, ioctl_ficlone, seek},
    io::{Errno, pread, pwrite},
};

/// How much is copied by hand at a time.
const CHUNK: usize = 1 << 20;

/// Copies what is in a file to an empty one: shares the blocks if the file system can, lets the kernel copy if not, and
/// copies by hand as the last resort. Holes stay holes.
pub(super) fn content(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    match ioctl_ficlone(to, from) {
        Ok(()) => Ok(()),
        // Said by file systems without shared blocks, and for files on different ones or with different settings.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            segments(from, to, in_kernel)
        }
        Err(err) => Err(err),
    }
}

type Copy = fn(&OwnedFd, &OwnedFd, u64, u64) -> rustix::io::Result<()>;

/// Copies what is between the holes.
fn segments(from: &OwnedFd, to: &OwnedFd, copy: Copy) -> rustix::io::Result<()> {
    let length = fstat(from)?.st_size.cast_unsigned();
    let mut offset = 0;
    while offset < length {
        let data = match seek(from, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // This file system does not know its holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                copy(from, to, offset, length)?;
                break;
            }
            Err(err) => return Err(err),
        };
        let hole = seek(from, SeekFrom::Hole(data))?;
        copy(from, to, data, hole)?;
        offset = hole;
    }
    ftruncate(to, length)
}

fn in_kernel(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> rustix::io::Result<()> {
    let (mut source, mut target) = (begin, begin);
    while source < end {
        let length = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            // The file has become shorter; or a file system that says 0 for what it cannot copy.
            Ok(0) => return by_hand(from, to, source, end),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                return by_hand(from, to, source, end);
            }
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn by_hand(from: &OwnedFd, to: &OwnedFd, begin: u64, end: u64) -> rustix::io::Result<()> {
    let mut offset = begin;
    let mut buffer = vec![0; CHUNK];
    while offset < end {
        let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(CHUNK);
        let read = pread(from, &mut buffer[..length], offset)?;
        if read == 0 {
            break;
        }
        let mut written = 0;
        while written < read {
            let place = offset + written as u64;
            written += pwrite(to, &buffer[written..read], place)?;
        }
        offset += read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{FileExt, MetadataExt},
        path::Path,
    };

    use super::*;

    /// Data, a hole, data, a hole.
    fn sparse(path: &Path) -> OwnedFd {
        let file = File::create_new(path).expect("it is new");
        file.write_all_at(b"begin", 0).expect("written");
        file.write_all_at(&[7; 100_000], 10 << 20).expect("written");
        file.set_len(30 << 20).expect("set");
        File::open(path).expect("it is there").into()
    }

    #[test]
    fn each_way_to_copy_keeps_bytes_and_holes() {
        let dir = tempfile::tempdir().expect("a folder");
        let from = sparse(&dir.path().join("from"));
        type Way = fn(&OwnedFd, &OwnedFd) -> rustix::io::Result<()>;
        let ways: [(&str, Way); 3] = [
            ("content", content),
            ("in_kernel", |from, to| segments(from, to, in_kernel)),
            ("by_hand", |from, to| segments(from, to, by_hand)),
        ];
        for (name, copy) in ways {
            let path = dir.path().join(name);
            copy(&from, &File::create_new(&path).expect("it is new").into()).expect(name);

            assert!(
                fs::read(&path).expect("there") == fs::read(dir.path().join("from")).expect("there"),
                "{name}"
            );
            let taken = fs::metadata(&path).expect("there").blocks() * 512;
            assert!(taken < 1 << 20, "{name}: {taken} bytes of a file with 30 MiB of holes");
        }
    }
}
