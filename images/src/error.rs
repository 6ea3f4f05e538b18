use std::{io, path::PathBuf};

use oci_spec::image::{Digest, MediaType};

use crate::{BoxError, Platform};

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image cannot be read, walked, or recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The content store refused to give a manifest or a config.
    #[error("cannot read {media_type} {digest}")]
    Content {
        /// What was to be read.
        digest: Digest,
        /// What it was said to be.
        media_type: MediaType,
        /// What the store answered.
        source: windlass_content::Error,
    },

    /// The database of names refused.
    #[error("cannot {op} in the image database")]
    Database {
        /// What was being done, as a verb phrase: `"record redis"`.
        op: String,
        /// What SQLite answered.
        source: rusqlite::Error,
    },

    /// A handler failed, which ended the walk.
    #[error("cannot handle {media_type} {digest}")]
    Handler {
        /// The node that the handler was called with.
        digest: Digest,
        /// What the node is.
        media_type: MediaType,
        /// What the handler answered.
        source: BoxError,
    },

    /// The config lists another number of layers than the manifest.
    #[error("config {config} lists {diff_ids} layers, but its manifest {manifest} has {layers}; the image was not built correctly")]
    LayerCount {
        /// The config.
        config: Digest,
        /// How many DiffIDs it has.
        diff_ids: usize,
        /// The manifest.
        manifest: Digest,
        /// How many layers it has.
        layers: usize,
    },

    /// A document is not what it should be.
    #[error("malformed {what}: {reason}")]
    Malformed {
        /// The kind of document and its digest, or the text that was to be parsed.
        what: String,
        /// What is wrong with it.
        reason: String,
    },

    /// The index has nothing that runs on the platform.
    #[error("no image for {wanted} in index {index}; it offers {}", list(available))]
    NoPlatform {
        /// The index.
        index: Digest,
        /// The platform that was asked for.
        wanted: Platform,
        /// What the index has, as `os/architecture/variant`.
        available: Vec<Platform>,
    },

    /// The content is neither an image nor an index of images: an artifact, for example.
    #[error("{digest} is not a container image: its type is {media_type}")]
    NotAnImage {
        /// The content.
        digest: Digest,
        /// Its type, or that of its config.
        media_type: MediaType,
    },

    /// A newer version of this library has written the database.
    #[error("image database {} has schema {found}, newer than {known}, which is known here; use a newer version", path.display())]
    Schema {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema that this version knows.
        known: u32,
    },

    /// A manifest, index or config is larger than the limit.
    #[error("{media_type} {digest} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// The document.
        digest: Digest,
        /// What it is.
        media_type: MediaType,
        /// Its size, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },

    /// The operating system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase: `"create"`.
        op: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

fn list(platforms: &[Platform]) -> String {
    if platforms.is_empty() {
        return "none".into();
    }
    platforms.iter().map(Platform::to_string).collect::<Vec<_>>().join(", ")
}
