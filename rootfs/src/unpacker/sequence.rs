//! One layer after the other, for drivers that must know what is below.

use std::sync::Arc;

use windlass_snapshot::Commit;

use super::{
    Layer, Unpacker,
    active::{Active, unique_key},
    chain_lock::{ChainLock, ChainLocks},
    write_back::WriteBack,
};
use crate::Result;

/// Applies each layer to the tree of those below it, and commits it before the next. `base` is the name of what is below.
pub(super) async fn one_by_one(
    unpacker: &Unpacker,
    active: &Active,
    locks: &ChainLocks,
    layers: &[Layer],
    base: Option<String>,
) -> Result<()> {
    let write_back = WriteBack::new(unpacker.snapshotter.clone());
    let mut parent = base;
    for layer in layers {
        let lock = locks.wait(&layer.chain).await?;
        let existed = unpacker.is_there(layer).await?;
        if !existed {
            one(unpacker, active, layer, parent, lock, &write_back).await?;
        }
        unpacker.done(layer, existed);
        parent = Some(layer.chain.clone());
    }
    Ok(())
}

async fn one(
    unpacker: &Unpacker,
    active: &Active,
    layer: &Layer,
    parent: Option<String>,
    lock: ChainLock,
    write_back: &Arc<WriteBack>,
) -> Result<()> {
    let key = unique_key(&layer.chain);
    unpacker.hold(std::slice::from_ref(&key)).await?;
    let mounts = active.prepare(key.clone(), parent).await?;
    let whiteouts = unpacker.snapshotter.capabilities().whiteouts;
    unpacker.apply(layer, &mounts, &[], whiteouts, write_back).await?;
    let name = layer.chain.clone();
    let key = unpacker
        .blocking(move |snapshotter| {
            snapshotter.commit(&[Commit::new(&key, &name, None)])?;
            // Nobody else looks for the snapshot before it is there, even if nobody waits for this any more.
            drop(lock);
            Ok(key)
        })
        .await?;
    active.committed(&[key]);
    Ok(())
}
