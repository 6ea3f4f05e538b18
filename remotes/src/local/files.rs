//! What a folder and an archive have in common: regular files by their names, and among them blobs.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::Descriptor;
use windlass_content::{Blob, ByteStream, ReadAt, hash::Hasher};
use windlass_images::archive::{MAX_JSON, layout::blob_name};

use super::blocking;
use crate::{Error, Fetcher, Result};

/// Regular files by their names. Its calls block on the disk.
pub(super) trait Files: fmt::Debug + Send + Sync {
    /// The folder or the archive.
    fn path(&self) -> &Path;

    /// Opens the file of a name, which is relative and has slashes; `None` if there is no such file.
    fn open(&self, name: &str) -> Result<Option<Span>>;
}

impl dyn Files + '_ {
    /// An error that says what is wrong with the file of a name.
    pub(super) fn refused(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::File { path: self.path().join(name), line: None, reason: reason.into() }
    }

    /// Reads a file without which the whole is not what it should be.
    pub(super) fn read(&self, name: &str) -> Result<Bytes> {
        self.open(name)?.ok_or_else(|| self.refused(name, "it is missing"))?.read()
    }

    /// Opens the file of a blob, which is as long as its descriptor says.
    pub(super) fn open_blob(&self, descriptor: &Descriptor) -> Result<Span> {
        let name = blob_name(descriptor);
        let span = self.open(&name)?.ok_or_else(|| not_found(self.path(), descriptor))?;
        match span.size == descriptor.size() {
            true => Ok(span),
            false => Err(wrong_size(&span.path, descriptor, span.size)),
        }
    }

    /// Reads a manifest or index, and compares its digest.
    pub(super) fn read_blob(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let span = self.open_blob(descriptor)?;
        let bytes = span.read()?;
        let mut hasher = Hasher::new(descriptor.digest())?;
        hasher.update(&bytes);
        let actual = hasher.finish();
        match &actual == descriptor.digest() {
            true => Ok(bytes),
            false => Err(Error::DigestMismatch {
                url: span.path.display().to_string(),
                expected: descriptor.digest().clone(),
                actual,
            }),
        }
    }
}

/// The content of a descriptor is not in a local file.
pub(super) fn not_found(path: &Path, descriptor: &Descriptor) -> Error {
    Error::NotFound { name: descriptor.digest().to_string(), url: path.display().to_string() }
}

/// What should hold a blob is longer or shorter than the blob.
pub(super) fn wrong_size(path: &Path, descriptor: &Descriptor, size: u64) -> Error {
    let reason = format!("it has {size} bytes, but {} has {}", descriptor.digest(), descriptor.size());
    Error::File { path: path.into(), line: None, reason }
}

/// Fetches the blobs of an image layout.
#[derive(Debug)]
pub(super) struct BlobFetcher(pub(super) Arc<dyn Files>);

#[async_trait]
impl Fetcher for BlobFetcher {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        let (files, descriptor) = (self.0.clone(), descriptor.clone());
        let span = blocking(move || files.open_blob(&descriptor)).await?;
        Ok(span.blob().stream(from))
    }
}

/// The bytes of one file: a whole one, or a range in an archive.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) file: Arc<File>,
    /// Where it starts in `file`, in bytes.
    pub(super) start: u64,
    /// How many bytes it has.
    pub(super) size: u64,
    /// What to call it in messages.
    pub(super) path: PathBuf,
}

impl Span {
    /// The bytes as a blob, whose reads fail if the file was shortened meanwhile.
    pub(super) fn blob(self) -> Blob {
        let size = self.size;
        Blob::new(Arc::new(self), size)
    }

    /// All of it in memory.
    pub(super) fn read(&self) -> Result<Bytes> {
        if self.size > MAX_JSON {
            return Err(Error::TooLarge { url: self.path.display().to_string(), limit: MAX_JSON });
        }
        let mut bytes = Vec::new();
        self.clone().blob().reader(0).read_to_end(&mut bytes).map_err(|source| self.unreadable(source))?;
        Ok(bytes.into())
    }

    /// The first bytes of it, as many as `N` or as there are, followed by zeros.
    pub(super) fn head<const N: usize>(&self) -> Result<[u8; N]> {
        let mut head = Vec::new();
        let reader = self.clone().blob().reader(0);
        reader.take(N as u64).read_to_end(&mut head).map_err(|source| self.unreadable(source))?;
        head.resize(N, 0);
        Ok(head.try_into().expect("it was just given this length"))
    }

    pub(super) fn unreadable(&self, source: io::Error) -> Error {
        Error::Io { op: "read", path: self.path.clone(), source }
    }
}

impl ReadAt for Span {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.size.saturating_sub(offset);
        let wanted = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match ReadAt::read_at(&*self.file, &mut buf[..wanted], self.start + offset)? {
            0 => {
                let message = format!("{} was shortened while it was read", self.path.display());
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
            }
            read => Ok(read),
        }
    }
}
