use std::{
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
    sync::Arc,
};

use oci_spec::image::Digest;
use tokio::sync::mpsc;
use windlass_content::{Blob, ReadAt, hash::Hasher};

use super::scan::{Event, cannot_read, nobody_waits};
use crate::{Error, Result};

/// How much is copied at once, in bytes.
const CHUNK: usize = 256 << 10;

/// A temporary file without a name, for files whose digests are not known before their end. The kernel removes it when
/// the last range of it is dropped, whatever happens.
#[derive(Debug)]
pub(super) struct Spool {
    folder: PathBuf,
    file: Option<Arc<File>>,
    length: u64,
}

/// One file in the spool.
#[derive(Clone, Debug)]
pub(super) struct Range {
    file: Arc<File>,
    start: u64,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

impl Spool {
    /// A spool in a folder, or in the system's. The file is made when it is first needed.
    pub(super) fn new(folder: Option<PathBuf>) -> Self {
        Self { folder: folder.unwrap_or_else(std::env::temp_dir), file: None, length: 0 }
    }

    /// Copies all bytes of a reader, as long as somebody receives events.
    pub(super) fn take_in(&mut self, bytes: &mut impl Read, events: &mpsc::Sender<Event>) -> Result<Range> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => {
                let file = tempfile::tempfile_in(&self.folder).map_err(|it| self.refused(it))?;
                self.file.insert(Arc::new(file)).clone()
            }
        };
        let start = self.length;
        let mut hasher = Hasher::sha256();
        let mut buffer = vec![0; CHUNK];
        loop {
            if events.is_closed() {
                return Err(nobody_waits());
            }
            match bytes.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    (&*file).write_all(&buffer[..read]).map_err(|it| self.refused(it))?;
                    self.length += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(cannot_read(error)),
            }
        }
        Ok(Range { file, start, size: self.length - start, digest: hasher.finish() })
    }

    fn refused(&self, source: io::Error) -> Error {
        Error::Io { op: "write a temporary file in", path: self.folder.clone(), source }
    }
}

impl Range {
    /// Its bytes.
    pub(super) fn blob(&self) -> Blob {
        Blob::new(Arc::new(self.clone()), self.size)
    }
}

impl ReadAt for Range {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let wanted = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_at(&mut buf[..wanted], self.start + offset)
    }
}
