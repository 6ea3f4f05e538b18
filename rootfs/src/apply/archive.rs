//! Reads a tar stream, one member after the other: headers as ustar, GNU and PAX write them, put together.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{self, Read},
    path::PathBuf,
};

use tar::{EntryType, Header};

use super::{
    Limits,
    entry::os_str,
    refused,
    sparse::{self, Sparse},
    tar_error,
};
use crate::{Error, Result};

/// The unit of a tar archive, in bytes.
pub(super) const BLOCK: usize = 512;

/// A tar stream. As a reader it gives the data of the member that [`next`](Self::next) gave last.
pub(super) struct Archive<R> {
    inner: R,
    /// What global PAX headers say of all members that follow.
    globals: Records,
    /// How much of the member's data was not read yet, and how much fills its last block.
    left: u64,
    padding: u64,
    limit: u64,
}

/// What PAX records say.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// A file, folder, link or device of an archive.
pub(super) struct Member {
    pub(super) header: Header,
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// How much data it has, in bytes.
    pub(super) size: u64,
    /// Where the data belongs, if the file has holes.
    pub(super) sparse: Option<Sparse>,
    pub(super) records: Records,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(inner: R, limits: &Limits) -> Self {
        Self { inner, globals: Records::new(), left: 0, padding: 0, limit: limits.headers }
    }

    /// The next member, or `None` at the end of the archive. Skips what was not read of the last one.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        self.skip().map_err(tar_error)?;
        let mut locals = Vec::new();
        let (mut path, mut link) = (None, None);
        let mut size_of_headers = 0;
        loop {
            let Some(header) = self.header().map_err(tar_error)? else {
                let whole = size_of_headers == 0;
                return whole
                    .then_some(None)
                    .ok_or_else(|| malformed("it ends before the member that it announces"));
            };
            let kind = header.entry_type();
            let text = match kind {
                EntryType::XHeader
                | EntryType::XGlobalHeader
                | EntryType::GNULongName
                | EntryType::GNULongLink => {
                    let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
                    let size = size.ok_or_else(|| malformed("the size of a header is no number"))?;
                    size_of_headers += size.saturating_add(BLOCK as u64);
                    if size_of_headers > self.limit {
                        let entry = PathBuf::from(os_str(&header.path_bytes()));
                        return Err(Error::Limit { entry, what: "bytes of headers", limit: self.limit });
                    }
                    self.text(size).map_err(tar_error)?
                }
                _ => {
                    let mut records = self.globals.clone();
                    read_records(&locals, &mut records)?;
                    return self.member(header, path, link, records).map(Some);
                }
            };
            match kind {
                EntryType::XHeader => locals.extend(text),
                EntryType::XGlobalHeader => read_records(&text, &mut self.globals)?,
                EntryType::GNULongName => path = Some(text),
                _ => link = Some(text),
            }
        }
    }

    /// Reads blocks of the member's data, where they are a map of it.
    pub(super) fn block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.read_exact(&mut block)?;
        Ok(block)
    }

    /// Reads blocks that follow a header and are not counted in its size.
    pub(super) fn extra_block(&mut self) -> io::Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.inner.read_exact(&mut block)?;
        Ok(block)
    }

    /// How much of the member's data was not read yet, in bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn member(
        &mut self,
        header: Header,
        path: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
        records: Records,
    ) -> Result<Member> {
        let record = |key: &[u8]| records.get(key).cloned();
        let until_nul = |bytes: Vec<u8>| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let path = record(b"GNU.sparse.name").or_else(|| record(b"path")).or(path.map(until_nul));
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = record(b"linkpath").or(link.map(until_nul));
        let link = link.or_else(|| header.link_name_bytes().map(Cow::into_owned)).unwrap_or_default();
        let kind = match header.entry_type() {
            // Before there was a type for folders.
            EntryType::Regular if header.as_old().linkflag == [0] && path.ends_with(b"/") => {
                EntryType::Directory
            }
            kind => kind,
        };
        let entry = PathBuf::from(os_str(&path));
        let size = match records.get(&b"size"[..]) {
            Some(text) => decimal(text),
            None => number(&header.as_old().size).and_then(|size| u64::try_from(size).ok()),
        };
        let size = size.ok_or_else(|| refused(&entry, "its size is malformed"))?;
        // The others are all header, whatever their size says.
        let has_data = !matches!(
            kind,
            EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Directory
                | EntryType::Fifo
        );
        self.left = if has_data { size } else { 0 };
        self.padding = self.left.wrapping_neg() % BLOCK as u64;
        let mut member = Member { header, kind, path, link, size: self.left, sparse: None, records };
        if kind.is_file() || kind.is_gnu_sparse() {
            member.sparse = sparse::read(&member, self, self.limit).map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData => refused(&entry, error.to_string()),
                _ => tar_error(error),
            })?;
        }
        Ok(member)
    }

    /// The next header, or `None` where the archive ends.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = |value: fn(u8) -> i64| {
            let counted = block[..148].iter().chain(&block[156..]);
            counted.map(|byte| value(*byte)).sum::<i64>() + 8 * i64::from(b' ')
        };
        // Some wrote the bytes as signed ones.
        let sums = [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))];
        match number(&block[148..156]) {
            Some(checksum) if sums.contains(&checksum) => Ok(Some(header)),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a header is wrong")),
        }
    }

    /// The content of an extension header.
    fn text(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        let mut text = Vec::new();
        self.read_to_end(&mut text)?;
        self.skip()?;
        Ok(text)
    }

    fn skip(&mut self) -> io::Result<()> {
        io::copy(self, &mut io::sink())?;
        let padding = std::mem::take(&mut self.padding);
        match io::copy(&mut self.inner.by_ref().take(padding), &mut io::sink())? == padding {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buf[..wanted])?;
        if read == 0 && wanted > 0 {
            let message = "it ends in the middle of a member";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Reads a number of a header: octal digits, or base-256 with the highest bit set. No digits are zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => {
            // Two's complement; the bit below the mark is the sign.
            let high = i128::from(first & 0x3f) - i128::from(first & 0x40);
            let value = rest
                .iter()
                .try_fold(high, |value, byte| value.checked_mul(256).map(|value| value + i128::from(*byte)));
            i64::try_from(value?).ok()
        }
        _ => {
            let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
            let digits = field[start..].split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
            digits.iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

/// Reads a decimal number as PAX writes it.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    match text {
        [] => None,
        _ => text.iter().try_fold(0_u64, |value, digit| match digit {
            b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
            _ => None,
        }),
    }
}

/// Adds the records of a PAX header, each `length key=value\n`; a value may hold any byte, so only the length says where it ends.
fn read_records(mut text: &[u8], records: &mut Records) -> Result<()> {
    while !text.is_empty() {
        let record = read_record(text).ok_or_else(|| malformed("a PAX record is malformed"))?;
        let (key, value, rest) = record;
        text = rest;
        match key {
            // The oldest sparse format repeats these; they are a map like that of the next.
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = records.entry(b"GNU.sparse.map".to_vec()).or_default();
                if !map.is_empty() {
                    map.push(b',');
                }
                map.extend_from_slice(value);
            }
            // An empty value takes back what was said before. An attribute may be empty.
            _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {
                records.remove(key);
            }
            _ => {
                records.insert(key.to_vec(), value.to_vec());
            }
        }
    }
    Ok(())
}

