use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Blob, Error as ContentError, Provider};

use super::spool::Range;
use crate::Result;

/// A JSON document of the archive.
pub(super) type Document = Option<Bytes>;

/// Where a file of the archive went.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// Into the store.
    Blob(Descriptor),
    /// Into the temporary file.
    Spooled(Range),
}

impl Found {
    /// The digest of its bytes.
    pub(super) fn digest(&self) -> &Digest {
        match self {
            Self::Blob(blob) => blob.digest(),
            Self::Spooled(range) => &range.digest,
        }
    }

    /// How many bytes it has.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Blob(blob) => blob.size(),
            Self::Spooled(range) => range.size,
        }
    }

    /// Opens it where it is.
    pub(super) async fn open(&self, provider: &dyn Provider) -> Result<Blob> {
        match self {
            Self::Blob(blob) => Ok(provider.open(blob).await?),
            Self::Spooled(range) => Ok(range.blob()),
        }
    }

    /// Its first bytes: at least four, if it has as many.
    pub(super) async fn start(&self, provider: &dyn Provider) -> Result<Bytes> {
        let first = self.open(provider).await?.stream(0).try_next().await;
        let digest = self.digest();
        let first = first.map_err(|source| ContentError::Source { digest: digest.clone(), source })?;
        Ok(first.unwrap_or_default())
    }
}
