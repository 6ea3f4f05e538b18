//! Layered root file systems: prepare a folder on top of a parent, fill it, commit it under a name.
//!
//! - A **snapshot** is a file system tree. A **committed** one has a name (for an image's layers, the ChainID), never
//!   changes, and can be a parent.
//! - An **active** one has a key, and is written to through its mounts. [`Snapshotter::prepare`] begins it,
//!   [`Snapshotter::commit`] gives it a name and ends it, [`Snapshotter::remove`] discards it.
//! - A **view** is an active one that is only read.
//!
//! ```text
//! prepare(key, parent) ──▶ mounts ──(somebody writes)──▶ commit(key → name) ──▶ parent of the next
//! ```
//!
//! | driver | a child is | works on | takes its parent at commit |
//! |---|---|---|---|
//! | `Overlay` | a folder on top of its parents', by overlayfs | ext4, xfs, btrfs, tmpfs | yes |
//! | `Btrfs` | btrfs's own snapshot of its parent | btrfs | no |
//! | [`Native`] | a copy of its parent, sharing blocks where it can | anything | no |
//!
//! [`Snapshotters::probe`] opens the best one that works in a folder, and says why. All show the same trees:
//! `testsuite` holds what each must do.
//!
//! All calls block; none needs an async runtime.

#[cfg(feature = "btrfs")]
mod btrfs;
#[cfg(feature = "erofs")]
pub mod erofs;
mod error;
mod folders;
mod metadata;
pub mod mount;
mod native;
#[cfg(feature = "overlay")]
mod overlay;
mod probe;
mod root;
mod snapshotter;
#[cfg(feature = "erofs")]
mod sync_range;
mod sys;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod tree;

#[cfg(feature = "btrfs")]
pub use btrfs::Btrfs;
#[cfg(feature = "erofs")]
pub use erofs::{Erofs, ErofsOptions};
pub use error::{Error, Result};
pub use mount::Mount;
pub use native::Native;
#[cfg(feature = "overlay")]
pub use overlay::{Overlay, OverlayOptions};
pub use probe::{Refused, Snapshotters};
pub use snapshotter::{
    Capabilities, Commit, Durability, Info, Kind, LayerFile, Snapshotter, Supposed, Usage, Whiteouts,
    usage_with_parents,
};
