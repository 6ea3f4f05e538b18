use std::sync::Arc;

use oci_spec::image::Descriptor;
use windlass_content::Provider;
use windlass_images::{ChainId, Lease, LeaseOptions, Resource};
use windlass_rootfs::Unpacker;

use crate::{Result, Windlass, windlass::blocking};

impl Windlass {
    /// Unpacks an image that is here, and gives its ChainID: `None` if it has no layers.
    ///
    /// Layers that were discarded are fetched again: see [`refetching`](Self::refetching).
    ///
    /// # Errors
    ///
    /// As [`image`](Self::image), and [`Error::Rootfs`](crate::Error::Rootfs) if a layer cannot be applied.
    pub async fn unpack(&self, manifest: &Descriptor) -> Result<Option<ChainId>> {
        let lease =
            self.images().lease(LeaseOptions::default().label("unpack", manifest.digest().as_ref())).await?;
        self.unpack_held(self.content_of(manifest).await?, manifest, &lease).await
    }

    /// Unpacks an image out of `provider`, and leaves its snapshots held by `lease`.
    pub(crate) async fn unpack_held(
        &self,
        provider: Arc<dyn Provider>,
        manifest: &Descriptor,
        lease: &Lease,
    ) -> Result<Option<ChainId>> {
        lease.hold(&Resource::Tree(manifest.digest().clone())).await?;
        let unpacker = Unpacker::new(provider, self.open_snapshotter().await?)
            .lease(lease.clone())
            .limit(self.concurrency());
        Ok(unpacker.unpack(manifest).await?.chain_id)
    }

    /// The snapshotter, opened off the runtime's workers.
    pub(crate) async fn open_snapshotter(&self) -> Result<Arc<dyn windlass_snapshot::Snapshotter>> {
        let this = self.clone();
        blocking(move || this.snapshotter()).await
    }
}
