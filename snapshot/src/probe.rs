use std::{fmt, path::Path, sync::Arc};

use crate::{Durability, Error, Native, Result, Snapshotter};

/// The snapshotter that was found to be the best one for a folder, and why.
#[derive(Debug)]
pub struct Snapshotters {
    /// The snapshotter, opened. Its name says which one it is.
    pub chosen: Arc<dyn Snapshotter>,
    /// Whether it was chosen because its snapshots are there already, rather than as the best that works.
    pub existed: bool,
    /// Those that were tried before it.
    pub refused: Vec<Refused>,
}

/// A snapshotter that cannot work somewhere.
#[derive(Debug)]
pub struct Refused {
    /// Its name.
    pub driver: &'static str,
    /// Why not, and what to do about it.
    pub reason: Error,
}

type Open = fn(&Path, Durability) -> Result<Arc<dyn Snapshotter>>;

/// The best first.
const DRIVERS: &[(&str, Open)] = &[
    #[cfg(feature = "erofs")]
    ("erofs", |root, durability| Ok(Arc::new(crate::Erofs::open(root, durability)?))),
    #[cfg(feature = "overlay")]
    ("overlay", |root, durability| Ok(Arc::new(crate::Overlay::open(root, durability)?))),
    #[cfg(feature = "btrfs")]
    ("btrfs", |root, durability| Ok(Arc::new(crate::Btrfs::open(root, durability)?))),
    ("native", |root, durability| Ok(Arc::new(Native::open(root, durability)?))),
];

impl Snapshotters {
    /// Opens the best snapshotter that works in the folder `root/<its name>`: `erofs`, `overlay`, `btrfs`, and else `native`,
    /// which works everywhere. One whose snapshots are there already comes before the others, so that they stay in use.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Database`] and [`Error::Newer`] if a folder cannot be used: that is for somebody to mend, and
    /// another snapshotter would hide it.
    pub fn probe(root: &Path, durability: Durability) -> Result<Self> {
        let exists = |name: &str| root.join(name).join("metadata.db").exists();
        let mut drivers = DRIVERS.to_vec();
        drivers.sort_by_key(|(name, _)| !exists(name));
        let mut refused = Vec::new();
        for (driver, open) in drivers {
            let existed = exists(driver);
            match open(&root.join(driver), durability) {
                Ok(chosen) => return Ok(Self { chosen, existed, refused }),
                Err(reason @ Error::Unsupported { .. }) => refused.push(Refused { driver, reason }),
                Err(err) => return Err(err),
            }
        }
        unreachable!("the native snapshotter refuses no folder")
    }
}

impl fmt::Display for Snapshotters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.existed { "its snapshots are there" } else { "it is the best one that works" };
        write!(f, "{}, as {why}", self.chosen.name())?;
        self.refused.iter().try_for_each(|refused| write!(f, "; {refused}"))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)
    }
}
