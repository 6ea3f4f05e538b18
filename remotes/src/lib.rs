//! Content that is somewhere else: finding out what a name stands for, and getting it.
//!
//! ```text
//! Reference ──Resolver::resolve──▶ Resolved { name, descriptor, fetcher }
//!                                        │
//!           FetchHandler ◀──Fetcher::fetch──bytes──▶ content::Writer
//! ```
//!
//! [`Registry`] speaks the OCI distribution protocol; [`local`] reads image layouts and archives; [`from_provider`]
//! makes a content store the place where things are. A [`Fetcher`] gives bytes that nobody has verified yet: the
//! content store's writer does that.

pub mod credentials;
mod error;
mod fetch_handler;
mod fetcher;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
pub mod hosts;
pub mod local;
#[cfg(feature = "oci-client")]
mod oci_client;
mod provider;
mod push;
mod pusher;
mod registry;
mod resolver;
pub mod transport;
mod url;

pub use error::{Error, Result};
pub use fetch_handler::{FetchHandler, ingest_key};
pub use fetcher::{Fetcher, FromFn, from_fn};
#[cfg(feature = "oci-client")]
pub use oci_client::OciClient;
pub use provider::{FromProvider, from_provider};
pub use push::push;
pub use pusher::{Pushed, Pusher};
pub use registry::{Builder, ParallelFetch, Registry, RegistryPusher};
pub use resolver::{Resolved, Resolver};
