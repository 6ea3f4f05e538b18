//! The folders of what is in progress.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci_spec::image::Descriptor;

use super::disk;
use crate::{Result, Status, hash};

/// Where an ingest is: keys may have any characters, their hashes have not.
pub(super) fn ingest_path(root: &Path, key: &str) -> PathBuf {
    root.join("ingest").join(hash::sha256(key.as_bytes()).digest())
}

/// The files of one ingest.
#[derive(Debug)]
pub(super) struct IngestFolder<'a>(&'a Path);

impl<'a> IngestFolder<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self(folder)
    }

    /// The bytes so far.
    pub(super) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// The key, as its owner wrote it.
    pub(super) fn key(&self) -> PathBuf {
        self.0.join("key")
    }

    /// The descriptor of what it will be.
    pub(super) fn expected(&self) -> PathBuf {
        self.0.join("expected")
    }

    /// What an earlier writer expected; `None` if there was none, or a crash tore its note.
    pub(super) fn read_expected(&self) -> Option<Descriptor> {
        serde_json::from_slice(&fs::read(self.expected()).ok()?).ok()
    }
}

/// All ingests in progress.
pub(super) fn active(root: &Path) -> Result<Vec<Status>> {
    let folders = disk::entries(&root.join("ingest"))?;
    Ok(folders.iter().filter_map(|folder| status(IngestFolder::new(folder))).collect())
}

/// How far one is; `None` if it is just beginning or ending, and has not all of its files.
pub(super) fn status(folder: IngestFolder<'_>) -> Option<Status> {
    let expected = folder.read_expected()?;
    let key = fs::read_to_string(folder.key()).ok()?;
    let started = fs::metadata(folder.key()).ok()?.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let data = fs::metadata(folder.data()).ok()?;
    Some(Status {
        key,
        expected: expected.digest().clone(),
        offset: data.len(),
        total: expected.size(),
        started,
        updated: data.modified().unwrap_or(started),
    })
}
