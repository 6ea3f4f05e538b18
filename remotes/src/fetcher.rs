use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::ByteStream;

use crate::Result;

/// Gets the bytes of content that is named by a descriptor.
///
/// [`from_fn`] makes one of a closure.
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

/// A fetcher of a closure that takes the descriptor and the first byte wanted.
///
/// It is a function and not an implementation for closures, because a [`Fetcher`] has to be [`fmt::Debug`].
pub fn from_fn<F, Fut>(fetch: F) -> FromFn<F>
where
    F: Fn(Descriptor, u64) -> Fut + Send + Sync,
    Fut: Future<Output = Result<ByteStream>> + Send,
{
    FromFn(fetch)
}

/// A closure that fetches. Made by [`from_fn`].
#[derive(Clone)]
pub struct FromFn<F>(F);

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}

#[async_trait]
impl<F, Fut> Fetcher for FromFn<F>
where
    F: Fn(Descriptor, u64) -> Fut + Send + Sync,
    Fut: Future<Output = Result<ByteStream>> + Send,
{
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        (self.0)(descriptor.clone(), from).await
    }
}
