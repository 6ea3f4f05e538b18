use oci_spec::image::Digest;
use serde::Serialize;

/// What a collection removed; what it would remove, if it was a dry run. It takes memory for each of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Whether nothing was really removed.
    pub dry_run: bool,
    /// Names that the policy dropped, in order.
    pub images: Vec<String>,
    /// Leases that died with their process, or had expired.
    pub leases: Vec<String>,
    /// Snapshots, children before their parents.
    pub snapshots: Vec<SnapshotName>,
    /// Blobs.
    pub blobs: Vec<Blob>,
    /// Ingests that were left unfinished.
    pub ingests: Vec<Ingest>,
    /// How much disk space all of them took, in bytes.
    pub bytes: u64,
}

/// A blob that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size: u64,
}

/// A snapshot that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotName {
    /// The snapshotter it belonged to.
    pub driver: String,
    /// Its name.
    pub name: String,
    /// What it took, in bytes, as its snapshotter counts.
    pub size: u64,
}

/// An unfinished ingest that was discarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ingest {
    /// Its key.
    pub key: String,
    /// How much of it was there, in bytes.
    pub size: u64,
}
