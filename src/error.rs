use std::{io, path::PathBuf};

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: an error of one of the crates below, or one of the few that arise between them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Several images have digests that begin so. More digits tell which.
    #[error("more than one image has a digest that begins with {prefix}; use more of it")]
    Ambiguous {
        /// What was given.
        prefix: String,
    },

    /// The snapshot cannot become an image.
    #[error("cannot commit {key:?}: {reason}")]
    Commit {
        /// The snapshot.
        key: String,
        /// Why not, and what to do about it.
        reason: String,
    },

    /// The container's name could lead out of the folder of bundles.
    #[error("{id:?} is no container id: use letters, digits, `_`, `.`, `+` and `-`")]
    ContainerId {
        /// What was given.
        id: String,
    },

    /// A process that is running has the container mounted.
    #[error("container {id:?} is in use; end it first")]
    ContainerInUse {
        /// The container.
        id: String,
    },

    /// The content store refused.
    #[error(transparent)]
    Content(#[from] windlass_content::Error),

    /// An image is not what it should be, or the list of images refused.
    #[error(transparent)]
    Images(#[from] windlass_images::Error),

    /// There is no such container.
    #[error("no container {id:?} here")]
    NoContainer {
        /// What was asked for.
        id: String,
    },

    /// No image of that name has been pulled.
    #[error("no image {name} here; pull it first")]
    NoImage {
        /// The name, as [`Reference`](crate::Reference) normalises it; a digest, as it was given.
        name: String,
    },

    /// The name stands for something that is no image: a layer or a config, by its digest.
    #[error("{name} is no image, but {media_type}; pull a tag, or the digest of a manifest")]
    NotAnImage {
        /// The name.
        name: String,
        /// What the registry says it is.
        media_type: String,
    },

    /// A manifest or config of the image is missing here, or damaged. Pulling it again makes it whole.
    #[error("image {name} is not whole here; pull it again")]
    NotWhole {
        /// The image's name.
        name: String,
        /// Which blob it is, and what is wrong with it.
        source: windlass_content::Error,
    },

    /// The registry, or the way to it, refused.
    #[error(transparent)]
    Remotes(#[from] windlass_remotes::Error),

    /// A layer, the runtime spec or a bundle refused.
    #[error(transparent)]
    Rootfs(#[from] windlass_rootfs::Error),

    /// The snapshotter refused.
    #[error(transparent)]
    Snapshot(#[from] windlass_snapshot::Error),

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
