//! Images in local files: OCI image layouts, as folders or in tar archives, and what `docker save` writes.
//!
//! ```text
//! "oci-archive:app.tar:v1" ── Source ──▶ OciLayout │ OciArchive │ DockerArchive ──▶ Resolved
//!                                            │           │             │
//!                                          Folder        └── Archive ──┘      names ──▶ bytes of files
//! ```
//!
//! The files may be hostile, as registries may. No name in them leads out of the folder, and entries of an archive never
//! become files. What is read to resolve a name is limited in size and checked against its digest; all else streams.

mod archive;
mod choose;
mod docker;
mod files;
mod folder;
mod hybrid;
mod oci;
mod source;

pub use docker::DockerArchive;
pub use oci::{OciArchive, OciLayout};
pub use source::{Location, Source};

use crate::Result;

/// Runs disk work off the runtime's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("disk work neither panics nor is aborted")
}