/// The key and value of the first record, and what follows it.
fn read_record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&text[..space])?).ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

fn malformed(what: &str) -> Error {
    tar_error(io::Error::new(io::ErrorKind::InvalidData, what))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_may_be_negative() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"0000008\0", None),
            (b"\x80\0\0\0\x80\0\0\0", Some(1 << 31)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn a_value_may_hold_what_ends_a_record() {
        let mut records = Records::new();
        let text = b"26 SCHILY.xattr.user.x=\n=\n12 path=a b\n";

        read_records(text, &mut records).expect("it is well-formed");

        assert_eq!(records[&b"SCHILY.xattr.user.x"[..]], b"\n=");
        assert_eq!(records[&b"path"[..]], b"a b");
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for text in ["x", "5 a=b", "6 a=bc", "4 a\n", "99999999999999999999 a=b\n", "0 a=b\n", " a=b\n"] {
            assert!(read_records(text.as_bytes(), &mut Records::new()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn headers_without_end_are_refused_before_they_are_read() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 33);
        header.set_cksum();
        let endless = Read::chain(&header.as_bytes()[..], io::repeat(b'1'));

        let next = Archive::new(endless, &Limits::default()).next();

        assert!(matches!(next, Err(Error::Limit { what: "bytes of headers", .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1600), kind in any::<u8>()) {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..bytes.len().min(BLOCK)].copy_from_slice(&bytes[..bytes.len().min(BLOCK)]);
            header.set_entry_type(EntryType::new(kind));
            header.set_cksum();
            let mut archive = Archive::new(Read::chain(&header.as_bytes()[..], &bytes[..]), &Limits::default());
            while let Ok(Some(_)) = archive.next() {}
        }
    }
}
