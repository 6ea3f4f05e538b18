//! Where things are in the folder, and writing them so that they stay.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;

use super::Durability;
use crate::{Error, Result};

/// Makes an error of what the system answered.
pub(super) fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { op, path, source }
}

/// Where a blob is, or would be. Callers have checked the algorithm, so both parts are plain names.
pub(super) fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest())
}

/// Makes the folder an OCI image layout (image-spec, image-layout.md).
///
/// `oci-layout` comes last: where it is, everything else is, and is on the disk.
pub(super) fn make_layout(root: &Path, durability: Durability) -> Result<()> {
    if root.join("oci-layout").exists() && root.join("index.json").exists() {
        return [root.join("blobs/sha256"), root.join("ingest")]
            .iter()
            .try_for_each(|folder| make_folder(folder, durability));
    }
    for folder in [root.join("blobs/sha256"), root.join("ingest")] {
        make_folder(&folder, durability)?;
    }
    let index =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    sync_parents(root, durability)?;
    let _lock = lock_folder(root, File::lock)?;
    for (name, content) in [("index.json", &index[..]), ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)]
    {
        let path = root.join(name);
        if !path.exists() {
            replace(&path, &root.join(format!("{name}.new")), content, durability)?;
        }
    }
    Ok(())
}

/// Writes a file, or replaces it, so that a reader sees it whole, before or after. `temporary` is in the same folder;
/// the caller sees to it that nobody else uses it.
pub(super) fn replace(path: &Path, temporary: &Path, content: &[u8], durability: Durability) -> Result<()> {
    let write = || {
        let mut file = File::create(temporary)?;
        file.write_all(content)?;
        if durability == Durability::Safe {
            file.sync_data()?;
        }
        fs::rename(temporary, path)
    };
    write().map_err(io_error("write", path))?;
    sync_folder(path.parent().expect("a file is in a folder"), durability)
}

/// Locks a folder, or waits until it can be. Unlocked when the result is dropped.
pub(super) fn lock_folder(folder: &Path, lock: fn(&File) -> io::Result<()>) -> Result<File> {
    let file = File::open(folder).map_err(io_error("open", folder))?;
    loop {
        match lock(&file) {
            Ok(()) => return Ok(file),
            // A signal came to this thread; the wait is not over.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(io_error("lock", folder)(source)),
        }
    }
}

/// Whether two looks saw the same file, and not another one under its name.
pub(super) fn is_same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Removes a file; none there is fine.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
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

/// Makes durable what somebody else may have made just before, and may not live to make durable.
fn sync_parents(root: &Path, durability: Durability) -> Result<()> {
    let root = std::path::absolute(root).map_err(io_error("find the parents of", root))?;
    sync_folder(&root.join("blobs"), durability)?;
    for folder in root.ancestors() {
        match sync_folder(folder, durability) {
            // A folder that we may pass through but not read was there before.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            // Nor can one be synced that is on a file system without that, such as the kernel's own.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidInput => {}
            answer => answer?,
        }
    }
    Ok(())
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

/// The paths in a folder; none if it is gone, or no folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read =
        || -> io::Result<Vec<PathBuf>> { fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect() };
    match read() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        answer => answer.map_err(io_error("list", folder)),
    }
}
