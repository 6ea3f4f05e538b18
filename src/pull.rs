use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::Arc,
};

use async_trait::async_trait;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Condition, Error as ContentError, Provider, Store, Verified, Verify};
use windlass_images::{
    BoxError, ChainId, ChildrenHandler, Create, Handler, HandlerExt, Hold, Image, Lease, LeaseOptions, Next,
    Platform, Resource, Track, Update, dispatch,
    import::check,
    media_type,
    progress::{Event, Progress},
};
use windlass_reference::Reference;
use windlass_remotes::{FetchHandler, Resolved, ingest_key};
use windlass_rootfs::Unpacker;

use crate::{
    Error, Result, Windlass,
    names::{SOURCE, UNPACKED},
};

/// Which platforms' images a pull fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Platforms {
    /// The one that runs here.
    #[default]
    Host,
    /// This one.
    One(Platform),
    /// All of them. What is unpacked is still the one that runs here.
    All,
}

impl Platforms {
    /// The one platform to unpack or run.
    pub(crate) fn to_run(&self) -> Platform {
        match self {
            Self::Host | Self::All => Platform::host(),
            Self::One(platform) => platform.clone(),
        }
    }
}

/// What a pull does beyond the defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullOptions {
    /// Which platforms to fetch. The host's by default.
    pub platforms: Platforms,
    /// Where events go. Nowhere by default.
    pub progress: Progress,
    /// Whether layers are unpacked into snapshots while they arrive. True by default.
    pub unpack: bool,
    /// Which blobs are kept once layers are unpacked. All by default.
    pub retain: Retain,
}

/// Which blobs are kept of an image that is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retain {
    /// All: the image can be pushed, exported, and unpacked by another driver.
    #[default]
    Everything,
    /// Not those of layers, once they are unpacked: half of the disk. Whatever needs them later fetches them again from where
    /// they came. Those that were here before the pull stay.
    Unpacked,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platforms: Platforms::default(),
            progress: Progress::default(),
            unpack: true,
            retain: Retain::default(),
        }
    }
}

impl PullOptions {
    /// Sets which platforms to fetch.
    pub fn platforms(self, platforms: Platforms) -> Self {
        Self { platforms, ..self }
    }

    /// Sets where events go.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Sets whether layers are unpacked.
    pub fn unpack(self, unpack: bool) -> Self {
        Self { unpack, ..self }
    }

    /// Sets which blobs are kept.
    pub fn retain(self, retain: Retain) -> Self {
        Self { retain, ..self }
    }
}

/// An image that is here now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pulled {
    /// The name it is recorded under.
    pub name: String,
    /// What the name stands for: a manifest or an index.
    pub target: Descriptor,
    /// The name of the unpacked root file system. `None` if it was not unpacked, or has no layers.
    pub chain_id: Option<ChainId>,
}

/// What of an image must be where it is fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of the platforms that are asked for.
    Platforms,
    /// All of one platform: a local file may have an index that lists more.
    WhatIsThere,
}

/// Fetches, and passes over manifests that need not be there.
struct FetchPresent {
    fetch: FetchHandler,
    extent: Extent,
}

#[async_trait]
impl Handler for FetchPresent {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        match self.fetch.handle(node).await {
            Err(error)
                if self.extent == Extent::WhatIsThere
                    && media_type::is_manifest(node.media_type())
                    && matches!(error.downcast_ref(), Some(windlass_remotes::Error::NotFound { .. })) =>
            {
                Ok(Next::Skip)
            }
            answer => answer,
        }
    }
}

impl Windlass {
    /// Pulls an image for this host, unpacks it while it arrives, and records its name last.
    ///
    /// What is here already is not fetched again. Dropping the future keeps what came, for the next pull.
    ///
    /// # Errors
    ///
    /// Whatever the registry, the image or the disk may answer. Nothing of the image is listed then.
    pub async fn pull(&self, reference: &Reference) -> Result<Pulled> {
        self.pull_with(reference, PullOptions::default()).await
    }

    /// As [`pull`](Self::pull), with options.
    ///
    /// # Errors
    ///
    /// As [`pull`](Self::pull).
    pub async fn pull_with(&self, reference: &Reference, options: PullOptions) -> Result<Pulled> {
        self.pull_from(self.resolver().resolve(reference).await?, options, Some(reference), Extent::Platforms)
            .await
    }

    /// Pulls what was resolved already, from wherever it is: a local file, such as
    /// [`Source`](windlass_remotes::local::Source) finds, or another resolver than this folder's own.
    ///
    /// It is recorded under [`Resolved::name`].
    ///
    /// # Errors
    ///
    /// As [`pull`](Self::pull).
    pub async fn pull_resolved(&self, resolved: Resolved, options: PullOptions) -> Result<Pulled> {
        self.pull_from(resolved, options, None, Extent::Platforms).await
    }

