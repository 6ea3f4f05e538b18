use std::sync::Arc;

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_images::{
    BoxError, ChainId, ChildrenHandler, Handler, HandlerExt, Image, Next, Platform, Track, dispatch,
    import::check,
    media_type,
    progress::{Event, Progress},
};
use windlass_reference::Reference;
use windlass_remotes::{FetchHandler, Resolved};
use windlass_rootfs::Unpacker;

use crate::{Error, Result, Windlass};

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
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { platforms: Platforms::default(), progress: Progress::default(), unpack: true }
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
        self.pull_resolved(self.resolver().resolve(reference).await?, options).await
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
        self.take(resolved, options, Extent::Platforms).await
    }

    /// As [`pull_resolved`](Self::pull_resolved), with a say in what may be missing.
    pub(crate) async fn take(
        &self,
        resolved: Resolved,
        options: PullOptions,
        extent: Extent,
    ) -> Result<Pulled> {
        let PullOptions { platforms, progress, unpack } = options;
        let Resolved { name, descriptor: target, fetcher } = resolved;
        if !media_type::is_index(target.media_type()) && !media_type::is_manifest(target.media_type()) {
            return Err(Error::NotAnImage { name, media_type: target.media_type().to_string() });
        }
        progress.send(Event::Resolved { name: name.clone(), descriptor: target.clone() });

        // Fetch each node, then look inside for more.
        let store = Arc::new(self.content().clone());
        let children = ChildrenHandler::new(store.clone());
        let children = match &platforms {
            Platforms::All => children,
            one => children.platform(one.to_run()),
        };
        let fetch = FetchHandler::new(fetcher, store).progress(progress.clone());
        let fetch = Track::new(progress.clone()).then(FetchPresent { fetch, extent }).then(children);

        if unpack {
            let unpacker =
                Unpacker::new(Arc::new(self.content().following()), self.open_snapshotter().await?)
                    .limit(self.concurrency())
                    .progress(progress);
            let (unpack, unpacking) = unpacker.alongside(platforms.to_run());
            unpacking.drive(dispatch(fetch.then(unpack), target.clone(), self.concurrency())).await?;
        } else {
            dispatch(fetch, target.clone(), self.concurrency()).await?;
        }

        if extent == Extent::WhatIsThere {
            check(self.content(), &name, &target, None).await?;
        }
        let chain_id = match unpack {
            true => Image::open(self.content(), &target, &platforms.to_run()).await?.chain_id(),
            false => None,
        };
        let this = self.clone();
        let (recorded, descriptor) = (name.clone(), target.clone());
        blocking(move || Ok(this.images().put(&recorded, &descriptor)?)).await?;
        Ok(Pulled { name, target, chain_id })
    }

    /// Unpacks an image that is here, and gives its ChainID: `None` if it has no layers.
    ///
    /// # Errors
    ///
    /// As [`image`](Self::image), and [`Error::Rootfs`](crate::Error::Rootfs) if a layer cannot be applied.
    pub async fn unpack(&self, manifest: &Descriptor) -> Result<Option<ChainId>> {
        let unpacker = Unpacker::new(Arc::new(self.content().clone()), self.open_snapshotter().await?)
            .limit(self.concurrency());
        Ok(unpacker.unpack(manifest).await?.chain_id)
    }

    /// The snapshotter, opened off the runtime's workers.
    pub(crate) async fn open_snapshotter(&self) -> Result<Arc<dyn windlass_snapshot::Snapshotter>> {
        let this = self.clone();
        blocking(move || this.snapshotter()).await
    }
}

/// Runs disk work off the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("the work neither panics nor is aborted")
}
