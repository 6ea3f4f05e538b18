use std::{io, path::PathBuf};

use oci_spec::image::Digest;

/// The result of a store's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The blob that was being followed will not be completed: its writer gave up.
    #[error("the ingest of {digest} was abandoned before it was complete")]
    Abandoned {
        /// The blob that was followed.
        digest: Digest,
    },

    /// Something is under the blob's name that is not a readable file. Ingesting the blob makes it anew.
    #[error("blob {digest} is damaged: {reason}")]
    Damaged {
        /// The blob that was asked for.
        digest: Digest,
        /// What is wrong with it, as a clause: `"it is a folder"`.
        reason: String,
    },

    /// The bytes are not the ones that were announced. The ingest is discarded, since resuming cannot help.
    #[error("blob {expected} is damaged: its bytes hash to {actual}")]
    DigestMismatch {
        /// The digest that the descriptor promised.
        expected: Digest,
        /// The digest of the bytes that came.
        actual: Digest,
    },

    /// A label is empty or too long: see [`Labels`](crate::Labels).
    #[error("label {key:?} {reason}")]
    Label {
        /// The key of the label, cut if it is long.
        key: String,
        /// What is wrong with it, as a verb phrase.
        reason: &'static str,
    },

    /// The blob is not in the store, or is not committed.
    #[error("no blob {digest} in the store")]
    NotFound {
        /// The blob that was asked for.
        digest: Digest,
    },

    /// No ingest with this key is in progress.
    #[error("no ingest {key:?} in progress")]
    NoIngest {
        /// The key that was asked for.
        key: String,
    },

    /// The blob is not kept here, and could not be fetched again from where it came. The source says why.
    #[error("blob {digest} is not kept here, and cannot be fetched again")]
    Refetch {
        /// The blob that was asked for.
        digest: Digest,
        /// What its origin answered, or why there is none.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The number of bytes is not the one that was announced. A short ingest is kept, to be resumed.
    #[error("blob {digest} should have {expected} bytes, but {actual} came")]
    SizeMismatch {
        /// The blob that was being written.
        digest: Digest,
        /// What the descriptor promised, in bytes.
        expected: u64,
        /// What came, in bytes; at least this many, if it was too much.
        actual: u64,
    },

    /// The stream that was to be stored failed. What came before it is kept, to be resumed.
    #[error("the bytes of blob {digest} stopped coming")]
    Source {
        /// The blob that was being written.
        digest: Digest,
        /// What the stream answered.
        source: io::Error,
    },

    /// The blob is larger than the caller wanted to hold in memory.
    #[error("blob {digest} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The blob that was asked for.
        digest: Digest,
        /// Its size, in bytes.
        size: u64,
        /// The caller's limit, in bytes.
        limit: u64,
    },

    /// An ingest can only be truncated to a size that it has reached.
    #[error("cannot truncate the ingest of {digest} to {size} bytes: it has {offset}")]
    Truncate {
        /// The blob that is being written.
        digest: Digest,
        /// What was asked for, in bytes.
        size: u64,
        /// What is there, in bytes.
        offset: u64,
    },

    /// The digest's algorithm is none of SHA-256, SHA-384 and SHA-512.
    #[error("digest {digest} has an algorithm that is not supported; use sha256, sha384 or sha512")]
    UnsupportedDigest {
        /// The digest.
        digest: Digest,
    },

    /// The operating system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase: `"rename"`.
        op: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}