    /// As [`pull_resolved`](Self::pull_resolved), with a say in where it can be fetched again, and in what may be missing.
    pub(crate) async fn pull_from(
        &self,
        resolved: Resolved,
        options: PullOptions,
        source: Option<&Reference>,
        extent: Extent,
    ) -> Result<Pulled> {
        let Resolved { name, descriptor: target, .. } = &resolved;
        if !media_type::is_index(target.media_type()) && !media_type::is_manifest(target.media_type()) {
            let media_type = target.media_type().to_string();
            return Err(Error::NotAnImage { name: name.clone(), media_type });
        }
        options.progress.send(Event::Resolved { name: name.clone(), descriptor: target.clone() });

        // Whatever is held before one looks whether it is there stays there.
        let lease = self.images().lease(LeaseOptions::default().label("pull", name)).await?;
        let left = self.content().active().await?.into_iter().map(|status| status.key).collect();
        let attempt =
            Attempt { windlass: self, lease: &lease, resolved: &resolved, options: &options, extent, left };
        let chain_id = match attempt.run().await {
            // Something that was here already may have been damaged. What came from elsewhere was checked.
            Err(error) if !is_remote(&error) && !is_full(&error) && attempt.remove_damaged().await? => {
                attempt.run().await?
            }
            answer => answer?,
        };
        if extent == Extent::WhatIsThere {
            check(self.content(), name, target, None).await?;
        }
        self.record(name, target, source, options.retain).await?;
        lease.release().await?;
        let Resolved { name, descriptor: target, .. } = resolved;
        Ok(Pulled { name, target, chain_id })
    }

    /// Records a name, last of all.
    pub(crate) async fn record(
        &self,
        name: &str,
        target: &Descriptor,
        source: Option<&Reference>,
        retain: Retain,
    ) -> Result<()> {
        let (this, name, target) = (self.clone(), name.to_owned(), target.clone());
        let source = source.map(ToString::to_string);
        let unpacked = (retain == Retain::Unpacked).then(|| "true".to_owned());
        let mut labels = BTreeMap::new();
        let mut update = Update::default().target(target.clone());
        for (key, value) in [(SOURCE, source), (UNPACKED, unpacked)] {
            update = match &value {
                Some(value) => update.set_label(key, value),
                None => update.remove_label(key),
            };
            labels.extend(value.map(|value| (key.to_owned(), value)));
        }
        blocking(move || {
            // The name and its labels in one step: without them, an image whose layers were not kept is not whole.
            while let Create::Exists(_) = this.images().create(&name, &target, &labels)? {
                if this.images().update(&name, &update)?.is_some() {
                    break;
                }
            }
            Ok(())
        })
        .await?;
        self.write_index().await
    }

    /// Unpacks an image that is here, and gives its ChainID: `None` if it has no layers.
    ///
    /// # Errors
    ///
    /// As [`image`](Self::image), and [`Error::Rootfs`](crate::Error::Rootfs) if a layer cannot be applied.
    pub async fn unpack(&self, manifest: &Descriptor) -> Result<Option<ChainId>> {
        let lease =
            self.images().lease(LeaseOptions::default().label("unpack", manifest.digest().as_ref())).await?;
        self.unpack_held(Arc::new(self.content().clone()), manifest, &lease).await
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

/// Everything of a pull that may have to be done twice.
struct Attempt<'a> {
    windlass: &'a Windlass,
    lease: &'a Lease,
    resolved: &'a Resolved,
    options: &'a PullOptions,
    extent: Extent,
    /// The ingests that were there before.
    left: HashSet<String>,
}

impl Attempt<'_> {
    /// Fetches and unpacks. Gives the ChainID if it unpacked.
    async fn run(&self) -> Result<Option<ChainId>> {
        let PullOptions { platforms, progress, unpack, retain } = self.options;
        let target = &self.resolved.descriptor;
        if !unpack {
            self.walk(self.fetch(HashSet::new())).await?;
            return Ok(None);
        }
        let discard = match retain {
            Retain::Everything => Discard::default(),
            Retain::Unpacked => self.look_ahead().await?,
        };
        let unpacker = Unpacker::new(
            Arc::new(self.windlass.content().following()),
            self.windlass.open_snapshotter().await?,
        )
        .lease(self.lease.clone())
        .limit(self.windlass.concurrency())
        .progress(progress.clone());
        let (unpack, unpacking) = unpacker.alongside(platforms.to_run());
        unpacking.drive(self.walk_images(self.fetch(discard.unneeded).then(unpack))).await?;
        let image = Image::open(self.windlass.content(), target, &platforms.to_run()).await?;
        // What another pull holds meanwhile stays.
        let fetched: Vec<_> = discard.fetched.into_iter().collect();
        self.lease.discard(Arc::new(self.windlass.content().clone()), &fetched).await?;
        Ok(image.chain_id())
    }

