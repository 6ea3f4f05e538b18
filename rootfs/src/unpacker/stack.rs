//! All layers at once, for drivers that take a snapshot's parent at commit.
//!
//! Each layer is applied alone, as soon as its turn comes. Meanwhile one goes through the layers from the lowest up: what a
//! layer takes from those below it is settled, and when all are, they are committed in one step.
//!
//! Layers that somebody else is unpacking are left to them. Before one waits for such a layer, one commits what is below it, and
//! gives the locks of that back: so one never waits for a layer while others may wait for one below it.

use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use tokio::sync::{Semaphore, oneshot};
use windlass_snapshot::{Commit, Mount, Snapshotter, Supposed, Whiteouts, mount::open_tree};

use super::{
    Layer, Unpacker,
    active::{Active, unique_key},
    chain_lock::{ChainLock, ChainLocks},
    write_back::WriteBack,
};
use crate::{
    Result,
    apply::{Pending, Settled, settle},
};

/// The layers of one image, as far as they are stacked.
pub(super) struct Stack<'a> {
    unpacker: &'a Unpacker,
    active: &'a Active,
    locks: ChainLocks,
    write_back: Arc<WriteBack>,
    /// The highest layer that is committed.
    base: Option<String>,
    /// The layers on top of that, which are ready to be committed. Lowest first.
    ready: Vec<Ready<'a>>,
}

/// Who makes a layer's snapshot.
enum Claim {
    /// It is there.
    There,
    /// We do.
    Ours(ChainLock),
    /// Somebody else does, unless they fail.
    Others,
}

/// A layer that was applied to an empty tree.
struct Alone {
    key: String,
    mounts: Vec<Mount>,
    pending: Pending,
}

/// A layer that is to be committed. As a folder, it has all that it takes from those below it; as an image, it gets that then.
struct Ready<'a> {
    layer: &'a Layer,
    key: String,
    supposed: Supposed,
    lock: ChainLock,
}

impl<'a> Stack<'a> {
    pub(super) fn new(
        unpacker: &'a Unpacker,
        active: &'a Active,
        locks: ChainLocks,
        base: Option<String>,
    ) -> Self {
        let write_back = WriteBack::new(unpacker.snapshotter.clone());
        Self { unpacker, active, locks, write_back, base, ready: Vec::new() }
    }

    /// Applies and commits layers, given lowest first.
    pub(super) async fn all_at_once(mut self, layers: &'a [Layer]) -> Result<()> {
        let claims = self.claim(layers).await?;
        let keys: Vec<_> = layers.iter().map(|layer| unique_key(&layer.chain)).collect();
        self.unpacker.hold(&keys).await?;

        // All of them before anything is written, since the metadata is synced, which takes long on a busy disk.
        let ours = claims.iter().zip(&keys).filter(|(claim, _)| matches!(claim, Claim::Ours(_)));
        let mounts = self.active.prepare_all(ours.map(|(_, key)| key.clone()).collect()).await?;
        let mut mounts = mounts.into_iter();

        let (unpacker, write_back) = (self.unpacker, &self.write_back.clone());
        let turns = &Semaphore::new(unpacker.limit.get());
        let (mut applying, mut steps) = (Vec::new(), Vec::new());
        for ((layer, claim), key) in layers.iter().zip(claims).zip(keys) {
            let (sender, applied) = oneshot::channel();
            if matches!(claim, Claim::Ours(_)) {
                let mounts = mounts.next().expect("each of ours was prepared");
                applying.push(async move {
                    let _turn = turns.acquire().await.expect("the semaphore is never closed");
                    // Nobody listens if it has failed elsewhere.
                    let _ = sender.send(alone(unpacker, write_back, layer, key, mounts, &[]).await?);
                    Ok(())
                });
            }
            steps.push((layer, claim, applied));
        }
        // In the order of the layers, so that the lowest are applied first.
        let applying = try_join_all(applying);
        let stacking = async move {
            for (layer, claim, applied) in steps {
                match claim {
                    Claim::Ours(lock) => {
                        // If it is not sent, the other future has the error.
                        let Ok(applied) = applied.await else { return Ok(()) };
                        self.put(layer, applied, lock).await?;
                    }
                    Claim::There => self.step_over(layer).await?,
                    Claim::Others => self.wait_for(layer, turns).await?,
                }
            }
            self.commit().await
        };
        try_join(applying, stacking).await?;
        Ok(())
    }

