use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use oci_spec::image::Descriptor;

use crate::{Blob, Result};

/// Reads blobs.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Opens a blob. Nothing is read yet.
    ///
    /// Of the descriptor, digest and size count. The blob stays readable until it is dropped, also when
    /// it is deleted meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if the blob is not there. What an ingest in progress
    /// counts as is the implementation's to say: for [`LocalStore`](crate::LocalStore) as not found,
    /// for [`Following`](crate::Following) as found.
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob>;
}

#[async_trait]
impl<P: Provider + ?Sized> Provider for Arc<P> {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        (**self).open(descriptor).await
    }
}

/// What follows from [`Provider`].
#[async_trait]
pub trait ProviderExt: Provider {
    /// Reads a whole blob into memory, at most `limit` bytes of it.
    ///
    /// # Errors
    ///
    /// As [`Provider::open`] and [`Blob::bytes`]: also if the bytes are not those of the digest any more.
    async fn read(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes>;
}

#[async_trait]
impl<P: Provider + ?Sized> ProviderExt for P {
    async fn read(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
        self.open(descriptor).await?.bytes(descriptor.digest(), limit).await
    }
}
