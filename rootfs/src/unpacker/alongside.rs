//! Unpacking what a walk finds, while it is still being fetched.

use std::{collections::HashSet, sync::PoisonError};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
};
use windlass_images::{BoxError, Handler, Image, Next, Platform, media_type};

use super::{Unpacked, Unpacker};
use crate::Result;

/// Says which manifests were found. Made by [`Unpacker::alongside`]; put it behind the handler that fetches.
#[derive(Clone, Debug)]
pub struct UnpackHandler {
    found: mpsc::UnboundedSender<Descriptor>,
}

impl UnpackHandler {
    pub(super) fn new(found: mpsc::UnboundedSender<Descriptor>) -> Self {
        Self { found }
    }
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
    pub(super) fn new(
        unpacker: Unpacker,
        platform: Platform,
        finds: mpsc::UnboundedReceiver<Descriptor>,
    ) -> Self {
        Self { unpacker, platform, finds }
    }

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
