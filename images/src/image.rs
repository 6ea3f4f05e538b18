use std::collections::HashSet;

use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Provider, ProviderExt};

use crate::{
    ChainId, Error, Platform, Result, chain_ids,
    children::{MAX_MANIFEST, choose},
    media_type,
    view::{Config, Index, Manifest},
};

/// How deep indexes may be in each other.
pub(crate) const MAX_DEPTH: usize = 8;

/// One platform's image: its manifest and config, read and checked against each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    descriptor: Descriptor,
    manifest: Manifest,
    config: Config,
}

impl Image {
    /// Goes from `target` (a manifest or an index) to the manifest for a platform, and reads it.
    ///
    /// # Errors
    ///
    /// [`Error::NoPlatform`], [`Error::Malformed`], and [`Error::Content`] if something is not in the store.
    pub async fn open(provider: &dyn Provider, target: &Descriptor, platform: &Platform) -> Result<Self> {
        let mut node = target.clone();
        for _ in 0..MAX_DEPTH {
            if !media_type::is_index(node.media_type()) {
                return Self::read(provider, &node).await;
            }
            let index = Index::parse(&node, &provider.read(&node, MAX_MANIFEST).await?)?;
            node = choose(&node, &index, platform)?;
        }
        let reason = format!("indexes are nested more than {MAX_DEPTH} deep");
        Err(Error::Malformed { what: "image", digest: target.digest().clone(), reason })
    }

    /// Reads the image that a manifest describes.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub async fn read(provider: &dyn Provider, descriptor: &Descriptor) -> Result<Self> {
        let bytes = provider.read(descriptor, MAX_MANIFEST).await?;
        let manifest = Manifest::parse(descriptor, &bytes)?;
        let malformed = |reason| {
            Err(Error::Malformed { what: "image manifest", digest: descriptor.digest().clone(), reason })
        };
        if !media_type::is_config(manifest.config.media_type()) {
            let what = manifest.config.media_type();
            return malformed(format!(
                "its config is {what}: it is an artifact, and cannot be unpacked or run"
            ));
        }
        let config = Config::parse(&manifest.config, &provider.read(&manifest.config, MAX_MANIFEST).await?)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids().len());
        if layers != diff_ids {
            return malformed(format!("it has {layers} layers, and its config has {diff_ids} DiffIDs"));
        }
        Ok(Self { descriptor: descriptor.clone(), manifest, config })
    }

    /// The manifest's descriptor.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The layers, lowest first, each with the digest of its uncompressed bytes.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = (&Descriptor, &Digest)> {
        self.manifest.layers.iter().zip(self.config.diff_ids())
    }

    /// The ChainID after each layer, lowest first.
    pub fn chain_ids(&self) -> Vec<ChainId> {
        chain_ids(self.config.diff_ids())
    }

    /// The name of the whole root file system; `None` if the image has no layers.
    pub fn chain_id(&self) -> Option<ChainId> {
        self.chain_ids().pop()
    }

    /// What its blobs take as they are stored and sent, in bytes: manifest, config and (compressed) layers. A layer that comes
    /// twice counts once.
    pub fn size(&self) -> u64 {
        let mut seen = HashSet::new();
        let layers = self.manifest.layers.iter().filter(|it| seen.insert(it.digest()));
        self.descriptor.size() + self.manifest.config.size() + layers.map(Descriptor::size).sum::<u64>()
    }

    /// Whether it runs on a platform.
    pub fn runs_on(&self, platform: &Platform) -> bool {
        platform.runs(&self.config.os, &self.config.architecture, self.config.variant.as_deref())
    }
}
