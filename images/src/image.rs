use oci_spec::image::{Descriptor, Digest};
use windlass_content::Provider;

use crate::{ChainId, Error, Platform, Result, chain_ids, document, media_type, view};

/// How many indexes may stand above a manifest.
const MAX_DEPTH: usize = 8;

/// The image of one platform: its manifest and its config, read and checked against each other.
#[derive(Clone, Debug)]
pub struct Image {
    target: Descriptor,
    manifest_descriptor: Descriptor,
    manifest: view::Manifest,
    config: view::Config,
}

impl Image {
    /// Reads the image from a store. `target` is a manifest, or an index that has one for `platform`.
    ///
    /// The layers need not be there. A manifest is taken as it is, whatever platform its config names.
    ///
    /// # Errors
    ///
    /// [`Error::NoPlatform`], [`Error::NotAnImage`], [`Error::LayerCount`] and [`Error::Malformed`] say what is wrong
    /// with the image, [`Error::Content`] which part of it is missing.
    pub async fn open(provider: &dyn Provider, target: &Descriptor, platform: &Platform) -> Result<Self> {
        let mut manifest_descriptor = target.clone();
        let mut depth = 0;
        while media_type::is_index(manifest_descriptor.media_type()) {
            depth += 1;
            if depth > MAX_DEPTH {
                return Err(Error::Malformed {
                    what: format!("index {}", target.digest()),
                    reason: format!("it has indexes in indexes, more than {MAX_DEPTH} deep"),
                });
            }
            let index = document::index(provider, &manifest_descriptor, document::MAX_SIZE).await?;
            manifest_descriptor = document::choose(&manifest_descriptor, &index.manifests, platform)?;
        }
        if !media_type::is_manifest(manifest_descriptor.media_type()) {
            return Err(not_an_image(&manifest_descriptor, &manifest_descriptor));
        }
        let manifest = document::manifest(provider, &manifest_descriptor, document::MAX_SIZE).await?;
        if !media_type::is_config(manifest.config.media_type()) {
            return Err(not_an_image(&manifest_descriptor, &manifest.config));
        }
        let config = document::read(provider, &manifest.config, document::MAX_SIZE).await?;
        let config = view::Config::parse(&manifest.config, &config)?;
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(Error::LayerCount {
                config: manifest.config.digest().clone(),
                diff_ids: config.diff_ids.len(),
                manifest: manifest_descriptor.digest().clone(),
                layers: manifest.layers.len(),
            });
        }
        Ok(Self { target: target.clone(), manifest_descriptor, manifest, config })
    }

    /// What was opened: the manifest, or an index above it.
    pub fn target(&self) -> &Descriptor {
        &self.target
    }

    /// What the manifest is named by.
    pub fn manifest_descriptor(&self) -> &Descriptor {
        &self.manifest_descriptor
    }

    /// The manifest.
    pub fn manifest(&self) -> &view::Manifest {
        &self.manifest
    }

    /// What the config is named by.
    pub fn config_descriptor(&self) -> &Descriptor {
        &self.manifest.config
    }

    /// The config.
    pub fn config(&self) -> &view::Config {
        &self.config
    }

    /// The layers as they are stored, the lowest first.
    pub fn layers(&self) -> &[Descriptor] {
        &self.manifest.layers
    }

    /// The digests of the uncompressed layers, as many and in the same order as [`layers`](Self::layers).
    pub fn diff_ids(&self) -> &[Digest] {
        &self.config.diff_ids
    }

    /// The name of all layers together. `None` if there are none.
    pub fn chain_id(&self) -> Option<ChainId> {
        chain_ids(self.diff_ids()).pop()
    }
}

fn not_an_image(content: &Descriptor, typed: &Descriptor) -> Error {
    Error::NotAnImage { digest: content.digest().clone(), media_type: typed.media_type().clone() }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use windlass_content::hash;

    use super::*;
    use crate::testing::{Memory, on};

    #[tokio::test]
    async fn an_image_is_found_through_nested_indexes() {
        let store = Memory::default();
        let layer = store.add(MediaType::ImageLayer, "layer");
        let diff_ids = [hash::sha256(b"layer")];
        let manifest = on(store.add_image(&[&layer], &diff_ids), "linux/s390x");
        let target = store.add_index(&[store.add_index(std::slice::from_ref(&manifest))]);
        let platform = Platform::new("linux", "s390x", None);

        let image = Image::open(&store, &target, &platform).await.expect("all is there");

        assert_eq!((image.target(), image.manifest_descriptor()), (&target, &manifest));
        assert_eq!((image.layers(), image.diff_ids()), (&[layer][..], &diff_ids[..]));
        assert_eq!(image.chain_id().expect("it has a layer").digest(), &diff_ids[0]);
        assert_eq!(image.config_descriptor(), &image.manifest().config);
        assert_eq!(image.config().architecture, "amd64");
    }

    #[tokio::test]
    async fn what_is_no_image_says_why() {
        let store = Memory::default();
        let empty = store.add(MediaType::EmptyJSON, "{}");
        let artifact = serde_json::json!({"schemaVersion": 2, "config": empty, "layers": []}).to_string();
        let artifact = store.add(MediaType::ImageManifest, artifact);
        let layer = store.add(MediaType::ImageLayer, "layer");
        let count = store.add_image(&[&layer], &[]);
        let missing = Memory::default().add_image(&[], &[]);
        let docker = store.add("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}");
        for (target, why) in [
            (&artifact, "is not a container image: its type is application/vnd.oci.empty.v1+json"),
            (&layer, "is not a container image: its type is application/vnd.oci.image.layer.v1.tar"),
            (&docker, "is not a container image"),
            (&count, "lists 0 layers, but its manifest"),
            (&missing, "cannot read application/vnd.oci.image.manifest.v1+json"),
        ] {
            let err = Image::open(&store, target, &Platform::host()).await.expect_err(why).to_string();
            assert!(err.contains(why), "{why}: {err}");
        }
    }
}
