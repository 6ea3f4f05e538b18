//! One attempt of a pull: what may have to be done twice, since what was here before may be damaged.

use std::{collections::HashSet, io, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Condition, Error as ContentError, Store, Verified, Verify};
use windlass_images::{
    BoxError, ChainId, ChildrenHandler, Handler, HandlerExt, Hold, Image, Lease, Next, Resource, Track,
    dispatch, media_type,
};
use windlass_remotes::{FetchHandler, Resolved, ingest_key};
use windlass_rootfs::Unpacker;

use crate::{Platforms, PullOptions, Result, Retain, Windlass, windlass::blocking};

/// Everything of a pull that may have to be done twice.
pub(crate) struct Attempt<'a> {
    pub(crate) windlass: &'a Windlass,
    pub(crate) lease: &'a Lease,
    pub(crate) resolved: &'a Resolved,
    pub(crate) options: &'a PullOptions,
    pub(crate) extent: Extent,
    /// The ingests that were there before.
    pub(crate) left: HashSet<String>,
}

impl Attempt<'_> {
    /// Fetches and unpacks. Gives the ChainID if it unpacked.
    pub(crate) async fn run(&self) -> Result<Option<ChainId>> {
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
    pub(crate) async fn remove_damaged(&self) -> Result<bool> {
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

/// The layers of an image of which only the snapshots are wanted.
#[derive(Default)]
struct Discard {
    /// Unpacked already.
    unneeded: HashSet<Digest>,
    /// Not here before this pull.
    fetched: HashSet<Digest>,
}

/// Whether a failure came from a registry, or the way to it.
pub(crate) fn is_remote(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(<dyn std::error::Error>::is::<windlass_remotes::Error>)
}

/// Whether a failure is for want of room. What came until then is kept.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let kind = cause.downcast_ref().map(io::Error::kind);
        matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}
