use std::{
    collections::HashSet,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures::future::try_join_all;
use oci_spec::image::{Descriptor, Digest};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{JoinSet, spawn_blocking},
};
use windlass_content::Provider;
use windlass_images::{
    BoxError, ChainId, Handler, Image, Lease, Next, Platform, Resource, media_type,
    progress::{Event, Progress},
};
use windlass_snapshot::{Commit, Mount, Snapshotter, Whiteouts, mount::open_tree};

use crate::{
    Applier, Error, LayerStream, Result, TarApplier,
    apply::{Applied, Pending, settle},
};

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

/// What the keys of snapshots begin with into which layers are being unpacked. One of them that no lease holds was left by
/// a crash, or belongs to an [`Unpacker`] without a lease.
pub const UNPACK_PREFIX: &str = "unpack-";

/// The threads that remove what was dropped in the middle, for those who wait for them.
type Removals = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// An image that was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// The image's manifest.
    pub manifest: Descriptor,
    /// The snapshot with all its layers; `None` if it has none.
    pub chain_id: Option<ChainId>,
}

impl Unpacker {
    /// An unpacker that reads blobs here and makes snapshots there.
    pub fn new(provider: Arc<dyn Provider>, snapshotter: Arc<dyn Snapshotter>) -> Self {
        Self {
            provider,
            snapshotter,
            applier: Arc::new(TarApplier::default()),
            progress: Progress::default(),
            limit: NonZeroUsize::new(6).expect("six is not zero"),
            lease: None,
            removals: Removals::default(),
        }
    }

