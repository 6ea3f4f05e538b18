use std::time::SystemTime;

use async_trait::async_trait;
use futures::stream::BoxStream;
use oci_spec::image::Digest;

use crate::{Ingester, Provider, Result};

/// A provider and ingester whose content can be listed and deleted.
#[async_trait]
pub trait Store: Provider + Ingester {
    /// What is known of a committed blob.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    async fn info(&self, digest: &Digest) -> Result<Info>;

    /// All committed blobs, in no particular order.
    fn walk(&self) -> BoxStream<'_, Result<Info>>;

    /// Deletes a committed blob. Who has it open can go on reading.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// The ingests in progress, also those of other processes and those that were left unfinished.
    async fn active(&self) -> Result<Vec<Status>>;

    /// Discards an ingest that nobody is writing. Waits for its writer to end, if there is one.
    ///
    /// # Errors
    ///
    /// [`Error::NoIngest`](crate::Error::NoIngest).
    async fn abort(&self, key: &str) -> Result<()>;
}

/// A committed blob.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The blob's name and checksum.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: u64,
    /// When it was committed.
    pub committed: SystemTime,
}

/// An ingest in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The name the ingest was given.
    pub key: String,
    /// What it will be when it is committed.
    pub expected: Digest,
    /// How many bytes are there.
    pub offset: u64,
    /// How many bytes there will be.
    pub total: u64,
    /// When the ingest began.
    pub started: SystemTime,
    /// When the last bytes came.
    pub updated: SystemTime,
}
