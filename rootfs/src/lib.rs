//! From layers to root file systems to runtime bundles.
//!
//! ```text
//! layer blob ──decompress──▶ hash (DiffID) ──▶ apply ──commit──▶ snapshot named by its ChainID
//! active snapshot ──diff──▶ hash (DiffID) ──compress──▶ hash (digest) ──▶ layer blob
//! image config ──spec──▶ runtime spec ──┐
//! snapshot mounts ──────────────────────┴──▶ Bundle (config.json + rootfs) ──▶ an OCI runtime
//! ```
//!
//! Layers are hostile: everything in one is resolved below the root it is applied to, and every limit has a
//! safe default ([`apply::Limits`]).

mod applier;
pub mod apply;
mod bundle;
pub mod compression;
pub mod diff;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod spec;
mod unpacker;

pub use applier::{Applier, LayerStream, TarApplier};
#[cfg(feature = "erofs")]
pub use apply::image::ImageApplier;
pub use bundle::Bundle;
pub use error::{Error, Result};
pub use unpacker::{UNPACK_PREFIX, UnpackHandler, Unpacked, Unpacker, Unpacking, unpacked};
