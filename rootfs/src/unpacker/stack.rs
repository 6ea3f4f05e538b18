//! All layers at once, for drivers that take a snapshot's parent at commit.
//!
//! Each layer is applied alone, as soon as its turn comes. Meanwhile one goes through the layers from the lowest up: what a
//! layer takes from those below it is settled, and when all are, they are committed in one step.
//!
//! Layers that somebody else is unpacking are left to them. Before one waits for such a layer, one commits what is below it, and
//! gives the locks of that back: so one never waits for a layer while others may wait for one below it.

use std::{os::fd::OwnedFd, sync::Arc};

use futures::future::{try_join, try_join_all};
use tokio::sync::{Semaphore, oneshot};
use windlass_snapshot::{Commit, Mount, Snapshotter, Whiteouts, mount::open_tree};

use super::{
    Layer, Unpacker,
    active::{Active, unique_key},
    chain_lock::{ChainLock, ChainLocks},
    write_back::WriteBack,
};
use crate::{
    Result,
    apply::{Pending, settle},
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

/// A layer that has all that it takes from those below it.
struct Ready<'a> {
    layer: &'a Layer,
    key: String,
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

        let (unpacker, active, write_back) = (self.unpacker, self.active, &self.write_back.clone());
        let turns = &Semaphore::new(unpacker.limit.get());
        let (mut applying, mut steps) = (Vec::new(), Vec::new());
        for ((layer, claim), key) in layers.iter().zip(claims).zip(keys) {
            let (sender, applied) = oneshot::channel();
            if matches!(claim, Claim::Ours(_)) {
                // All of them before anything is written: the metadata is synced, which takes long on a busy disk.
                let mounts = active.prepare(key.clone(), None).await?;
                applying.push(async move {
                    let _turn = turns.acquire().await.expect("the semaphore is never closed");
                    // Nobody listens if it has failed elsewhere.
                    let _ = sender.send(alone(unpacker, write_back, layer, key, mounts).await?);
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
        let applied = alone(self.unpacker, &self.write_back, layer, key, mounts).await?;
        self.put(layer, applied, lock).await
    }

    /// Gives a layer what it takes from those below.
    async fn put(&mut self, layer: &'a Layer, applied: Alone, lock: ChainLock) -> Result<()> {
        let Alone { key, mounts, pending } = applied;
        if self.ready.len() >= self.unpacker.snapshotter.capabilities().stacked {
            self.commit().await?;
        }
        if !pending.is_empty() {
            let below = self.ready.iter().rev().map(|it| it.key.clone()).collect();
            let work = settle_on(pending, mounts, below, self.base.clone());
            self.unpacker.blocking(work).await.map_err(|error| layer.failed(error))?;
        }
        self.ready.push(Ready { layer, key, lock });
        Ok(())
    }

    /// Commits all that is ready, with one sync.
    async fn commit(&mut self) -> Result<()> {
        let (mut layers, mut keys, mut locks) = (Vec::new(), Vec::new(), Vec::new());
        for Ready { layer, key, lock } in self.ready.drain(..) {
            layers.push(layer);
            keys.push(key);
            locks.push(lock);
        }
        let names: Vec<_> = layers.iter().map(|layer| layer.chain.clone()).collect();
        let Some(top) = names.last() else { return Ok(()) };
        let base = self.base.replace(top.clone());
        let work = move |snapshotter: &dyn Snapshotter| {
            let below = std::iter::once(base.as_deref()).chain(names.iter().map(|name| Some(name.as_str())));
            let steps = keys.iter().zip(&names).zip(below);
            let steps: Vec<_> = steps.map(|((key, name), parent)| Commit { key, name, parent }).collect();
            snapshotter.commit(&steps)?;
            // Nobody else looks for the snapshots before they are there, even if nobody waits for this any more.
            drop(locks);
            Ok(keys)
        };
        let keys = self.unpacker.blocking(work).await?;
        self.active.committed(&keys);
        layers.into_iter().for_each(|layer| self.unpacker.done(layer, false));
        Ok(())
    }
}

/// Applies a layer to an empty tree.
async fn alone(
    unpacker: &Unpacker,
    write_back: &Arc<WriteBack>,
    layer: &Layer,
    key: String,
    mounts: Vec<Mount>,
) -> Result<Alone> {
    // Below the lowest layer is nothing that it could hide, and a whiteout would be seen.
    let whiteouts = match layer.is_lowest {
        true => Whiteouts::Remove,
        false => unpacker.snapshotter.capabilities().whiteouts,
    };
    let pending = unpacker.apply(layer, &mounts, whiteouts, write_back).await?.pending;
    Ok(Alone { key, mounts, pending })
}

fn chains(layers: &[Layer]) -> Vec<String> {
    layers.iter().map(|layer| layer.chain.clone()).collect()
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