    /// What fetches each node, but for some, and looks inside for more.
    fn fetch(&self, without: HashSet<Digest>) -> impl Handler + use<> {
        let PullOptions { platforms, progress, .. } = self.options;
        let store = Arc::new(self.windlass.content().clone());
        let children = ChildrenHandler::new(store.clone());
        let children = match platforms {
            Platforms::All => children,
            one => children.platform(one.to_run()),
        };
        let without = move |node: Descriptor| {
            let next = if without.contains(node.digest()) { Next::Skip } else { Next::Visit(vec![]) };
            std::future::ready(Ok::<_, BoxError>(next))
        };
        let fetch = FetchHandler::new(self.resolved.fetcher.clone(), store).progress(progress.clone());
        let fetch = FetchPresent { fetch, extent: self.extent };
        without
            .then(Hold::new(self.lease.clone()))
            .then(Track::new(progress.clone()))
            .then(fetch)
            .then(children)
    }

    async fn walk(&self, handler: impl Handler + 'static) -> Result<()> {
        Ok(self.walk_images(handler).await?)
    }

    async fn walk_images(&self, handler: impl Handler + 'static) -> windlass_images::Result<()> {
        dispatch(handler, self.resolved.descriptor.clone(), self.windlass.concurrency()).await
    }

    /// Fetches manifest and config, to see which layers need not be fetched, and which need not stay.
    async fn look_ahead(&self) -> Result<Discard> {
        let no_layers = |node: Descriptor| {
            let next = if media_type::is_layer(node.media_type()) { Next::Skip } else { Next::Visit(vec![]) };
            std::future::ready(Ok::<_, BoxError>(next))
        };
        self.walk(no_layers.then(self.fetch(HashSet::new()))).await?;
        let content = self.windlass.content();
        let platform = self.options.platforms.to_run();
        let image = Image::open(content, &self.resolved.descriptor, &platform).await?;

        let snapshotter = self.windlass.open_snapshotter().await?;
        let names: Vec<_> = image.chain_ids().iter().map(ToString::to_string).collect();
        let driver = snapshotter.name();
        let snapshot = |name: &String| Resource::Snapshot { driver: driver.to_owned(), name: name.clone() };
        self.lease.hold_all(&names.iter().map(snapshot).collect::<Vec<_>>()).await?;
        let unpacked = blocking(move || Ok(windlass_rootfs::unpacked(&*snapshotter, &names)?)).await?;

        let digests: Vec<_> = image.layers().map(|(layer, _)| layer.digest().clone()).collect();
        let (there, missing) = digests.split_at(unpacked);
        let mut discard = Discard::default();
        discard.unneeded.extend(there.iter().filter(|layer| !missing.contains(layer)).cloned());
        for layer in missing {
            // What was here before is somebody else's.
            match content.info(layer).await {
                Ok(_) => {}
                Err(ContentError::NotFound { .. }) => discard.fetched.extend([layer.clone()]),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(discard)
    }

    /// Reads all blobs of the image that are here, and moves those that are damaged out of the way. Returns whether there may have
    /// been any: what an earlier pull had left, and this one went on with, may have been damaged, and goes if it is not complete.
    async fn remove_damaged(&self) -> Result<bool> {
        let content = self.windlass.content();
        let mut found = false;
        let mut open = vec![self.resolved.descriptor.clone()];
        let mut seen = HashSet::new();
        let children = ChildrenHandler::new(Arc::new(content.clone()));
        while let Some(node) = open.pop() {
            if !seen.insert(node.digest().clone()) {
                continue;
            }
            if self.left.contains(&ingest_key(&node)) {
                // Unless it is complete, and then it is good by now.
                let _ = content.abort(&ingest_key(&node)).await;
                found = true;
            }
            match content.verify_blob(node.digest(), &Verify::default().quarantine(true)).await {
                Ok(Verified { condition: Condition::Damaged { reason, .. }, .. }) => {
                    tracing::warn!(digest = %node.digest(), reason, "a blob is damaged, and is fetched again");
                    found = true;
                }
                // What is wrong with a manifest that is not damaged is for the pull to say.
                Ok(_) => {
                    if let Ok(Next::Visit(more)) = children.handle(&node).await {
                        open.extend(more);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(found)
    }
}

/// The layers of an image of which only the snapshots are wanted.
#[derive(Default)]
struct Discard {
    /// Unpacked already.
    unneeded: HashSet<Digest>,
    /// Not here before this pull.
    fetched: HashSet<Digest>,
}

/// Whether a failure came from a registry, or the way to it.
fn is_remote(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(<dyn std::error::Error>::is::<windlass_remotes::Error>)
}

/// Whether a failure is for want of room. What came until then is kept.
fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let kind = cause.downcast_ref().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

/// Runs disk work off the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("the work neither panics nor is aborted")
}
