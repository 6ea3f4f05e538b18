//! Blobs by digest: reading them, and writing them so that they can be read.
//!
//! ```text
//! Ingester ──ingest──▶ Writer ──commit──▶ Provider ──open──▶ Blob
//!                        │
//!                        └──────follow──▶ Blob   (the same bytes, while they arrive)
//! ```
//!
//! A blob is invisible until it is committed, and never changes afterwards.
//!
//! [`LocalStore`] keeps blobs in a folder that is a valid OCI image layout; several processes may share it.

mod blob;
mod error;
mod filter;
pub mod hash;
mod ingester;
mod labels;
mod local;
pub mod lock;
mod provider;
mod store;
#[cfg(feature = "testsuite")]
pub mod testsuite;

pub use blob::{Blob, BlobReader, ByteStream, ReadAt};
pub use error::{Error, Result};
pub use filter::Filter;
pub use ingester::{Ingest, Ingester, Writer, WriterExt};
pub use labels::Labels;
pub use local::{Condition, Durability, Expired, Following, LocalStore, Options, Verified, Verify};
pub use provider::{Provider, ProviderExt};
pub use store::{Info, Status, Store};
