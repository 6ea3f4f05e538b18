//! An uncompressed tar archive, as an index of ranges. Nothing is extracted.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use windlass_content::ReadAt;
use windlass_images::archive::{Entries, Kind, MAX_HOPS, Source, Table, TooManyHops};

use super::{
    files::{Files, Span},
    folder::open_regular,
};
use crate::{Error, Result};

/// A tar archive, of which the headers were read once.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<std::fs::File>,
    path: PathBuf,
    ranges: Table<Range>,
}

/// Where a file is in the archive, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    size: u64,
}

impl Archive {
    /// Opens an archive, and reads its headers.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let ranges = scan(&file, length).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::File { path: path.into(), line: None, reason: source.to_string() }
            }
            _ => Error::Io { op: "read", path: path.into(), source },
        })?;
        Ok(Self { file: Arc::new(file), path: path.into(), ranges })
    }
}

impl Files for Archive {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str) -> Result<Option<Span>> {
        let path = self.path.join(name);
        match self.ranges.find(name) {
            Ok(Some(&Range { start, size })) => Ok(Some(Span { file: self.file.clone(), start, size, path })),
            Ok(None) => Ok(None),
            Err(TooManyHops) => {
                let reason = format!("more than {MAX_HOPS} links lead from it to each other");
                Err(Error::File { path, line: None, reason })
            }
        }
    }
}

/// Reads all headers of an archive of `length` bytes, and passes over what is between them.
fn scan(source: &dyn ReadAt, length: u64) -> io::Result<Table<Range>> {
    let mut entries = Entries::new(Positioned { source, position: 0, length });
    let mut ranges = Table::default();
    while let Some(entry) = entries.advance()? {
        match entry.kind {
            Kind::File(size) => ranges.file(entry.name, Range { start: entries.position(), size }),
            Kind::Link(target) => ranges.link(entry.name, target),
            Kind::Other => ranges.remove(&entry.name),
        }
    }
    Ok(ranges)
}

/// Reads in order, and passes over bytes without reading them.
#[derive(Debug)]
struct Positioned<'a> {
    source: &'a dyn ReadAt,
    position: u64,
    length: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read_at(buf, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Source for Positioned<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = bytes.min(self.length.saturating_sub(self.position));
        self.position += skipped;
        Ok(skipped)
    }
}
