//! Images as graphs of descriptors: reading them, walking them, and remembering them by name.
//!
//! ```text
//! root descriptor ──dispatch──▶ Handler::handle ──▶ Next::Visit(children) ──▶ …
//!                                Track → Fetch → Children
//! ```
//!
//! Fetched bytes are the truth: manifests and configs are read through lenient [`view`]s, and never written
//! again.

#[doc(hidden)]
pub mod archive;
mod chain;
mod check;
mod children;
mod dispatch;
mod error;
pub mod export;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod gate;
pub mod gc;
mod handler;
mod hold;
mod image;
pub mod import;
mod lease;
pub mod media_type;
mod platform;
pub mod progress;
mod store;
mod then;
mod track;
pub mod view;
mod walk;
mod whole;
mod worker;

pub use chain::{ChainId, chain_ids};
pub use check::{Checked, check, manifests};
pub use children::ChildrenHandler;
pub use dispatch::{MAX_DEPTH, dispatch};
pub use error::{Error, Result};
pub use handler::{BoxError, Handler, HandlerExt, Next};
pub use hold::Hold;
pub use image::Image;
pub use lease::{Lease, LeaseInfo, LeaseOptions, Removal, Resource};
pub use platform::Platform;
pub use store::{Create, Filter, Found, Record, Store, Swap, Update};
pub use then::Then;
pub use track::Track;
pub use walk::walk;
