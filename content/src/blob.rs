//! An open blob: random access, a blocking reader, an async stream, over one source of bytes.

use std::{
    fmt,
    io::{self, Read},
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use oci_spec::image::Digest;

use crate::{Error, Result};

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

/// An open blob. Cheap to clone; clones read independently.
#[derive(Clone, Debug)]
pub struct Blob {
    source: Arc<dyn ReadAt>,
    size: u64,
}
