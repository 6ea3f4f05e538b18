//! Reads a tar stream, one member after the other: headers as ustar, GNU and PAX write them, put together.

use std::{
    borrow::Cow,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use tar::{EntryType, Header};

use super::{
    Limits,
    entry::os_str,
    pax::{Records, Values, decimal, malformed, natural, number},
    refused,
    sparse::{self, Sparse},
};
use crate::{Error, Result, apply::limits::OverLimit};

/// The unit of a tar archive, in bytes.
pub(super) const BLOCK: usize = 512;

/// A tar stream. As a reader it gives the data of the member that [`next`](Self::next) gave last.
pub(super) struct Archive<R> {
    inner: R,
    /// What global PAX headers say of all members that follow.
    globals: Arc<Values>,
    /// How much of the member's data was not read yet, and how much fills its last block.
    left: u64,
    padding: u64,
    limit: u64,
    /// The last member's path: what goes wrong goes wrong there.
    entry: PathBuf,
}

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

impl<R: BufRead> Archive<R> {
    pub(super) fn new(inner: R, limits: &Limits) -> Self {
        let (globals, entry) = (Arc::default(), PathBuf::new());
        Self { inner, globals, left: 0, padding: 0, limit: limits.headers, entry }
    }

    /// The next member, or `None` at the end of the archive. Skips what was not read of the last one.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        self.skip().map_err(|error| self.failed(error))?;
        let mut locals = Vec::new();
        let (mut path, mut link) = (None, None);
        let mut size_of_headers = 0;
        loop {
            let Some(header) = self.header().map_err(|error| self.failed(error))? else {
                let whole = size_of_headers == 0;
                let cut = || self.failed(malformed("it ends before the member that it announces"));
                return whole.then_some(None).ok_or_else(cut);
            };
            let kind = header.entry_type();
            let is_extension = matches!(
                kind,
                EntryType::XHeader
                    | EntryType::XGlobalHeader
                    | EntryType::GNULongName
                    | EntryType::GNULongLink
            );
            if !is_extension {
                let records = Records::new(self.globals.clone(), &locals);
                let records = records.map_err(|error| self.failed_at(&header, error))?;
                return self.member(header, path, link, records).map(Some);
            }
            let size = natural(&header.as_old().size);
            let size =
                size.ok_or_else(|| self.failed_at(&header, malformed("the size of a header is no number")))?;
            size_of_headers = size.saturating_add(BLOCK as u64).saturating_add(size_of_headers);
            self.check_headers(&header, size_of_headers)?;
            let text = self.text(size).map_err(|error| self.failed(error))?;
            match kind {
                EntryType::XHeader => locals.extend(text),
                EntryType::GNULongName => path = Some(text),
                EntryType::GNULongLink => link = Some(text),
                _ => {
                    let read = Arc::make_mut(&mut self.globals).read(&text);
                    read.map_err(|error| self.failed_at(&header, error))?;
                    self.check_headers(&header, self.globals.bytes())?;
                }
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

    /// What it reads from.
    #[cfg(feature = "erofs")]
    pub(super) fn get_ref(&self) -> &R {
        &self.inner
    }

    /// How much of the member's data was not read yet, in bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Reads all that follows the archive's end, too.
    pub(super) fn read_to_the_end(&mut self) -> Result<()> {
        let ended = io::copy(&mut self.inner, &mut io::sink());
        ended.map(drop).map_err(|error| self.failed(error))
    }

    /// The error for what a reader below has answered: a limit is exceeded at an entry.
    pub(super) fn failed(&self, error: io::Error) -> Error {
        match OverLimit::of(&error) {
            Some(OverLimit { what, limit }) => Error::Limit { entry: self.entry.clone(), what, limit },
            None => {
                let entry = Some(self.entry.clone()).filter(|entry| !entry.as_os_str().is_empty());
                Error::Tar { entry, source: error }
            }
        }
    }

    fn failed_at(&mut self, header: &Header, error: io::Error) -> Error {
        self.entry = PathBuf::from(os_str(&header.path_bytes()));
        self.failed(error)
    }

    fn check_headers(&self, header: &Header, size: u64) -> Result<()> {
        match size > self.limit {
            true => {
                let entry = PathBuf::from(os_str(&header.path_bytes()));
                Err(Error::Limit { entry, what: "bytes of headers", limit: self.limit })
            }
            false => Ok(()),
        }
    }

    fn member(
        &mut self,
        header: Header,
        path: Option<Vec<u8>>,
        link: Option<Vec<u8>>,
        records: Records,
    ) -> Result<Member> {
        let record = |key| records.get(key).map(<[u8]>::to_vec);
        let until_nul = |bytes: Vec<u8>| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let path = record("GNU.sparse.name").or_else(|| record("path")).or(path.map(until_nul));
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = record("linkpath").or(link.map(until_nul));
        let link = link.or_else(|| header.link_name_bytes().map(Cow::into_owned)).unwrap_or_default();
        self.entry.clear();
        self.entry.push(os_str(&path));
        if [&path, &link].iter().any(|name| name.contains(&0)) {
            return Err(refused(&self.entry, "its name, or its target, has a NUL byte"));
        }
        let kind = match header.entry_type() {
            // Before there was a type for folders.
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let size = match records.get("size") {
            Some(text) => decimal(text),
            None => natural(&header.as_old().size),
        };
        let size = size.ok_or_else(|| refused(&self.entry, "its size is malformed"))?;
        // The others are all header, whatever their size says.
        let has_data = !matches!(
            header.entry_type(),
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
            member.sparse = sparse::read(&member, self, self.limit).map_err(|error| {
                let is_ours = error.kind() == io::ErrorKind::InvalidData && OverLimit::of(&error).is_none();
                if is_ours { refused(&self.entry, error.to_string()) } else { self.failed(error) }
            })?;
        }
        Ok(member)
    }

    /// The next header, or `None` where the archive ends.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        match self.fill(block)? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        if block.iter().all(|byte| *byte == 0) {
            // Two empty blocks end an archive. Programs differ in what they make of a single one, so that it could hide
            // from one what another sees.
            self.fill(block)?;
            return match block.iter().all(|byte| *byte == 0) {
                true => Ok(None),
                false => Err(malformed("it goes on after an empty block")),
            };
        }
        let sum = |value: fn(u8) -> i64| {
            let counted = block[..148].iter().chain(&block[156..]);
            counted.map(|byte| value(*byte)).sum::<i64>() + 8 * i64::from(b' ')
        };
        // Some wrote the bytes as signed ones.
        let sums = [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))];
        match number(&block[148..156]) {
            Some(checksum) if sums.contains(&checksum) => Ok(Some(header)),
            _ => Err(malformed("the checksum of a header is wrong")),
        }
    }

    /// Reads a block, or what there is of it.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
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
        self.left += std::mem::take(&mut self.padding);
        while self.left > 0 {
            let there = self.fill_buf()?.len();
            self.consume(there);
        }
        Ok(())
    }
}

impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let read = there.len().min(buf.len());
        buf[..read].copy_from_slice(&there[..read]);
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let there = self.inner.fill_buf()?;
        if there.is_empty() {
            let message = "it ends in the middle of a member";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        let wanted = there.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&there[..wanted])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.left -= amount as u64;
    }
}

/// Whether a block is the header of a tar archive, or its end.
pub(crate) fn starts_like_tar(block: &[u8]) -> bool {
    let mut archive = Archive::new(block, &Limits::default());
    block.len() >= BLOCK && archive.header().is_ok()
}

/// The path of an entry whose name is too long to be shown whole.
pub(super) fn cut(path: &[u8]) -> &Path {
    Path::new(os_str(&path[..200.min(path.len())]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_without_end_are_refused_before_they_are_read() {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(1 << 33);
        header.set_cksum();
        let endless = Read::chain(&header.as_bytes()[..], io::repeat(b'1'));

        let next = Archive::new(io::BufReader::new(endless), &Limits::default()).next();

        assert!(matches!(next, Err(Error::Limit { what: "bytes of headers", .. })));
    }

    #[test]
    fn only_two_empty_blocks_end_an_archive() {
        let mut header = Header::new_ustar();
        header.set_size(0);
        header.set_cksum();
        for (blocks, ends) in [(&[&[0; BLOCK][..]][..], true), (&[&[0; BLOCK], &[0; 3]], true)] {
            let next = Archive::new(&blocks.concat()[..], &Limits::default()).next();
            assert_eq!(next.is_ok(), ends);
        }
        let hidden = [&[0; BLOCK][..], header.as_bytes()].concat();

        let next = Archive::new(&hidden[..], &Limits::default()).next();

        assert!(matches!(next, Err(Error::Tar { .. })), "an entry follows");
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
