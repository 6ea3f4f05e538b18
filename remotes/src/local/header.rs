//! The headers of a tar archive, and what extends them: POSIX's PAX records, and GNU's long names.

use std::io;

use tar::{EntryType, Header};
use windlass_content::ReadAt;

/// What headers and data are padded to, in bytes.
pub(super) const BLOCK: u64 = 512;
/// The most that the extensions of one header may have, in bytes.
const MAX_EXTENSIONS: u64 = 1 << 20;

/// The header at a position, or `None` where the archive ends.
pub(super) fn header_at(source: &dyn ReadAt, position: u64, length: u64) -> io::Result<Option<Header>> {
    if position >= length {
        return Ok(None);
    }
    let mut header = Header::new_old();
    read_exact_at(source, header.as_mut_bytes(), position)?;
    let block = header.as_bytes();
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    // The checksum counts its own field as spaces.
    let others = block[..148].iter().chain(&block[156..]);
    let sum = others.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    match header.cksum() {
        Ok(checksum) if checksum == sum => Ok(Some(header)),
        _ => Err(invalid("it is no tar archive, or is damaged: the checksum of a header is wrong")),
    }
}

/// What the headers before an entry say of it.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) sparse: bool,
    size: Option<u64>,
    /// How many bytes of them were read.
    read: u64,
}

impl Extensions {
    /// How many bytes of data follow a header.
    pub(super) fn size(&self, header: &Header) -> io::Result<u64> {
        let kind = header.entry_type();
        match self.size {
            // The others are all header, whatever their size says.
            _ if kind.is_hard_link()
                || kind.is_symlink()
                || kind.is_dir()
                || kind.is_fifo()
                || kind.is_character_special()
                || kind.is_block_special() =>
            {
                Ok(0)
            }
            Some(size) if !is_extension(kind) => Ok(size),
            _ => header.entry_size().map_err(|_| invalid("the size of an entry is malformed")),
        }
    }

    /// Reads an extension of the next header. False if it is none, but an entry.
    pub(super) fn take_in(
        &mut self,
        kind: EntryType,
        source: &dyn ReadAt,
        start: u64,
        size: u64,
    ) -> io::Result<bool> {
        if !is_extension(kind) {
            return Ok(false);
        }
        // It speaks for all entries that follow, of their owners and times: nothing that counts here.
        if kind.is_pax_global_extensions() {
            return Ok(true);
        }
        self.read += size;
        if self.read > MAX_EXTENSIONS {
            return Err(invalid(format!("the headers of an entry have more than {MAX_EXTENSIONS} bytes")));
        }
        let mut text = vec![0; usize::try_from(size).expect("it is below the limit")];
        read_exact_at(source, &mut text, start)?;
        if kind.is_pax_local_extensions() {
            self.take_in_records(&text)?;
            return Ok(true);
        }
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(text.len()));
        let place = if kind.is_gnu_longname() { &mut self.path } else { &mut self.link };
        *place = Some(text);
        Ok(true)
    }

    /// Reads PAX records, each `length key=value\n`; a value may hold any byte.
    fn take_in_records(&mut self, mut text: &[u8]) -> io::Result<()> {
        while !text.is_empty() {
            let (key, value, rest) =
                record(text).ok_or_else(|| invalid("a PAX header in it is malformed"))?;
            text = rest;
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = decimal(value).ok_or_else(|| invalid("the size of an entry is malformed"))?;
                    self.size = Some(size);
                }
                _ => self.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Ok(())
    }
}

/// Whether a header says something of the next one.
fn is_extension(kind: EntryType) -> bool {
    kind.is_gnu_longname()
        || kind.is_gnu_longlink()
        || kind.is_pax_local_extensions()
        || kind.is_pax_global_extensions()
}

/// The key and value of the first record, and what follows it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..space])?).ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn decimal(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.parse().ok()
}

fn read_exact_at(source: &dyn ReadAt, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match source.read_at(buf, offset) {
            Ok(0) => return Err(cut_off()),
            Ok(read) => {
                buf = &mut buf[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(super) fn cut_off() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it ends in the middle of an entry: it is cut off, or no tar archive",
    )
}

pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
