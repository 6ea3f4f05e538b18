//! Where things are in the folder, and reading them back.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use oci_spec::image::{Descriptor, Digest};

use super::Durability;
use crate::{
    Error, Info, Result, Status,
    hash::{self, Hasher},
};

/// Makes an error of what the system answered.
pub(super) fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { op, path, source }
}

/// Where a blob is, or would be. Callers have checked the algorithm, so both parts are plain names.
pub(super) fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
}

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

/// Makes the folder an OCI image layout (image-spec, image-layout.md).
pub(super) fn make_layout(root: &Path, durability: Durability) -> Result<()> {
    for folder in [root.join("blobs/sha256"), root.join("ingest")] {
        make_folder(&folder, durability)?;
    }
    let index =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    for (name, content) in [("oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..]), ("index.json", index)]
    {
        let path = root.join(name);
        if !path.exists() {
            write_new(&path, content, durability)?;
        }
    }
    Ok(())
}

/// Writes a file so that it is whole or not there. Somebody else's that was first stays as it is.
fn write_new(path: &Path, content: &[u8], durability: Durability) -> Result<()> {
    // Others, in this process too, may be doing the same.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("tmp-{}-{count}", std::process::id()));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        if durability == Durability::Safe {
            file.sync_data()?;
        }
        // Unlike a rename, a link never replaces what is there.
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            answer => answer,
        }
    };
    let written = write().map_err(io_error("write", path));
    let removed = match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &temporary)(error)),
        _ => Ok(()),
    };
    written.and(removed)?;
    sync_folder(path.parent().expect("a file is in a folder"), durability)
}

/// Makes a folder and its parents, each of them durable in the one above it.
pub(super) fn make_folder(folder: &Path, durability: Durability) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent, durability)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(io_error("create", folder)(source)),
    }
    match folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_folder(parent, durability),
        None => Ok(()),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path, durability: Durability) -> Result<()> {
    match durability {
        Durability::Safe => {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
        }
        Durability::Fast => Ok(()),
    }
}

/// Removes a folder; none there is fine.
pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// What a committed blob's file says of it.
pub(super) fn info(digest: Digest, metadata: &Metadata, path: &Path) -> Result<Info> {
    let committed = metadata.modified().map_err(io_error("read the time of", path))?;
    Ok(Info { digest, size: metadata.len(), committed })
}

/// All committed blobs. A file that is no blob's is not ours, and passed over.
pub(super) fn list(root: &Path) -> Result<Vec<Info>> {
    let mut infos = Vec::new();
    for algorithm in entries(&root.join("blobs"))? {
        for path in entries(&algorithm)? {
            let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(digest) = format!("{}:{}", name(&algorithm), name(&path)).parse::<Digest>() else {
                continue;
            };
            if Hasher::new(&digest).is_err() {
                continue;
            }
            // It may be deleted at this moment.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            infos.push(info(digest, &metadata, &path)?);
        }
    }
    Ok(infos)
}

/// All ingests in progress.
pub(super) fn active(root: &Path) -> Result<Vec<Status>> {
    let folders = entries(&root.join("ingest"))?;
    // An ingest that is just beginning or ending has not all of its files.
    Ok(folders.iter().filter_map(|folder| status(IngestFolder::new(folder))).collect())
}

fn status(folder: IngestFolder<'_>) -> Option<Status> {
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

/// The paths in a folder; none if it is gone, or no folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read =
        || -> io::Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    match read() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        answer => answer.map_err(io_error("list", folder)),
    }
}
