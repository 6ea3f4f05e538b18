//! Writes a tar stream: ustar headers, and PAX records for what they cannot hold (POSIX.1-2024, pax; GNU.sparse 1.0).

use std::io::{self, Write};

use rustix::fs::Timespec;
use tar::{EntryType, Header};

/// The unit of a tar archive, in bytes.
const BLOCK: usize = 512;
/// How long a name is that a header holds, in bytes.
const NAME: usize = 100;
/// The largest number of twelve, and of eight, bytes of a header.
const LARGE: u64 = 0o77_777_777_777;
const SMALL: u64 = 0o7_777_777;

/// A tar stream that is being written.
pub(super) struct Archive<W> {
    out: W,
    /// How many entries it has.
    pub(super) entries: u64,
    records: Vec<u8>,
    /// How many bytes of data the last entry has.
    data: u64,
}

/// One entry.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// Relative to the root.
    pub(super) path: &'a [u8],
    pub(super) kind: EntryType,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Timespec,
    /// Where a link points.
    pub(super) link: &'a [u8],
    pub(super) device: (u32, u32),
    /// In order.
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
    /// Of a file, in bytes, its holes counted.
    pub(super) size: u64,
    /// Where a file with holes has data: offset and length.
    pub(super) pieces: Option<&'a [(u64, u64)]>,
}

