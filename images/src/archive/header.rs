//! The headers of a tar archive, and what extends them: POSIX's PAX records, and GNU's long names.

use std::io;

use tar::{EntryType, Header};

use super::entries::Source;

/// What headers and data are padded to, in bytes.
pub(super) const BLOCK: u64 = 512;
/// The most that the extensions of one header may have, in bytes.
const MAX_EXTENSIONS: u64 = 1 << 20;

/// What compressed files start with.
const COMPRESSED: [(&[u8], &str); 4] =
    [(&[0x1f, 0x8b], "gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// Reads the next header, or `None` where the archive ends.
pub(super) fn next_header(source: &mut dyn Source) -> io::Result<Option<Header>> {
    let mut header = Header::new_old();
    let read = read_full(source, header.as_mut_bytes())?;
    let block = header.as_bytes();
    if read == 0 || read == block.len() && block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if let Some((_, name)) = COMPRESSED.iter().find(|(magic, _)| block.starts_with(magic)) {
        return Err(invalid(format!(
            "it is compressed with {name}; decompress it first, for example with `{name} -d`"
        )));
    }
    if read < block.len() {
        return Err(cut_off());
    }
    // The checksum counts its own field as spaces.
    let others = block[..148].iter().chain(&block[156..]);
    let sum = others.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * u32::from(b' ');
    match header.cksum() {
        // A fuzzer cannot compute it, and would never get past here.
        Ok(checksum) if checksum == sum || cfg!(fuzzing) => Ok(Some(header)),
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

    /// Reads an extension of the next header from `source`, which has `size` bytes of it. False if it is none, but an
    /// entry.
    pub(super) fn take_in(
        &mut self,
        kind: EntryType,
        source: &mut dyn Source,
        size: u64,
    ) -> io::Result<bool> {
        if !is_extension(kind) {
            return Ok(false);
        }
        // It speaks for all entries that follow, of their owners and times: nothing that counts here.
        if kind.is_pax_global_extensions() {
            return Ok(true);
        }
        self.read = self.read.saturating_add(size);
        if self.read > MAX_EXTENSIONS {
            return Err(invalid(format!("the headers of an entry have more than {MAX_EXTENSIONS} bytes")));
        }
        let mut text = vec![0; usize::try_from(size).expect("it is below the limit")];
        if read_full(source, &mut text)? < text.len() {
            return Err(cut_off());
        }
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

/// Fills a buffer; gives how much there was, if the archive ends before.
fn read_full(source: &mut dyn Source, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match source.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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