    /// Sets what turns a layer into a tree. A [`TarApplier`] with the default limits if not set.
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
        (UnpackHandler { found }, Unpacking { unpacker: self.clone(), platform, finds })
    }

    async fn unpack_image(&self, image: &Image) -> Result<()> {
        let layers: Vec<_> = image
            .layers()
            .zip(image.chain_ids())
            .map(|((blob, diff_id), chain_id)| Layer {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
                chain_id,
            })
            .collect();
        let names: Vec<_> = layers.iter().map(|layer| layer.chain_id.to_string()).collect();
        self.hold(&names).await?;
        let there = self.blocking(move |snapshotter| unpacked(snapshotter, &names)).await?;
        let (there, missing) = layers.split_at(there);
        for layer in there {
            self.progress.send(Event::Unpacked { descriptor: layer.blob.clone(), existed: true });
        }
        let base = there.last().map(|layer| layer.chain_id.to_string());
        match self.snapshotter.capabilities().rebase {
            true => self.all_at_once(missing, base).await,
            false => self.one_by_one(missing, base).await,
        }
    }

    /// Applies every layer alone; then each takes what it needs from those below; then all are committed.
    async fn all_at_once(&self, layers: &[Layer], base: Option<String>) -> Result<()> {
        if layers.is_empty() {
            return Ok(());
        }
        let mut active = Active::new(self.snapshotter.clone(), self.removals.clone());
        let result = async {
            let mut prepared = Vec::new();
            for layer in layers {
                prepared.push(self.prepare(&mut active, layer, None).await?);
            }
            let turns = Semaphore::new(self.limit.get());
            let applying = layers.iter().zip(&prepared).enumerate().map(|(index, (layer, mounts))| {
                // Below the lowest layer is nothing that it could hide, and a whiteout would be seen.
                let lowest = index == 0 && base.is_none();
                let whiteouts =
                    if lowest { Whiteouts::Remove } else { self.snapshotter.capabilities().whiteouts };
                let turns = &turns;
                async move {
                    let _turn = turns.acquire().await.expect("the semaphore is never closed");
                    self.apply(layer, mounts, whiteouts).await
                }
            });
            let applied = try_join_all(applying).await?;
            for (index, (layer, applied)) in layers.iter().zip(applied).enumerate() {
                if !applied.pending.is_empty() {
                    let below: Vec<_> = active.keys[..index].iter().rev().cloned().collect();
                    let work = settle_on(applied.pending, prepared[index].clone(), below, base.clone());
                    self.blocking(work).await.map_err(|error| layer.failed(error))?;
                }
            }
            let names: Vec<_> = layers.iter().map(|layer| layer.chain_id.to_string()).collect();
            let (keys, base) = (active.keys.clone(), base.clone());
            self.blocking(move |snapshotter| {
                let parents = base.as_deref().into_iter().map(Some).chain(base.is_none().then_some(None));
                let parents = parents.chain(names.iter().map(|name| Some(name.as_str())));
                let steps: Vec<_> = keys
                    .iter()
                    .zip(&names)
                    .zip(parents)
                    .map(|((key, name), parent)| Commit { key, name, parent })
                    .collect();
                Ok(snapshotter.commit(&steps)?)
            })
            .await
        };
        let result = result.await;
        active.end(&result).await;
        result?;
        for layer in layers {
            self.progress.send(Event::Unpacked { descriptor: layer.blob.clone(), existed: false });
        }
        Ok(())
    }

    /// Applies each layer to the tree of those below it, and commits it before the next.
    async fn one_by_one(&self, layers: &[Layer], base: Option<String>) -> Result<()> {
        let mut parent = base;
        for layer in layers {
            let mut active = Active::new(self.snapshotter.clone(), self.removals.clone());
            let result = async {
                let mounts = self.prepare(&mut active, layer, parent.clone()).await?;
                self.apply(layer, &mounts, self.snapshotter.capabilities().whiteouts).await?;
                let (key, name) = (active.keys[0].clone(), layer.chain_id.to_string());
                self.blocking(move |snapshotter| {
                    Ok(snapshotter.commit(&[Commit { key: &key, name: &name, parent: None }])?)
                })
                .await
            };
            let result = result.await;
            active.end(&result).await;
            result?;
            self.progress.send(Event::Unpacked { descriptor: layer.blob.clone(), existed: false });
            parent = Some(layer.chain_id.to_string());
        }
        Ok(())
    }

    /// Begins a snapshot for a layer, and holds it.
    async fn prepare(
        &self,
        active: &mut Active,
        layer: &Layer,
        parent: Option<String>,
    ) -> Result<Vec<Mount>> {
        let key = unique_key(layer);
        self.hold(std::slice::from_ref(&key)).await?;
        active.prepare(key, parent).await
    }

    /// Applies one layer, and checks that it is the one that the config means.
    async fn apply(&self, layer: &Layer, mounts: &[Mount], whiteouts: Whiteouts) -> Result<Applied> {
        let blob = self.provider.open(&layer.blob).await?;
        self.progress.send(Event::Unpacking { descriptor: layer.blob.clone(), offset: 0 });
        let stream = LayerStream {
            descriptor: layer.blob.clone(),
            blob: Box::new(blob.reader(0)),
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
    chain_id: ChainId,
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

/// Looks up in the layers below what a layer takes from them.
fn settle_on(
    pending: Pending,
    mounts: Vec<Mount>,
    below: Vec<String>,
    base: Option<String>,
) -> impl FnOnce(&dyn Snapshotter) -> Result<()> {
    move |snapshotter| {
        let root = open_tree(&mounts)?;
        let keys: Vec<_> = below.iter().map(String::as_str).collect();
        let lower: Option<OwnedFd> = match keys.is_empty() && base.is_none() {
            true => None,
            false => Some(open_tree(&snapshotter.stacked(&keys, base.as_deref())?)?),
        };
        settle(&pending, &root, lower.as_ref())
    }
}

/// A key for a layer's snapshot that nobody else has.
fn unique_key(layer: &Layer) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{UNPACK_PREFIX}{}-{count}-{now}-{}", std::process::id(), layer.chain_id)
}

/// Active snapshots, removed unless they are committed.
#[derive(Debug)]
struct Active {
    snapshotter: Arc<dyn Snapshotter>,
    keys: Vec<String>,
    removals: Removals,
}

impl Active {
    fn new(snapshotter: Arc<dyn Snapshotter>, removals: Removals) -> Self {
        Self { snapshotter, keys: Vec::new(), removals }
    }

    async fn prepare(&mut self, key: String, parent: Option<String>) -> Result<Vec<Mount>> {
        // First the key, then the snapshot: it is removed also if this future is dropped meanwhile.
        self.keys.push(key.clone());
        let snapshotter = self.snapshotter.clone();
        let prepare = move || snapshotter.prepare(&key, parent.as_deref());
        Ok(spawn_blocking(prepare).await.expect("the work neither panics nor is aborted")?)
    }

    /// Removes what was not committed, before anybody looks.
    async fn end<T>(mut self, result: &Result<T>) {
        let keys = std::mem::take(&mut self.keys);
        if result.is_err() {
            let snapshotter = self.snapshotter.clone();
            let removal = spawn_blocking(move || remove(&*snapshotter, &keys));
            removal.await.expect("the work neither panics nor is aborted");
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let (snapshotter, keys) = (self.snapshotter.clone(), std::mem::take(&mut self.keys));
        if !keys.is_empty() {
            // Dropped in the middle: the runtime may be ending, and must not wait for this.
            let removal = thread::spawn(move || remove(&*snapshotter, &keys));
            self.removals.lock().unwrap_or_else(PoisonError::into_inner).push(removal);
        }
    }
}

fn remove(snapshotter: &dyn Snapshotter, keys: &[String]) {
    for key in keys {
        match snapshotter.remove(key) {
            Ok(()) | Err(windlass_snapshot::Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!(key, %error, "a snapshot that was not finished is left behind"),
        }
    }
}

/// Says which manifests were found. Made by [`Unpacker::alongside`]; put it behind the handler that fetches.
#[derive(Clone, Debug)]
pub struct UnpackHandler {
    found: mpsc::UnboundedSender<Descriptor>,
}

#[async_trait]
impl Handler for UnpackHandler {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        if media_type::is_manifest(node.media_type()) {
            // Nobody listens any more if the unpack has failed; then the walk is about to end, too.
            let _ = self.found.send(node.clone());
        }
        Ok(Next::Visit(vec![]))
    }
}

/// Unpacks what the handler found. Made by [`Unpacker::alongside`].
#[derive(Debug)]
pub struct Unpacking {
    unpacker: Unpacker,
    platform: Platform,
    finds: mpsc::UnboundedReceiver<Descriptor>,
}

impl Unpacking {
    /// Runs a walk that has the handler in it, and unpacks at the same time. Ends when both are done.
    ///
    /// # Errors
    ///
    /// The first error of either ends both.
    pub async fn drive(
        mut self,
        walk: impl Future<Output = windlass_images::Result<()>>,
    ) -> Result<Vec<Unpacked>> {
        let mut unpacking = JoinSet::new();
        let result = self.run(walk, &mut unpacking).await;
        if result.is_err() {
            // Whoever gets the error finds nothing half done: what is still running ends, and is removed.
            unpacking.shutdown().await;
            let removals = self.unpacker.removals.clone();
            let removals = std::mem::take(&mut *removals.lock().unwrap_or_else(PoisonError::into_inner));
            let wait = || removals.into_iter().for_each(|removal| removal.join().unwrap_or_default());
            spawn_blocking(wait).await.expect("the work neither panics nor is aborted");
        }
        result
    }

    async fn run(
        &mut self,
        walk: impl Future<Output = windlass_images::Result<()>>,
        unpacking: &mut JoinSet<(Descriptor, Result<Option<Unpacked>>)>,
    ) -> Result<Vec<Unpacked>> {
        let mut walk = std::pin::pin!(walk);
        let mut walked = false;
        let start = |unpacking: &mut JoinSet<_>, manifest: Descriptor| {
            let (unpacker, platform) = (self.unpacker.clone(), self.platform.clone());
            unpacking.spawn(async move {
                let done = unpacker.unpack_if_it_runs_on(&manifest, &platform).await;
                (manifest, done)
            });
        };
        let mut again = HashSet::new();
        let mut unpacked = Vec::new();
        loop {
            tokio::select! {
                result = &mut walk, if !walked => {
                    result?;
                    walked = true;
                    // What the handler sent is still received.
                    self.finds.close();
                }
                Some(manifest) = self.finds.recv() => {
                    start(unpacking, manifest);
                }
                Some(done) = unpacking.join_next() => {
                    let (manifest, done) =
                        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
                    match done {
                        Ok(result) => unpacked.extend(result),
                        // A blob that stopped arriving is the walk's failure, which says why; or somebody else's, and then
                        // the walk has fetched it anew.
                        Err(error) if is_abandoned(&error) && again.insert(manifest.digest().clone()) => {
                            if !walked {
                                (&mut walk).await?;
                                walked = true;
                                self.finds.close();
                            }
                            start(unpacking, manifest);
                        }
                        Err(error) => return Err(error),
                    }
                }
                else => return Ok(unpacked),
            }
        }
    }
}

impl Unpacker {
    async fn unpack_if_it_runs_on(
        &self,
        manifest: &Descriptor,
        platform: &Platform,
    ) -> Result<Option<Unpacked>> {
        let image = Image::read(&self.provider, manifest).await?;
        if !image.runs_on(platform) {
            return Ok(None);
        }
        self.unpack_image(&image).await?;
        Ok(Some(Unpacked { manifest: manifest.clone(), chain_id: image.chain_id() }))
    }
}

/// Whether an error is only that a followed blob will not be completed.
fn is_abandoned(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|cause| {
        let inner = cause.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let inner = inner.and_then(|inner| inner.downcast_ref::<windlass_content::Error>());
        let abandoned =
            |error: &windlass_content::Error| matches!(error, windlass_content::Error::Abandoned { .. });
        inner.or_else(|| cause.downcast_ref()).is_some_and(abandoned)
    })
}
