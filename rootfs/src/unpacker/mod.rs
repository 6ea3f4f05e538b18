//! From an image to snapshots: one for each layer.

mod active;
mod alongside;
mod chain_lock;
mod range_lock;
mod sequence;
mod stack;
mod write_back;

use std::{num::NonZeroUsize, sync::Arc};

use oci_spec::image::{Descriptor, Digest};
use tokio::{sync::mpsc, task::spawn_blocking};
use windlass_content::Provider;
use windlass_images::{
    ChainId, Image, Lease, Platform, Resource,
    progress::{Event, Progress},
};
use windlass_snapshot::{Mount, Snapshotter, Whiteouts};

pub use self::{
    active::UNPACK_PREFIX,
    alongside::{UnpackHandler, Unpacking},
};
use self::{
    active::{Active, Removals},
    chain_lock::ChainLocks,
    sequence::one_by_one,
    stack::Stack,
    write_back::WriteBack,
};
use crate::{Applier, Error, LayerStream, Result, TarApplier, apply::Applied};

/// Turns images into snapshots: one for each layer, named by its ChainID.
///
/// With a provider that follows blobs (`LocalStore::following`), [`alongside`](Self::alongside) unpacks layers while they arrive.
#[derive(Clone, Debug)]
pub struct Unpacker {
    provider: Arc<dyn Provider>,
    snapshotter: Arc<dyn Snapshotter>,
    applier: Arc<dyn Applier>,
    progress: Progress,
    limit: NonZeroUsize,
    lease: Option<Lease>,
    removals: Removals,
}

/// An image that was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// The image's manifest.
    pub manifest: Descriptor,
    /// The snapshot with all its layers; `None` if it has none.
    pub chain_id: Option<ChainId>,
}

/// What suits a snapshotter.
fn applier_for(snapshotter: &Arc<dyn Snapshotter>) -> Arc<dyn Applier> {
    #[cfg(feature = "erofs")]
    if snapshotter.capabilities().images {
        return Arc::new(crate::ImageApplier::new(snapshotter.clone()));
    }
    let _ = snapshotter;
    Arc::new(TarApplier::default())
}

impl Unpacker {
    /// An unpacker that reads blobs here and makes snapshots there.
    pub fn new(provider: Arc<dyn Provider>, snapshotter: Arc<dyn Snapshotter>) -> Self {
        let applier = applier_for(&snapshotter);
        Self {
            provider,
            snapshotter,
            applier,
            progress: Progress::default(),
            limit: NonZeroUsize::new(6).expect("six is not zero"),
            lease: None,
            removals: Removals::default(),
        }
    }

    /// Sets what turns a layer into a tree. If not set, with the default limits, an `ImageApplier` for a snapshotter that keeps
    /// images, and else a [`TarApplier`].
    pub fn applier(self, applier: impl Applier + 'static) -> Self {
        Self { applier: Arc::new(applier), ..self }
    }

    /// Sets where it is told what happens. Nowhere if not set.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Holds with this lease all snapshots that it finds or makes, so that no garbage collection takes them. Whoever lets one
    /// run beside it sets this. None if not set.
    pub fn lease(self, lease: Lease) -> Self {
        Self { lease: Some(lease), ..self }
    }

    /// Limits the layers that are applied at once. 6 if not set.
    pub fn limit(self, limit: NonZeroUsize) -> Self {
        Self { limit, ..self }
    }

    /// Unpacks the image that a manifest describes. Layers whose snapshot is there are not unpacked again.
    ///
    /// Dropping the future leaves at most files that [`Snapshotter::cleanup`] removes.
    ///
    /// # Errors
    ///
    /// What is wrong with the image or one of its layers ([`Error::Layer`]). No snapshot of it is left then, except for layers that were
    /// committed before, with a driver that cannot do all at once.
    pub async fn unpack(&self, manifest: &Descriptor) -> Result<Unpacked> {
        let image = Image::read(&self.provider, manifest).await?;
        self.unpack_image(&image).await?;
        Ok(Unpacked { manifest: manifest.clone(), chain_id: image.chain_id() })
    }

    /// A handler that says which manifests are found, and what unpacks them meanwhile: those that run on `platform`.
    pub fn alongside(&self, platform: Platform) -> (UnpackHandler, Unpacking) {
        let (found, finds) = mpsc::unbounded_channel();
        (UnpackHandler::new(found), Unpacking::new(self.clone(), platform, finds))
    }

