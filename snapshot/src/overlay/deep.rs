//! More layers than the kernel mounts at once.

use std::{collections::HashMap, fs::File};

use super::Overlay;
use crate::{Commit, Result, metadata::Flat, mount, tree};

/// How many snapshots are on top of each other until one is committed with a tree that shows all of them. The kernel's limit
/// (`OVL_MAX_STACK`) is 500, and [`AT_ONCE`] are to fit on top.
const DEPTH: usize = 240;
/// How many active snapshots can be stacked on a committed one.
pub(super) const AT_ONCE: usize = 240;

/// The trees that a commit needs besides those that were prepared.
pub(super) struct Flattened {
    pub(super) trees: Vec<Flat>,
    /// Keeps them from cleanup until they have their names.
    held: Option<File>,
}

/// A snapshot as it will be once it is committed.
#[derive(Clone)]
struct Committed {
    id: i64,
    /// The trees that make it up, highest first.
    chain: Vec<i64>,
}

impl Overlay {
    /// Copies what is too deep to a tree of its own: that takes time, once in [`DEPTH`] snapshots. What is wrong with the
    /// commits is left to be said by whoever commits them.
    pub(super) fn flatten(&self, commits: &[Commit<'_>]) -> Result<Flattened> {
        let mut flattened = Flattened { trees: Vec::new(), held: None };
        let filled = self.fill(commits, &mut flattened);
        if filled.is_err() {
            flattened.trees.iter().for_each(|tree| self.folders.discard(tree.id));
        }
        filled.map(|()| flattened)
    }

    fn fill(&self, commits: &[Commit<'_>], flattened: &mut Flattened) -> Result<()> {
        let metadata = &self.folders.metadata;
        let known = |name: &str| match metadata.find(name)? {
            Some(row) => Ok(Some(Committed { id: row.id, chain: metadata.chain(row.id)? })),
            None => Ok(None),
        };
        let mut new: HashMap<&str, Committed> = HashMap::new();
        for commit in commits {
            let Some(row) = metadata.find(commit.key)? else { continue };
            let there = metadata.find(commit.name)?;
            if let Some(there) = there.as_ref().filter(|there| self.folders.is_whole(there)) {
                new.insert(commit.name, Committed { id: there.id, chain: metadata.chain(there.id)? });
                continue;
            }
            let parent = commit.parent.or(row.info.parent.as_deref());
            let below = match parent {
                Some(name) => match new.get(name) {
                    Some(below) => Some(below.clone()),
                    None => known(name)?,
                },
                None => None,
            };
            let mut chain = vec![row.id];
            if let Some(below) = below {
                chain.extend(&below.chain);
                // What is damaged is made again as it was.
                if chain.len() >= DEPTH || there.is_some_and(|there| there.flat.is_some()) {
                    if flattened.held.is_none() {
                        flattened.held = Some(self.folders.hold()?);
                    }
                    let id = self.copy(&chain)?;
                    flattened.trees.push(Flat { key: commit.key.to_owned(), id, parent: below.id });
                    chain = vec![id];
                }
            }
            new.insert(commit.name, Committed { id: row.id, chain });
        }
        Ok(())
    }

    fn copy(&self, chain: &[i64]) -> Result<i64> {
        let merged = mount::open_tree(&self.read_only(chain))?;
        self.folders.spare(|tree| tree::copy(merged, tree))
    }
}

const _: () = assert!(DEPTH + AT_ONCE < 500, "the kernel takes 500 layers");
