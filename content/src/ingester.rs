use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use oci_spec::image::Descriptor;

use crate::{ByteStream, Result};

/// Takes blobs in.
#[async_trait]
pub trait Ingester: fmt::Debug + Send + Sync {
    /// Opens a writer for a blob, or says that it is there already.
    ///
    /// `key` names the ingest, for instance `layer-sha256:…`: there is one writer per key at any time. A second
    /// caller, in this process or another, waits for the first to end. A key that was left unfinished is
    /// resumed, if it was for the same digest and size; otherwise it starts anew.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedDigest`](crate::Error::UnsupportedDigest), [`Error::Io`](crate::Error::Io).
    async fn ingest(&self, key: &str, descriptor: &Descriptor) -> Result<Ingest>;
}

#[async_trait]
impl<I: Ingester + ?Sized> Ingester for Arc<I> {
    async fn ingest(&self, key: &str, descriptor: &Descriptor) -> Result<Ingest> {
        (**self).ingest(key, descriptor).await
    }
}

/// The answer to [`Ingester::ingest`].
#[derive(Debug)]
pub enum Ingest {
    /// The blob is already committed. There is nothing to write.
    Present,
    /// Write from [`Writer::offset`] on.
    Open(Box<dyn Writer>),
}

/// Writes one blob. Dropping it keeps what was written, to be resumed later.
#[async_trait]
pub trait Writer: fmt::Debug + Send {
    /// How many bytes of the blob are there, from its start: where the next byte goes.
    fn offset(&self) -> u64;

    /// Appends all of `body`, as it comes.
    ///
    /// May be called again, with the bytes from [`offset`](Self::offset) on.
    ///
    /// # Errors
    ///
    /// [`Error::Source`](crate::Error::Source) if `body` fails: what came before is kept, and the writer goes on
    /// from its new offset. [`Error::SizeMismatch`](crate::Error::SizeMismatch) as soon as there is more
    /// than the descriptor promised: the excess is neither stored nor read further.
    async fn append(&mut self, body: ByteStream) -> Result<()>;

    /// Verifies size and digest, then makes the blob readable, in one step.
    ///
    /// Committing a blob that somebody else committed first succeeds.
    ///
    /// # Errors
    ///
    /// [`Error::SizeMismatch`](crate::Error::SizeMismatch) keeps a short ingest, to be resumed.
    /// [`Error::DigestMismatch`](crate::Error::DigestMismatch) discards it, since resuming cannot help.
    async fn commit(self: Box<Self>) -> Result<()>;
}

/// What follows from [`Writer`].
#[async_trait]
pub trait WriterExt: Writer {
    /// Appends bytes that are at hand. As [`Writer::append`].
    async fn write(&mut self, bytes: Bytes) -> Result<()>;
}

#[async_trait]
impl<W: Writer + ?Sized> WriterExt for W {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.append(Box::pin(stream::once(async { Ok(bytes) }))).await
    }
}