impl<'a> Entry<'a> {
    /// What has nothing but a name and a kind.
    pub(super) fn new(path: &'a [u8], kind: EntryType) -> Self {
        let mtime = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (mode, uid, gid, device, size) = (0, 0, 0, (0, 0), 0);
        Self { path, kind, mode, uid, gid, mtime, link: b"", device, xattrs: &[], size, pieces: None }
    }
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, entries: 0, records: Vec::new(), data: 0 }
    }

    /// Writes an entry but for its data, which follows with [`data`](Self::data) and [`pad`](Self::pad).
    pub(super) fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.entries += 1;
        let map = entry.pieces.map(map);
        self.data = match (entry.pieces, &map) {
            (Some(pieces), Some(map)) => {
                map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>()
            }
            _ => entry.size,
        };
        self.records(entry);
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            put(&mut header.as_old_mut().name, b"././@PaxHeader");
            put(&mut header.as_old_mut().mode, b"0000644");
            octal(&mut header.as_old_mut().size, records.len() as u64);
            self.header(header)?;
            self.out.write_all(&records)?;
            self.fill(records.len() as u64)?;
            self.records = records;
        }

        let mut header = Header::new_ustar();
        header.set_entry_type(entry.kind);
        let old = header.as_old_mut();
        match map {
            // What extracts these without knowing of them, makes no file that looks whole.
            Some(_) => {
                let name = entry.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                put(&mut old.name, &[b"GNUSparseFile.0/", name].concat());
            }
            None => put(&mut old.name, entry.path),
        }
        put(&mut old.linkname, entry.link);
        octal(&mut old.mode, u64::from(entry.mode));
        octal(&mut old.uid, Some(u64::from(entry.uid)).filter(|id| *id <= SMALL).unwrap_or_default());
        octal(&mut old.gid, Some(u64::from(entry.gid)).filter(|id| *id <= SMALL).unwrap_or_default());
        octal(&mut old.size, Some(self.data).filter(|size| *size <= LARGE).unwrap_or_default());
        let seconds = u64::try_from(entry.mtime.tv_sec).unwrap_or_default();
        octal(&mut old.mtime, Some(seconds).filter(|it| *it <= LARGE).unwrap_or_default());
        let ustar = header.as_ustar_mut().expect("it was made as one");
        octal(&mut ustar.dev_major, u64::from(entry.device.0));
        octal(&mut ustar.dev_minor, u64::from(entry.device.1));
        self.header(header)?;
        match map {
            Some(map) => self.out.write_all(&map),
            None => Ok(()),
        }
    }

    /// Writes data of the last entry.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Fills up the last block of the last entry's data.
    pub(super) fn pad(&mut self) -> io::Result<()> {
        self.fill(self.data)
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn header(&mut self, mut header: Header) -> io::Result<()> {
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn fill(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % BLOCK as u64).expect("it is less than a block");
        self.out.write_all(&[0; BLOCK][..(BLOCK - rest) % BLOCK])
    }

    /// Collects what the header cannot hold.
    fn records(&mut self, entry: &Entry<'_>) {
        self.records.clear();
        let records = &mut self.records;
        let (long_path, long_link) = (entry.path.len() > NAME, entry.link.len() > NAME);
        let binary = |long: bool, name| long && str::from_utf8(name).is_err();
        if binary(long_path, entry.path) || binary(long_link, entry.link) {
            record(records, b"hdrcharset", b"BINARY");
        }
        match entry.pieces {
            Some(_) => {
                record(records, b"GNU.sparse.major", b"1");
                record(records, b"GNU.sparse.minor", b"0");
                record(records, b"GNU.sparse.name", entry.path);
                record(records, b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
            }
            None if long_path => record(records, b"path", entry.path),
            None => {}
        }
        if long_link {
            record(records, b"linkpath", entry.link);
        }
        if self.data > LARGE {
            record(records, b"size", self.data.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
            if u64::from(id) > SMALL {
                record(records, key, id.to_string().as_bytes());
            }
        }
        let Timespec { tv_sec, tv_nsec } = entry.mtime;
        if tv_nsec != 0 || !u64::try_from(tv_sec).is_ok_and(|seconds| seconds <= LARGE) {
            record(records, b"mtime", decimal(entry.mtime).as_bytes());
        }
        for (name, value) in entry.xattrs {
            record(records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + " =\n".len();
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Seconds with a fraction, if there is one. A time before the epoch counts its fraction from the second after it.
fn decimal(time: Timespec) -> String {
    let Timespec { tv_sec, tv_nsec } = time;
    let (sign, seconds, nanoseconds) = match tv_sec {
        ..0 if tv_nsec > 0 => ("-", (tv_sec + 1).unsigned_abs(), 1_000_000_000 - tv_nsec),
        ..0 => ("-", tv_sec.unsigned_abs(), 0),
        _ => ("", tv_sec.unsigned_abs(), tv_nsec),
    };
    match nanoseconds {
        0 => format!("{sign}{seconds}"),
        _ => {
            let fraction = format!("{nanoseconds:09}");
            format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
        }
    }
}

/// The map of a file with holes, as it goes before its data: lines of numbers that fill whole blocks.
fn map(pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len());
    for (offset, length) in pieces {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// Puts into a field as much as it holds.
fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Writes a number in octal digits that leave room for a zero byte.
fn octal(field: &mut [u8], mut value: u64) {
    let (last, digits) = field.split_last_mut().expect("fields have bytes");
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_digits() {
        for (value, length) in [(0, 7), (2, 9), (3, 11), (91, 99), (92, 101)] {
            let mut records = Vec::new();
            record(&mut records, b"key", "v".repeat(value).as_bytes());
            assert_eq!(records.len(), length, "{value}");
            assert!(records.starts_with(format!("{length} key=").as_bytes()), "{value}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (tv_sec, tv_nsec, text) in [
            (0, 5, "0.000000005"),
            (981_173_106, 120_000_000, "981173106.12"),
            (-2, 750_000_000, "-1.25"),
            (-1, 500_000_000, "-0.5"),
            (-86400, 0, "-86400"),
        ] {
            assert_eq!(decimal(Timespec { tv_sec, tv_nsec }), text);
        }
    }

    #[test]
    fn what_a_header_holds_needs_no_records() {
        let mut archive = Archive::new(Vec::new());
        let path = [b'x'; NAME];
        archive.entry(&Entry::new(&path, EntryType::Regular)).expect("memory takes all");

        let out = archive.finish().expect("memory takes all");

        assert_eq!(out.len(), 3 * BLOCK, "a header, and the end");
        assert_eq!(out[..NAME], path);
    }
}
