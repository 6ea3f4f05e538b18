use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::{ByteStream, Error as ContentError, Provider};

use crate::{Error, Fetcher, Result};

/// A fetcher that reads from a content store, so that what is there can go elsewhere.
pub fn from_provider<P: Provider>(provider: P) -> FromProvider<P> {
    FromProvider(provider)
}

/// A content store that fetches. Made by [`from_provider`].
#[derive(Clone, Debug)]
pub struct FromProvider<P>(P);

#[async_trait]
impl<P: Provider> Fetcher for FromProvider<P> {
    /// [`Error::NotFound`] says which blob is not in the store; what else the store answers is [`Error::Content`].
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        let blob = self.0.open(descriptor).await.map_err(|error| match error {
            ContentError::NotFound { digest } => {
                Error::NotFound { name: digest.to_string(), url: "the content store".into() }
            }
            other => Error::Content(other),
        })?;
        match blob.size() == descriptor.size() {
            true => Ok(blob.stream(from)),
            false => Err(Error::Content(ContentError::SizeMismatch {
                digest: descriptor.digest().clone(),
                expected: descriptor.size(),
                actual: blob.size(),
            })),
        }
    }
}
