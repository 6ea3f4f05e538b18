use std::io::{self, BufWriter, Write};

use tar::{EntryType, Header};

use super::write::Sink;

const BLOCK: u64 = 512;
/// The longest name that fits into a header, in bytes.
const MAX_NAME: usize = 100;
/// The largest size that fits into a header, in bytes: eleven octal digits.
const MAX_SIZE: u64 = (1 << 33) - 1;

/// A tar archive of files that belong to nobody and are all of one time.
#[derive(Debug)]
pub(super) struct Tar<W: Write> {
    writer: BufWriter<W>,
    mtime: u64,
    /// What follows the current file's data, in bytes.
    padding: u64,
}

impl<W: Write> Tar<W> {
    /// `mtime` is in seconds since the epoch.
    pub(super) fn new(writer: W, mtime: u64) -> Self {
        Self { writer: BufWriter::new(writer), mtime, padding: 0 }
    }

    /// Writes a header, after the one that says what does not fit into it (POSIX's PAX).
    fn header(&mut self, kind: EntryType, name: &str, size: u64) -> io::Result<()> {
        let mut records = Vec::new();
        if name.len() > MAX_NAME {
            records.extend(record("path", name));
        }
        if size > MAX_SIZE {
            records.extend(record("size", &size.to_string()));
        }
        if !records.is_empty() {
            let size = records.len() as u64;
            self.short_header(EntryType::XHeader, "pax", size)?;
            self.writer.write_all(&records)?;
            self.pad(padding(size))?;
        }
        let size = if size > MAX_SIZE { 0 } else { size };
        self.short_header(kind, name.get(..MAX_NAME).unwrap_or(name), size)
    }

    fn short_header(&mut self, kind: EntryType, name: &str, size: u64) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.mtime);
        header.set_size(size);
        header.set_cksum();
        self.writer.write_all(header.as_bytes())
    }

    fn pad(&mut self, padding: u64) -> io::Result<()> {
        io::copy(&mut io::Read::take(io::repeat(0), padding), &mut self.writer).map(drop)
    }
}

impl<W: Write> Write for Tar<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl<W: Write + Send + 'static> Sink for Tar<W> {
    fn folder(&mut self, name: &str) -> io::Result<()> {
        self.header(EntryType::Directory, &format!("{name}/"), 0)
    }

    fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.padding = padding(size);
        self.header(EntryType::Regular, name, size)
    }

    fn end(&mut self) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.pad(padding)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.pad(2 * BLOCK)?;
        self.writer.flush()
    }
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// A PAX record, which starts with its own length.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Entries, Kind, Stream};

    #[test]
    fn names_and_sizes_of_any_length_are_read_back() {
        let long = format!("blobs/sha512/{}", "0".repeat(128));
        let mut bytes = Vec::new();
        let mut tar = Tar::new(&mut bytes, 7);
        tar.header(EntryType::Regular, &long, 1 << 40).expect("there is room");
        drop(tar);

        let entry = Entries::new(Stream(&*bytes)).advance().expect("it is a header").expect("it is there");

        assert_eq!((entry.name, entry.kind), (long, Kind::File(1 << 40)));
    }

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, want) in [("v", "9 path=v\n"), ("", "8 path=\n")] {
            assert_eq!(String::from_utf8_lossy(&record("path", value)), want);
        }
        let long = record("path", &"x".repeat(90));
        assert!(long.starts_with(b"100 path="), "{} bytes", long.len());
    }
}
