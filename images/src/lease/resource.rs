use std::{fmt, str::FromStr};

use oci_spec::image::Digest;
use serde::{Deserialize, Serialize};

/// What a lease can hold. It need not be there (yet).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Resource {
    /// A blob: just it.
    Blob(Digest),
    /// A manifest or an index, and all that is below it and there. What is still to come below it is to be held as blobs.
    Tree(Digest),
    /// A snapshot, and its parents.
    Snapshot {
        /// The snapshotter it belongs to, such as `overlay`.
        driver: String,
        /// Its name or key.
        name: String,
    },
    /// An ingest that nobody may be writing at the moment, by its key.
    Ingest(String),
}

impl Resource {
    /// As it is written into the database: kind, driver and name.
    pub(super) fn columns(&self) -> [&str; 3] {
        match self {
            Self::Blob(digest) => ["blob", "", digest.as_ref()],
            Self::Tree(digest) => ["tree", "", digest.as_ref()],
            Self::Snapshot { driver, name } => ["snapshot", driver, name],
            Self::Ingest(key) => ["ingest", "", key],
        }
    }

    /// Of [`columns`](Self::columns). `None` if it is of no kind that we know.
    pub(super) fn of_columns(kind: &str, driver: String, name: String) -> Option<Self> {
        Some(match kind {
            "blob" => Self::Blob(Digest::from_str(&name).ok()?),
            "tree" => Self::Tree(Digest::from_str(&name).ok()?),
            "snapshot" => Self::Snapshot { driver, name },
            "ingest" => Self::Ingest(name),
            _ => return None,
        })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "blob {digest}"),
            Self::Tree(digest) => write!(f, "tree {digest}"),
            Self::Snapshot { driver, name } => write!(f, "snapshot {driver}/{name}"),
            Self::Ingest(key) => write!(f, "ingest {key}"),
        }
    }
}
