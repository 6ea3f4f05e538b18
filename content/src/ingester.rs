use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use oci_spec::image::Descriptor;

use crate::{ByteStream, Labels, Result, Status};

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

    /// What [`Store::status`](crate::Store::status) says of the ingest, with the bytes that are still on their way to the disk.
    fn status(&self) -> Status;

    /// Appends all of `body`, as it comes.
    ///
    /// May be called again, with the bytes from [`offset`](Self::offset) on.
    ///
    /// # Errors
    ///
    /// [`Error::Source`](crate::Error::Source) if `body` fails: what came before is kept, and the writer goes on
    /// from its new offset. [`Error::SizeMismatch`](crate::Error::SizeMismatch) as soon as there is more
    /// than the descriptor promised: the excess is neither stored nor read further.
    /// [`Error::Io`](crate::Error::Io), for instance of a full disk, ends the writer: what fitted is kept, to be resumed,
    /// and the key is free. It may be told by a later call than the one that brought the bytes.
    async fn append(&mut self, body: ByteStream) -> Result<()>;

    /// Goes back to the first `size` bytes: the next byte goes there. `size` 0 starts over.
    ///
    /// Who follows the blob meanwhile may have read what is taken back: reads fail as if the writer had given up, unless
    /// `size` is the [`offset`](Self::offset) already. The bytes that stay are hashed again, at the speed of the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Truncate`](crate::Error::Truncate) if there are fewer bytes than that; nothing changes.
    async fn truncate(&mut self, size: u64) -> Result<()>;

    /// Verifies size and digest, then makes the blob readable with its `labels`, in one step.
    ///
    /// Committing a blob that somebody else committed first succeeds; `labels` are added to the ones it has.
    ///
    /// # Errors
    ///
    /// Every error frees the key for the next writer. [`Error::Label`](crate::Error::Label) and
    /// [`Error::SizeMismatch`](crate::Error::SizeMismatch) keeps a short ingest, to be resumed.
    /// [`Error::DigestMismatch`](crate::Error::DigestMismatch) discards it, since resuming cannot help; so does [`Error::Io`](crate::Error::Io) if the disk did not
    /// take the bytes, since nobody knows which ones are on it.
    async fn commit(self: Box<Self>, labels: Labels) -> Result<()>;
}

/// What follows from [`Writer`].
#[async_trait]
pub trait WriterExt: Writer {
    /// Appends bytes that are at hand. As [`Writer::append`].
    async fn write(&mut self, bytes: Bytes) -> Result<()>;

    /// Appends what is missing, from a source that can only be read from the start of the blob: what is there
    /// already is read past. A source with random access does without: `append(blob.stream(offset))`.
    ///
    /// # Errors
    ///
    /// As [`Writer::append`].
    async fn append_from_start(&mut self, body: ByteStream) -> Result<()>;
}

#[async_trait]
impl<W: Writer + ?Sized> WriterExt for W {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.append(Box::pin(stream::once(async { Ok(bytes) }))).await
    }

    async fn append_from_start(&mut self, body: ByteStream) -> Result<()> {
        let mut known = self.offset();
        let rest = body.map(move |chunk| {
            chunk.map(|mut bytes| {
                let passed = usize::try_from(known).unwrap_or(usize::MAX).min(bytes.len());
                known -= passed as u64;
                bytes.split_off(passed)
            })
        });
        self.append(rest.boxed()).await
    }
}
