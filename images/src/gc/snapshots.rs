//! Which snapshots are dead, in an order in which they can be removed.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use crate::BoxError;

/// What a collection does to the snapshots of one driver. Its methods block on the disk.
pub trait Collector: fmt::Debug + Send + Sync {
    /// The driver's name, as leases have it in [`Resource::Snapshot`](crate::Resource::Snapshot).
    fn driver(&self) -> &str;

    /// All snapshots, in any order.
    ///
    /// # Errors
    ///
    /// Any: it ends the collection.
    fn list(&self) -> Result<Vec<Snapshot>, BoxError>;

    /// Removes a snapshot of which no child is left. It should take a moment only: others may be waiting. Whatever takes longer is
    /// for [`cleanup`](Self::cleanup).
    ///
    /// Returns false if it is in use after all, say by a new child: it stays, and so do its parents. One that is not there is
    /// removed already.
    ///
    /// # Errors
    ///
    /// Any: it ends the collection.
    fn remove(&self, name: &str) -> Result<bool, BoxError>;

    /// Frees what removed snapshots have left on the disk. Called once, at the end. Nobody waits for it.
    ///
    /// # Errors
    ///
    /// Any: it ends the collection.
    fn cleanup(&self) -> Result<(), BoxError>;
}

/// A snapshot, as a [`Collector`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name or key. Of a committed layer, the ChainID.
    pub name: String,
    /// The one below it.
    pub parent: Option<String>,
    /// Whether it stays whatever images and leases say, with its parents: a container's, for instance.
    pub pinned: bool,
    /// What it takes, in bytes.
    pub size: u64,
}

/// The snapshots that are neither pinned nor `live`, nor below one that is: children before their parents.
pub(super) fn dead(snapshots: Vec<Snapshot>, live: impl Fn(&str) -> bool) -> Vec<Snapshot> {
    let parents: HashMap<String, Option<String>> =
        snapshots.iter().map(|it| (it.name.clone(), it.parent.clone())).collect();
    let below = |name: &str| parents.get(name).and_then(Option::as_deref);

    let mut alive: HashSet<&str> = HashSet::new();
    for snapshot in snapshots.iter().filter(|it| it.pinned || live(&it.name)) {
        let mut next = Some(snapshot.name.as_str());
        while let Some(name) = next.filter(|name| alive.insert(name)) {
            next = below(name);
        }
    }
    // What is above a snapshot is deeper than it. A circle, which cannot be, has an end.
    let depth =
        |name: &str| std::iter::successors(below(name), |name| below(name)).take(parents.len()).count();
    let mut dead: Vec<_> = snapshots
        .iter()
        .filter(|it| !alive.contains(it.name.as_str()))
        .map(|it| (depth(&it.name), it.clone()))
        .collect();
    dead.sort_by(|(a, x), (b, y)| b.cmp(a).then_with(|| x.name.cmp(&y.name)));
    dead.into_iter().map(|(_, snapshot)| snapshot).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_those_that_nothing_alive_stands_on_and_children_go_first() {
        let snapshot = |name: &str, parent: &str, pinned| Snapshot {
            name: name.into(),
            parent: (!parent.is_empty()).then(|| parent.into()),
            pinned,
            size: 1,
        };
        let snapshots = vec![
            snapshot("base", "", false),
            snapshot("image", "base", false),
            snapshot("old", "base", false),
            snapshot("older", "old", false),
            snapshot("left", "", false),
            snapshot("under a container", "", false),
            snapshot("container", "under a container", true),
        ];

        let names: Vec<_> = dead(snapshots, |it| it == "image").into_iter().map(|it| it.name).collect();

        assert_eq!(names, ["older", "old", "left"]);
    }
}
