//! Content that is somewhere else: finding out what a name stands for, and getting it.
//!
//! ```text
//! Reference ──Resolver::resolve──▶ Resolved { name, descriptor, fetcher }
//!                                        │
//!           FetchHandler ◀──Fetcher::fetch──bytes──▶ content::Writer
//! ```
//!
//! [`Registry`] speaks the OCI distribution protocol. A [`Fetcher`] gives bytes that nobody has verified yet: the
//! content store's writer does that.

pub mod credentials;
mod error;
mod fetch_handler;
mod fetcher;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod hosts;
mod push;
mod pusher;
mod registry;
mod resolver;
pub mod transport;
mod url;

pub use error::{Error, Result};
pub use fetch_handler::{FetchHandler, ingest_key};
pub use fetcher::{Fetcher, FromFn, from_fn};
pub use push::push;
pub use pusher::{Pushed, Pusher};
pub use registry::{Builder, ParallelFetch, Registry, RegistryPusher};
pub use resolver::{Resolved, Resolver};
