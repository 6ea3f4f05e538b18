use std::sync::Arc;

use windlass_images::LeaseOptions;
use windlass_rootfs::{Bundle, spec};

use crate::{
    Error, Platforms, Result, Windlass,
    labels::{IMAGE, MANIFEST},
    windlass::blocking,
};

impl Windlass {
    /// Prepares a container: a writable snapshot named `id` on top of an image, mounted in a bundle below `<root>/bundles`.
    ///
    /// The image is unpacked first, if it is not. To run it, give [`Bundle::path`] to an OCI runtime; afterwards
    /// [`remove_container`](Self::remove_container).
    ///
    /// # Errors
    ///
    /// As [`image`](Self::image); [`Error::Snapshot`](crate::Error::Snapshot) if `id` is taken or nothing can be mounted,
    /// [`Error::Rootfs`](crate::Error::Rootfs) if the image says nothing that can be run. Nothing is left then.
    pub async fn bundle(
        &self,
        name: &str,
        platforms: &Platforms,
        id: &str,
        options: spec::Options,
    ) -> Result<Bundle> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        if id.is_empty() || id == "." || id == ".." || !id.chars().all(plain) {
            return Err(Error::ContainerId { id: id.to_owned() });
        }
        let image = self.image(name, platforms).await?;
        // Held until the container's own snapshot holds it.
        let lease = self.images().lease(LeaseOptions::default().label("run", name)).await?;
        let provider = Arc::new(self.refetching(name).await?);
        let parent = self.unpack_held(provider, image.descriptor(), &lease).await?;
        let parent = parent.map(|chain_id| chain_id.to_string());
        let manifest = serde_json::to_string(image.descriptor()).expect("a descriptor is JSON");
        let labels = [(IMAGE, name), (MANIFEST, &manifest)];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (this, id, used) = (self.clone(), id.to_owned(), name.to_owned());
        let bundle = blocking(move || {
            this.images().touch(&used)?;
            let snapshotter = this.snapshotter()?;
            let mounts = snapshotter.prepare(&id, parent.as_deref())?;
            let make = || {
                snapshotter.update(&id, labels)?;
                let bundle = Bundle::mount(this.bundle_path(&id), &mounts)?;
                bundle.write_spec(&spec::generate(image.config(), &bundle.rootfs(), &id, &options)?)?;
                Ok(bundle)
            };
            make().inspect_err(|_| {
                if let Err(error) = snapshotter.remove(&id) {
                    tracing::warn!(id, %error, "the snapshot of a container that could not be made is left behind");
                }
            })
        })
        .await?;
        lease.release().await?;
        Ok(bundle)
    }
}
