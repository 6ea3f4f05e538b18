use std::{io, path::PathBuf};

/// The result of a snapshotter's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a snapshotter refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The snapshotter was closed.
    #[error("the snapshotter of {} is closed", path.display())]
    Closed {
        /// Its database.
        path: PathBuf,
    },

    /// The metadata could not be read or written.
    #[error("cannot {op} in the snapshot metadata {}", path.display())]
    Database {
        /// What was being done, as a verb phrase: `"add a snapshot"`.
        op: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite answered.
        source: rusqlite::Error,
    },

    /// The key is taken.
    #[error("snapshot {name:?} exists already")]
    Exists {
        /// The key.
        name: String,
    },

    /// Other snapshots are on top of it; remove them first.
    #[error("snapshot {name:?} cannot be removed: {child:?} is on top of it")]
    HasChildren {
        /// The snapshot.
        name: String,
        /// One of those on top of it.
        child: String,
    },

    /// An image cannot be used: it is damaged, or something cannot be put into it.
    #[error("EROFS image {}: {reason}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A layer took for a folder what is a symbolic link below. It is to be written anew, with those below it at hand.
    #[error("snapshot {key:?} has entries in {}, which is a symbolic link below", path.display())]
    LinkBelow {
        /// The active snapshot.
        key: String,
        /// The link.
        path: PathBuf,
    },

    /// A mount failed.
    #[error("cannot mount {fstype} on {}", target.display())]
    Mount {
        /// The file system's type.
        fstype: String,
        /// Where it was to be.
        target: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },

    /// A newer program made the metadata.
    #[error("{} has version {version}, this program knows {known}: upgrade it", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        version: i64,
        /// The newest version that this program can read.
        known: i64,
    },

    /// The snapshot is committed (or only a view), and cannot be written, mounted or committed.
    #[error("snapshot {name:?} is not active")]
    NotActive {
        /// The snapshot.
        name: String,
    },

    /// The snapshot is active, and cannot be a parent.
    #[error("snapshot {name:?} is not committed")]
    NotCommitted {
        /// The snapshot.
        name: String,
    },

    /// There is no such snapshot.
    #[error("no snapshot {name:?}")]
    NotFound {
        /// The name or key that was asked for.
        name: String,
    },

    /// This driver cannot do that, or cannot work here.
    #[error("the {driver} snapshotter cannot {op}: {reason}")]
    Unsupported {
        /// The driver.
        driver: &'static str,
        /// What was asked for, as a verb phrase.
        op: &'static str,
        /// Why not, and what to do about it.
        reason: String,
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
