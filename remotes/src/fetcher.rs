use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::ByteStream;

use crate::Result;

/// Gets the bytes of content that is named by a descriptor.
#[async_trait]
pub trait Fetcher: fmt::Debug + Send + Sync {
    /// Opens a stream of the content's bytes from `from` on, counted from its start.
    ///
    /// The stream ends where the content ends, and fails if it ends before: it never gives more than
    /// `descriptor.size() - from` bytes. The bytes are not verified.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if the content is not there. Other errors say whether the same call
    /// may succeed later ([`Error::is_transient`](crate::Error::is_transient)).
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream>;
}

#[async_trait]
impl<F: Fetcher + ?Sized> Fetcher for Arc<F> {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        (**self).fetch(descriptor, from).await
    }
}
