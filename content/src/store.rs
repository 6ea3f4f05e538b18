use std::time::SystemTime;

use async_trait::async_trait;
use futures::stream::BoxStream;
use oci_spec::image::{Descriptor, Digest};

use crate::{Filter, Ingester, Labels, Provider, Result};

/// A provider and ingester whose content can be listed, labelled and deleted.
#[async_trait]
pub trait Store: Provider + Ingester {
    /// What is known of a committed blob.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    async fn info(&self, digest: &Digest) -> Result<Info>;

    /// Replaces all labels of a committed blob. Of two updates at the same time, one wins as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::Label`](crate::Error::Label).
    async fn update(&self, digest: &Digest, labels: Labels) -> Result<Info>;

    /// The committed blobs that `filter` lets through, in no particular order, as they are found.
    ///
    /// A blob that is committed or deleted meanwhile may or may not be among them.
    fn walk(&self, filter: Filter) -> BoxStream<'_, Result<Info>>;

    /// Deletes a committed blob and its labels. Who has it open can go on reading.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// How far an ingest in progress is, whoever writes it.
    ///
    /// # Errors
    ///
    /// [`Error::NoIngest`](crate::Error::NoIngest).
    async fn status(&self, key: &str) -> Result<Status>;

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
    /// What its committers and [`Store::update`] have written on it.
    pub labels: Labels,
}

impl Info {
    /// What a store of one's own knows of a blob, without labels.
    pub fn new(digest: Digest, size: u64, committed: SystemTime) -> Self {
        Self { digest, size, committed, labels: Labels::new() }
    }
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

impl Status {
    /// How far an ingest of `expected` is in a store of one's own that begins now.
    pub fn new(key: impl Into<String>, expected: &Descriptor, offset: u64) -> Self {
        let now = SystemTime::now();
        Self {
            key: key.into(),
            expected: expected.digest().clone(),
            offset,
            total: expected.size(),
            started: now,
            updated: now,
        }
    }
}