    /// Locks all layers that nobody else has locked.
    async fn claim(&self, layers: &[Layer]) -> Result<Vec<Claim>> {
        let (locks, chains) = (self.locks.clone(), chains(layers));
        self.unpacker
            .blocking(move |snapshotter| {
                let claim = |chain: &String| match locks.take(chain)? {
                    // Whoever had it before may have made it.
                    Some(_) if snapshotter.stat(chain)?.is_some() => Ok(Claim::There),
                    Some(lock) => Ok(Claim::Ours(lock)),
                    None => Ok(Claim::Others),
                };
                chains.iter().map(claim).collect()
            })
            .await
    }

    /// A layer that is there already.
    async fn step_over(&mut self, layer: &Layer) -> Result<()> {
        self.commit().await?;
        self.base = Some(layer.chain.clone());
        self.unpacker.done(layer, true);
        Ok(())
    }

    /// Waits until somebody else has made a layer. If they fail, or die, we make it.
    async fn wait_for(&mut self, layer: &'a Layer, turns: &Semaphore) -> Result<()> {
        self.commit().await?;
        let lock = self.locks.wait(&layer.chain).await?;
        if self.unpacker.is_there(layer).await? {
            return self.step_over(layer).await;
        }
        let key = unique_key(&layer.chain);
        self.unpacker.hold(std::slice::from_ref(&key)).await?;
        let _turn = turns.acquire().await.expect("the semaphore is never closed");
        let mounts = self.active.prepare(key.clone(), None).await?;
        let applied = alone(self.unpacker, &self.write_back, layer, key, mounts, &[]).await?;
        self.put(layer, applied, lock).await
    }

    /// Gives a layer what it takes from those below.
    async fn put(&mut self, layer: &'a Layer, mut applied: Alone, lock: ChainLock) -> Result<()> {
        let capabilities = self.unpacker.snapshotter.capabilities();
        if self.ready.len() >= capabilities.stacked {
            self.commit().await?;
        }
        if !capabilities.images && !applied.pending.is_empty() {
            let below = self.below().await?;
            if self.settle(layer, &mut applied, below.clone()).await? == Settled::Again {
                applied = self.again(layer, &below).await?;
                let settled = self.settle(layer, &mut applied, below).await?;
                assert_eq!(settled, Settled::Done, "a layer that knows those below guesses nothing");
            }
        }
        let Alone { key, pending, .. } = applied;
        let supposed = supposed(pending);
        self.ready.push(Ready { layer, key, supposed, lock });
        Ok(())
    }

    /// Applies a layer anew, with the layers below at hand.
    async fn again(&self, layer: &Layer, below: &[Mount]) -> Result<Alone> {
        let key = unique_key(&layer.chain);
        self.unpacker.hold(std::slice::from_ref(&key)).await?;
        let mounts = self.active.prepare(key.clone(), None).await?;
        alone(self.unpacker, &self.write_back, layer, key, mounts, below).await
    }

    /// What shows the layers below the next one; nothing for the lowest.
    async fn below(&self) -> Result<Vec<Mount>> {
        let keys: Vec<_> = self.ready.iter().rev().map(|it| it.key.clone()).collect();
        let base = self.base.clone();
        let stacked = move |snapshotter: &dyn Snapshotter| {
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            match keys.is_empty() && base.is_none() {
                true => Ok(Vec::new()),
                false => Ok(snapshotter.stacked(&keys, base.as_deref())?),
            }
        };
        self.unpacker.blocking(stacked).await
    }

