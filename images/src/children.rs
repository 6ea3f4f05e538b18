use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::{Provider, ProviderExt};

use crate::{
    BoxError, Error, Handler, Next, Platform, Result, media_type,
    view::{Index, Manifest},
};

/// The most a manifest or index may have, in bytes: what registries take, too.
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;
/// The most manifests or layers that one document may list.
const MAX_ENTRIES: usize = 10_000;

/// Goes from an index to its manifests, and from a manifest to its config and layers.
#[derive(Clone, Debug)]
pub struct ChildrenHandler {
    provider: Arc<dyn Provider>,
    platform: Option<Platform>,
    max_manifest: u64,
    max_entries: usize,
}

impl ChildrenHandler {
    /// A handler that reads manifests from `provider`, and visits those for all platforms.
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        Self { provider, platform: None, max_manifest: MAX_MANIFEST, max_entries: MAX_ENTRIES }
    }

    /// Visits of each index only the manifest that runs best on this platform.
    pub fn platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Refuses manifests and indexes that are larger, in bytes. 4 MiB if not set.
    pub fn max_manifest(self, max_manifest: u64) -> Self {
        Self { max_manifest, ..self }
    }

    /// Refuses an index of more manifests, and a manifest of more layers. 10,000 if not set.
    pub fn max_entries(self, max_entries: usize) -> Self {
        Self { max_entries, ..self }
    }

    /// The list, if it is not too long.
    fn bounded(&self, node: &Descriptor, list: Vec<Descriptor>) -> Result<Vec<Descriptor>> {
        match list.len() <= self.max_entries {
            true => Ok(list),
            false => Err(Error::TooMany {
                digest: node.digest().clone(),
                entries: list.len(),
                limit: self.max_entries,
            }),
        }
    }
}

#[async_trait]
impl Handler for ChildrenHandler {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        if media_type::is_index(node.media_type()) {
            let bytes = self.provider.read(node, self.max_manifest).await?;
            let mut index = Index::parse(node, &bytes)?;
            index.manifests = self.bounded(node, index.manifests)?;
            return Ok(Next::Visit(match &self.platform {
                None => index.manifests,
                Some(platform) => vec![choose(node, &index, platform)?],
            }));
        }
        if media_type::is_manifest(node.media_type()) {
            let bytes = self.provider.read(node, self.max_manifest).await?;
            let Manifest { config, layers } = Manifest::parse(node, &bytes)?;
            return Ok(Next::Visit([vec![config], self.bounded(node, layers)?].concat()));
        }
        Ok(Next::Visit(vec![]))
    }
}

/// The manifest of an index that runs best on a platform.
pub(crate) fn choose(node: &Descriptor, index: &Index, platform: &Platform) -> Result<Descriptor> {
    platform.best(&index.manifests).cloned().ok_or_else(|| {
        let offered: Vec<_> =
            index.manifests.iter().filter_map(Platform::of).map(|it| it.to_string()).collect();
        let available = if offered.is_empty() { "nothing".to_owned() } else { offered.join(", ") };
        Error::NoPlatform { wanted: platform.to_string(), digest: node.digest().clone(), available }
    })
}
