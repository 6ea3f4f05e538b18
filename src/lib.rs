//! Container images from Rust: resolve, fetch, store, unpack and run them, without a daemon.
//!
//! ```text
//! "docker.io/library/redis:latest"
//!    │ Reference                      parse, normalise
//!    ▼
//! Resolver ──▶ Fetcher ──bytes──▶ content store ──follow──▶ unpack ──▶ snapshots ──▶ Bundle ──▶ runc | crun | youki
//!                                      └── images: the name is recorded last
//! ```
//!
//! [`Windlass`] is the whole of it over one folder. The crates below are usable alone, and every step is a
//! trait that can be replaced: [`remotes::Resolver`], [`remotes::Fetcher`], [`content::Ingester`],
//! [`images::Handler`], [`snapshot::Snapshotter`], [`rootfs::Applier`].
#![doc = include_str!("../README.md")]

mod attempt;
mod bundle;
mod collect;
mod commit;
mod containers;
mod driver;
mod error;
mod export;
mod import;
pub mod labels;
mod names;
mod pull;
mod refetch;
mod unpack;
mod usage;
mod windlass;

pub use commit::{CommitOptions, Committed};
pub use containers::{Container, ContainerState};
pub use driver::Driver;
pub use error::{Error, Result};
pub use import::ImportOptions;
pub use pull::{Platforms, PullOptions, Pulled, Retain};
pub use refetch::Refetching;
pub use usage::{ImageUsage, Total, Usage};
pub use windlass::{Builder, Windlass};
pub use windlass_images::export::ExportOptions;

pub use windlass_content as content;
pub use windlass_images as images;
pub use windlass_reference as reference;
pub use windlass_reference::Reference;
pub use windlass_remotes as remotes;
pub use windlass_rootfs as rootfs;
pub use windlass_snapshot as snapshot;
