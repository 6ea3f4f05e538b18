use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::Provider;

use crate::{BoxError, Handler, Next, Platform, Result, document, media_type};

/// Looks into indexes and manifests, and leads on to what they name.
///
/// It reads them from a store, so a handler before it has to put them there.
#[derive(Clone, Debug)]
pub struct ChildrenHandler {
    provider: Arc<dyn Provider>,
    platform: Option<Platform>,
    max_manifest_size: u64,
}

impl ChildrenHandler {
    /// A handler that reads from this store.
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        Self { provider, platform: None, max_manifest_size: document::MAX_SIZE }
    }

    /// Follows only the best match for this platform in each index. All entries if not set.
    pub fn platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Refuses manifests and indexes of more than this many bytes. 4 MiB if not set.
    pub fn max_manifest_size(self, max_manifest_size: u64) -> Self {
        Self { max_manifest_size, ..self }
    }

    async fn children(&self, node: &Descriptor) -> Result<Vec<Descriptor>> {
        if media_type::is_index(node.media_type()) {
            let index = document::index(&*self.provider, node, self.max_manifest_size).await?;
            return match &self.platform {
                Some(platform) => Ok(vec![document::choose(node, &index.manifests, platform)?]),
                None => Ok(index.manifests),
            };
        }
        if media_type::is_manifest(node.media_type()) {
            let manifest = document::manifest(&*self.provider, node, self.max_manifest_size).await?;
            return Ok([vec![manifest.config], manifest.layers].concat());
        }
        Ok(Vec::new())
    }
}

#[async_trait]
impl Handler for ChildrenHandler {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        Ok(Next::Visit(self.children(node).await?))
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::testing::{Memory, on};

    #[tokio::test]
    async fn an_index_leads_to_the_platforms_manifest_and_that_to_config_and_layers() {
        let store = Arc::new(Memory::default());
        let layer = store.add(MediaType::ImageLayer, "layer");
        let arm = on(store.add_image(&[&layer], std::slice::from_ref(layer.digest())), "linux/arm64/v8");
        let amd = on(store.add_image(&[], &[]), "linux/amd64");
        let index = store.add_index(&[amd.clone(), arm.clone()]);
        let all = ChildrenHandler::new(store);
        let one = all.clone().platform(Platform::new("linux", "arm64", None));

        assert_eq!(all.children(&index).await.expect("readable"), [amd, arm.clone()]);
        assert_eq!(one.children(&index).await.expect("readable"), [arm.clone()]);
        let below = one.children(&arm).await.expect("readable");
        assert_eq!((below.len(), below[0].media_type(), &below[1]), (2, &MediaType::ImageConfig, &layer));
        assert_eq!(one.children(&layer).await.expect("nothing to read"), []);
    }

    #[tokio::test]
    async fn what_cannot_be_followed_says_why() {
        let store = Arc::new(Memory::default());
        let index = store.add_index(&[on(store.add_image(&[], &[]), "linux/s390x")]);
        let handler = ChildrenHandler::new(store).platform(Platform::new("linux", "mips", None));

        let none = handler.children(&index).await.expect_err("it has no such platform").to_string();
        let large = handler.max_manifest_size(1).children(&index).await.expect_err("it is larger").to_string();

        assert!(none.contains("no image for linux/mips") && none.ends_with("it offers linux/s390x"), "{none}");
        assert!(large.ends_with("the limit is 1"), "{large}");
    }
}
