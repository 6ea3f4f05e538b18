//! An open blob: random access, a blocking reader, an async stream, over one source of bytes.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use oci_spec::image::Digest;
use tokio::task::spawn_blocking;

use crate::{Error, Result, hash::Hasher};

/// How much a stream reads at once, in bytes.
const CHUNK: usize = 256 << 10;

/// Bytes as they come, in chunks of any size.
pub type ByteStream = BoxStream<'static, io::Result<Bytes>>;

/// Positional, blocking reads: what a store has to implement for [`Blob`].
pub trait ReadAt: fmt::Debug + Send + Sync {
    /// Reads up to `buf.len()` bytes that start `offset` bytes into the blob.
    ///
    /// May block until the bytes are there. 0 is the end of the blob, and is only reported for a blob that
    /// is complete and verified.
    ///
    /// # Errors
    ///
    /// What the source answers, and if a blob that is still being written will not be completed.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, offset)
    }
}

/// Bytes in memory are a blob, for tests and small stores.
impl ReadAt for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let read = buf.len().min(self.len() - start);
        buf[..read].copy_from_slice(&self[start..start + read]);
        Ok(read)
    }
}

/// An open blob. Cheap to clone; clones read independently.
#[derive(Clone, Debug)]
pub struct Blob {
    source: Arc<dyn ReadAt>,
    size: u64,
}

impl Blob {
    /// A blob of `size` bytes.
    pub fn new(source: Arc<dyn ReadAt>, size: u64) -> Self {
        Self { source, size }
    }

    /// How many bytes it has, or will have.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads some bytes at a position. Blocks. As [`ReadAt::read_at`].
    ///
    /// # Errors
    ///
    /// As [`ReadAt::read_at`].
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.source.read_at(buf, offset)
    }

    /// A reader of the bytes from `from` on, counted from the start. Its reads block.
    pub fn reader(&self, from: u64) -> BlobReader {
        BlobReader { blob: self.clone(), position: from }
    }

    /// A stream of the bytes from `from` on. Reads happen on blocking threads, one chunk ahead of nobody.
    pub fn stream(&self, from: u64) -> ByteStream {
        Box::pin(stream::try_unfold(self.reader(from), |mut reader| async move {
            let read = move || {
                let mut buffer = vec![0; CHUNK];
                let read = reader.read(&mut buffer)?;
                buffer.truncate(read);
                io::Result::Ok((reader, buffer))
            };
            let (reader, buffer) = spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok((!buffer.is_empty()).then(|| (Bytes::from(buffer), reader)))
        }))
    }

    /// The whole blob in memory, if it is the one of this digest.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] before anything is read if the blob has more than `limit` bytes, [`Error::SizeMismatch`] if
    /// it ends elsewhere than it said, [`Error::DigestMismatch`] if it was damaged since it was committed,
    /// [`Error::UnsupportedDigest`] if nobody can tell, [`Error::Source`] if it cannot be read.
    pub async fn bytes(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        if self.size > limit {
            return Err(Error::TooLarge { digest: digest.clone(), size: self.size, limit });
        }
        let mut hasher = Hasher::new(digest)?;
        let (mut reader, size) = (self.reader(0), self.size);
        let read = move || {
            let mut bytes = Vec::new();
            reader.by_ref().take(size + 1).read_to_end(&mut bytes)?;
            hasher.update(&bytes);
            Ok((bytes, hasher.finish()))
        };
        let (bytes, actual) = spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|source| Error::Source { digest: digest.clone(), source })?;
        if bytes.len() as u64 != size {
            let actual = bytes.len() as u64;
            return Err(Error::SizeMismatch { digest: digest.clone(), expected: size, actual });
        }
        match actual == *digest {
            true => Ok(bytes.into()),
            false => Err(Error::DigestMismatch { expected: digest.clone(), actual }),
        }
    }
}

/// A blocking reader of a [`Blob`].
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read_at(buf, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
