//! Which driver keeps what is unpacked.

use std::{path::Path, sync::Arc};

use windlass_snapshot::{Durability, Native, Snapshotter, Snapshotters};

use crate::Result;

/// Which driver keeps what is unpacked, each in a folder of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// The one whose snapshots are there already; else the best that works: EROFS images, overlayfs, btrfs, or whole copies.
    #[default]
    Auto,
    /// An EROFS image for each layer.
    #[cfg(feature = "erofs")]
    Erofs,
    /// Overlayfs layers.
    #[cfg(feature = "overlay")]
    Overlay,
    /// Snapshots of btrfs.
    #[cfg(feature = "btrfs")]
    Btrfs,
    /// Whole copies, which work everywhere.
    Native,
}

impl Driver {
    /// Opens the driver's folder in `snapshots`. Blocks on the disk.
    pub(crate) fn open(self, snapshots: &Path, durability: Durability) -> Result<Arc<dyn Snapshotter>> {
        Ok(match self {
            Self::Auto => {
                let found = Snapshotters::probe(snapshots, durability)?;
                // The first time only: whoever wants another one can still change that.
                if found.refused.is_empty() || found.existed {
                    tracing::debug!("unpacking with {found}");
                } else {
                    tracing::warn!("unpacking with {found}");
                }
                found.chosen
            }
            #[cfg(feature = "erofs")]
            Self::Erofs => Arc::new(windlass_snapshot::Erofs::open(&snapshots.join("erofs"), durability)?),
            #[cfg(feature = "overlay")]
            Self::Overlay => {
                Arc::new(windlass_snapshot::Overlay::open(&snapshots.join("overlay"), durability)?)
            }
            #[cfg(feature = "btrfs")]
            Self::Btrfs => Arc::new(windlass_snapshot::Btrfs::open(&snapshots.join("btrfs"), durability)?),
            Self::Native => Arc::new(Native::open(&snapshots.join("native"), durability)?),
        })
    }

    /// Whether the driver has been used in `snapshots`.
    pub(crate) fn has_been_used(self, snapshots: &Path) -> bool {
        let used = |name: &str| snapshots.join(name).join("metadata.db").exists();
        match self {
            Self::Auto => ["erofs", "overlay", "btrfs", "native"].into_iter().any(used),
            #[cfg(feature = "erofs")]
            Self::Erofs => used("erofs"),
            #[cfg(feature = "overlay")]
            Self::Overlay => used("overlay"),
            #[cfg(feature = "btrfs")]
            Self::Btrfs => used("btrfs"),
            Self::Native => used("native"),
        }
    }
}
