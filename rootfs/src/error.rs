use std::{
    io,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a layer could not be applied or written, an image not unpacked, or a bundle not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody changed a tree while it was read. Worth trying again once nobody does.
    #[error("{} changed while it was read: stop or pause what writes to it", path.display())]
    Changed {
        /// What changed, in the tree.
        path: PathBuf,
    },

    /// The content store refused.
    #[error(transparent)]
    Content(#[from] windlass_content::Error),

    /// A layer's bytes are not those that the config promises.
    #[error("layer {layer} is damaged: its DiffID is {actual}, and the image config says {expected}")]
    DiffId {
        /// The layer's blob.
        layer: Digest,
        /// What the config says.
        expected: Digest,
        /// What the plain bytes hash to.
        actual: Digest,
    },

    /// An entry of a layer is refused.
    #[error("entry {entry:?} is refused: {reason}")]
    Entry {
        /// The entry's path, as the layer writes it.
        entry: PathBuf,
        /// Why.
        reason: String,
    },

    /// The image is not what it should be.
    #[error(transparent)]
    Images(#[from] windlass_images::Error),

    /// A layer cannot be applied.
    #[error("cannot unpack layer {layer}")]
    Layer {
        /// The layer's blob.
        layer: Digest,
        /// What went wrong.
        source: Box<Error>,
    },

    /// The layer exceeds a limit.
    #[error("entry {entry:?} exceeds the limit of {limit} {what}")]
    Limit {
        /// The entry at which it does.
        entry: PathBuf,
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },

    /// The snapshotter refused.
    #[error(transparent)]
    Snapshot(#[from] windlass_snapshot::Error),

    /// The image's config cannot be turned into a runtime spec.
    #[error("cannot make a runtime spec: {reason}")]
    Spec {
        /// What is wrong with it, and what to do about it.
        reason: String,
    },

    /// The bytes are not a tar archive, or cannot be read or decompressed.
    #[error("the layer is not a readable tar archive{}", after(entry.as_deref()))]
    Tar {
        /// The last entry that was read.
        entry: Option<PathBuf>,
        /// What was found.
        source: io::Error,
    },

    /// The operating system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase: `"create"`.
        op: &'static str,
        /// What it was done to; inside a layer, its path there.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

fn after(entry: Option<&Path>) -> String {
    entry.map(|entry| format!(", at or after its entry {entry:?}")).unwrap_or_default()
}