    async fn unpack_image(&self, image: &Image) -> Result<()> {
        let layers: Vec<_> = image
            .layers()
            .zip(image.chain_ids())
            .enumerate()
            .map(|(index, ((blob, diff_id), chain_id))| Layer {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                chain: chain_id.to_string(),
                is_lowest: index == 0,
            })
            .collect();
        let names: Vec<_> = layers.iter().map(|layer| layer.chain.clone()).collect();
        self.hold(&names).await?;
        let (there, locks) = self
            .blocking(move |snapshotter| {
                Ok((unpacked(snapshotter, &names)?, ChainLocks::open(snapshotter.lock_file())?))
            })
            .await?;
        let (there, missing) = layers.split_at(there);
        there.iter().for_each(|layer| self.done(layer, true));
        let active = Active::new(self.snapshotter.clone(), self.removals.clone());
        let base = there.last().map(|layer| layer.chain.clone());
        let result = match self.snapshotter.capabilities().rebase {
            true => Stack::new(self, &active, locks, base).all_at_once(missing).await,
            false => one_by_one(self, &active, &locks, missing, base).await,
        };
        active.end().await;
        result
    }

    /// Applies one layer, and checks that it is the one that the config means.
    async fn apply(
        &self,
        layer: &Layer,
        mounts: &[Mount],
        whiteouts: Whiteouts,
        write_back: &Arc<WriteBack>,
    ) -> Result<Applied> {
        let blob = self.provider.open(&layer.blob).await?;
        self.progress.send(Event::Unpacking { descriptor: layer.blob.clone(), offset: 0 });
        let stream = LayerStream {
            descriptor: layer.blob.clone(),
            blob: write_back.count(blob.reader(0)),
            progress: self.progress.clone(),
        };
        let applied =
            self.applier.apply(stream, mounts, whiteouts).await.map_err(|error| layer.failed(error))?;
        match applied.diff_id == layer.diff_id {
            true => Ok(applied),
            false => Err(Error::DiffId {
                layer: layer.blob.digest().clone(),
                expected: layer.diff_id.clone(),
                actual: applied.diff_id,
            }),
        }
    }

    /// Holds snapshots, before anybody looks whether they are there.
    async fn hold(&self, names: &[String]) -> Result<()> {
        let Some(lease) = &self.lease else { return Ok(()) };
        let driver = self.snapshotter.name();
        let snapshot = |name: &String| Resource::Snapshot { driver: driver.to_owned(), name: name.clone() };
        Ok(lease.hold_all(&names.iter().map(snapshot).collect::<Vec<_>>()).await?)
    }

    /// Whether a layer's snapshot is there.
    async fn is_there(&self, layer: &Layer) -> Result<bool> {
        let chain = layer.chain.clone();
        self.blocking(move |snapshotter| Ok(snapshotter.stat(&chain)?.is_some())).await
    }

    /// Says that a layer's snapshot is there.
    fn done(&self, layer: &Layer, existed: bool) {
        self.progress.send(Event::Unpacked { descriptor: layer.blob.clone(), existed });
    }

    /// Runs calls that block off the runtime's workers.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Snapshotter) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let snapshotter = self.snapshotter.clone();
        spawn_blocking(move || work(&*snapshotter)).await.expect("the work neither panics nor is aborted")
    }
}

/// One layer of an image.
#[derive(Debug)]
struct Layer {
    blob: Descriptor,
    diff_id: Digest,
    /// The ChainID of it and all below it: what its snapshot is called.
    chain: String,
    /// Whether it is the lowest of the image.
    is_lowest: bool,
}

impl Layer {
    fn failed(&self, error: Error) -> Error {
        Error::Layer { layer: self.blob.digest().clone(), source: Box::new(error) }
    }
}

/// How many layers, from the lowest, need not be unpacked. Above one that was damaged there may be others that were not: these
/// are unpacked again, too, and then found to be there.
///
/// `names` are ChainIDs, lowest first. Blocks on the disk.
///
/// # Errors
///
/// [`Error::Snapshot`] if the driver cannot look.
pub fn unpacked(snapshotter: &dyn Snapshotter, names: &[String]) -> Result<usize> {
    for (index, name) in names.iter().enumerate() {
        if snapshotter.stat(name)?.is_none() {
            return Ok(index);
        }
    }
    Ok(names.len())
}
