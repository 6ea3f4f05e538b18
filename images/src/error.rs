use std::path::PathBuf;

use oci_spec::image::Digest;

use crate::BoxError;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be read, walked or recorded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What should be an archive of images cannot be used.
    #[error("cannot use the archive: {reason}")]
    Archive {
        /// What is wrong with it, and with which of its entries.
        reason: String,
    },

    /// A collector of snapshots failed. The collection ended there; what it had removed stays removed.
    #[error("cannot {op} the snapshots of {driver}")]
    Collector {
        /// What was being done, as a verb: `"list"`.
        op: &'static str,
        /// The collector's driver.
        driver: String,
        /// What it answered.
        source: BoxError,
    },

    /// The content store refused.
    #[error(transparent)]
    Content(#[from] windlass_content::Error),

    /// The list of images, or what a garbage collection notes beside it, could not be read or written.
    #[error("cannot {op} in the database {}", path.display())]
    Database {
        /// What was being done, as a verb phrase: `"record an image"`.
        op: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite answered.
        source: rusqlite::Error,
    },

    /// A handler failed at a node.
    #[error("cannot get {media_type} {digest}")]
    Handler {
        /// The node's media type.
        media_type: String,
        /// The node.
        digest: Digest,
        /// What the handler answered.
        source: BoxError,
    },

    /// Some content of an image is not there. What is there stays.
    #[error("image {image} is not whole: {digest} ({media_type}) is missing")]
    Incomplete {
        /// The image, by its name or digest.
        image: String,
        /// What is missing.
        digest: Digest,
        /// What it should be.
        media_type: String,
    },

    /// The operating system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase: `"lock"`.
        op: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },

    /// The lease was released, or removed as dead.
    #[error("lease {id:?} has ended")]
    LeaseGone {
        /// The lease.
        id: String,
    },

    /// Another handle, perhaps of another process, has the lease.
    #[error("lease {id:?} is in use")]
    LeaseHeld {
        /// The lease.
        id: String,
    },

    /// The text cannot name a lease.
    #[error("{id:?} cannot name a lease: use up to 128 letters, digits, '.', '_' and '-', and no '.' first")]
    LeaseId {
        /// What was written.
        id: String,
    },

    /// The content is not what its media type says.
    #[error("{digest} is not a valid {what}: {reason}")]
    Malformed {
        /// What it should be: `"manifest"`.
        what: &'static str,
        /// The content.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },

    /// The index has nothing for the platform.
    #[error("no image for {wanted} in {digest}; it has {available}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// The index.
        digest: Digest,
        /// What it has instead, separated by commas.
        available: String,
    },

    /// An archive has no image of that name.
    #[error("no image {name} in the archive; it has {available}")]
    NotInArchive {
        /// What was asked for.
        name: String,
        /// What there is instead, separated by commas.
        available: String,
    },

    /// A platform is not written as `os/arch` or `os/arch/variant`.
    #[error("{platform:?} is no platform: write it as os/arch or os/arch/variant, such as linux/arm64/v8")]
    Platform {
        /// What was written.
        platform: String,
    },

    /// An archive could not be read or written.
    #[error("cannot {op} the archive")]
    Stream {
        /// What was being done, as a verb phrase: `"read"`.
        op: &'static str,
        /// What the other end answered.
        source: std::io::Error,
    },

    /// Indexes are in each other, more of them than any image has.
    #[error("{digest} is more than {limit} steps below the image's root")]
    TooDeep {
        /// The first node that is too deep.
        digest: Digest,
        /// How many steps are allowed.
        limit: usize,
    },

    /// An index or a manifest lists more than the limit.
    #[error("{digest} lists {entries} entries, more than the limit of {limit}")]
    TooMany {
        /// The index or manifest.
        digest: Digest,
        /// How many manifests, or layers, it lists.
        entries: usize,
        /// The caller's limit.
        limit: usize,
    },

    /// The image list was written by a newer version of this library.
    #[error("the image list {} has version {version}, which is newer than this program knows; update it", path.display())]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
}