    /// Looks up in the layers below what a layer takes from them.
    async fn settle(&self, layer: &Layer, applied: &mut Alone, below: Vec<Mount>) -> Result<Settled> {
        let (pending, mounts) = (std::mem::take(&mut applied.pending), applied.mounts.clone());
        let work = move |_: &dyn Snapshotter| {
            let root = open_tree(&mounts)?;
            let lower = (!below.is_empty()).then(|| open_tree(&below)).transpose()?;
            settle(&pending, &root, lower.as_ref())
        };
        self.unpacker.blocking(work).await.map_err(|error| layer.failed(error))
    }

    /// Commits all that is ready, with one sync unless a layer has to be applied anew.
    async fn commit(&mut self) -> Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        while let Some((mut below, index)) = self.commit_all(ready).await? {
            ready = below.split_off(index);
            let refused = self.commit_all(below).await?;
            assert!(refused.is_none(), "what those below it suppose was found to be so");
            let shown = self.below().await?;
            let layer = ready[0].layer;
            let Alone { key, pending, .. } =
                self.again(layer, &shown).await.map_err(|error| layer.failed(error))?;
            ready[0].key = key;
            ready[0].supposed = supposed(pending);
        }
        Ok(())
    }

    /// Commits layers with one sync, all or none. Gives them back if one has taken a link below for a folder, and says which one.
    async fn commit_all(&mut self, ready: Vec<Ready<'a>>) -> Result<Option<(Vec<Ready<'a>>, usize)>> {
        let layers: Vec<_> = ready.iter().map(|ready| ready.layer).collect();
        let Some(top) = layers.last() else { return Ok(None) };
        let names: Vec<_> = layers.iter().map(|layer| layer.chain.clone()).collect();
        let made: Vec<_> = ready.into_iter().map(|ready| (ready.key, ready.supposed, ready.lock)).collect();
        let base = self.base.clone();
        let work = move |snapshotter: &dyn Snapshotter| {
            let below = std::iter::once(base.as_deref()).chain(names.iter().map(|name| Some(name.as_str())));
            let steps = made.iter().zip(&names).zip(below);
            let steps: Vec<_> = steps
                .map(|(((key, supposed, _), name), parent)| {
                    Commit::new(key, name, parent).supposing(supposed)
                })
                .collect();
            let refused = match snapshotter.commit(&steps) {
                Ok(()) => None,
                Err(windlass_snapshot::Error::LinkBelow { key, .. }) => {
                    Some(made.iter().position(|(made, ..)| *made == key).expect("it is one of them"))
                }
                Err(error) => return Err(error.into()),
            };
            // Nobody else looks for the snapshots before they are there, even if nobody waits for this any more: they have the locks.
            Ok((made, refused))
        };
        let (made, refused) = self.unpacker.blocking(work).await?;
        if let Some(index) = refused {
            let ready = |(layer, (key, supposed, lock))| Ready { layer, key, supposed, lock };
            return Ok(Some((layers.into_iter().zip(made).map(ready).collect(), index)));
        }
        self.base = Some(top.chain.clone());
        self.active.committed(&made.into_iter().map(|(key, ..)| key).collect::<Vec<_>>());
        layers.into_iter().for_each(|layer| self.unpacker.done(layer, false));
        Ok(None)
    }
}

/// Applies a layer to an empty tree; with what shows the layers below, if it turned out to need them.
async fn alone(
    unpacker: &Unpacker,
    write_back: &Arc<WriteBack>,
    layer: &Layer,
    key: String,
    mounts: Vec<Mount>,
    below: &[Mount],
) -> Result<Alone> {
    // Below the lowest layer is nothing that it could hide, and a whiteout would be seen.
    let whiteouts = match layer.is_lowest {
        true => Whiteouts::Remove,
        false => unpacker.snapshotter.capabilities().whiteouts,
    };
    let pending = unpacker.apply(layer, &mounts, below, whiteouts, write_back).await?.pending;
    Ok(Alone { key, mounts, pending })
}

/// What an image supposes of the layers below.
fn supposed(Pending { guesses, targets, refused, .. }: Pending) -> Supposed {
    Supposed { folders: guesses, files: targets, refused }
}

fn chains(layers: &[Layer]) -> Vec<String> {
    layers.iter().map(|layer| layer.chain.clone()).collect()
}
