//! Reading manifests, indexes and configs from a store.

use bytes::Bytes;
use oci_spec::image::Descriptor;
use windlass_content::{Provider, ProviderExt};

use crate::{Error, Platform, Result, view};

/// The size that a document may have if nobody says otherwise, in bytes.
pub(crate) const MAX_SIZE: u64 = 4 << 20;

/// Reads a document into memory, if it is not too large for that.
pub(crate) async fn read(provider: &dyn Provider, descriptor: &Descriptor, limit: u64) -> Result<Bytes> {
    let (digest, media_type) = (descriptor.digest().clone(), descriptor.media_type().clone());
    if descriptor.size() > limit {
        return Err(Error::TooLarge { digest, media_type, size: descriptor.size(), limit });
    }
    provider.read(descriptor, limit).await.map_err(|source| Error::Content { digest, media_type, source })
}

/// The entry of an index for a platform.
pub(crate) fn choose(index: &Descriptor, manifests: &[Descriptor], wanted: &Platform) -> Result<Descriptor> {
    wanted.best(manifests).cloned().ok_or_else(|| Error::NoPlatform {
        index: index.digest().clone(),
        wanted: wanted.clone(),
        available: manifests.iter().filter_map(|entry| entry.platform().as_ref().map(Platform::from)).collect(),
    })
}

/// Reads and parses an index.
pub(crate) async fn index(provider: &dyn Provider, descriptor: &Descriptor, limit: u64) -> Result<view::Index> {
    view::Index::parse(descriptor, &read(provider, descriptor, limit).await?)
}

/// Reads and parses a manifest.
pub(crate) async fn manifest(provider: &dyn Provider, descriptor: &Descriptor, limit: u64) -> Result<view::Manifest> {
    view::Manifest::parse(descriptor, &read(provider, descriptor, limit).await?)
}
