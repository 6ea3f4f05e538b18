//! Blobs get their names, and lose them, under a lock of the folder that holds the names.
//!
//! The lock is a `flock` of `blobs/<algorithm>`, held for a moment. Commits without labels share it: a rename needs no
//! more. Whoever looks first and acts then (labels, deletion, quarantine) has it alone.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;

use super::{
    Inner, committed,
    disk::{self, io_error},
    sidecar,
};
use crate::{Error, Info, Labels, Result};

/// Gives a verified, synced file its name, and adds labels to the blob.
pub(super) fn publish(store: &Inner, data: &Path, digest: &Digest, labels: &Labels) -> Result<()> {
    let (root, durability) = (&store.root, store.durability);
    let blob = disk::blob_path(root, digest);
    let folder = blob.parent().expect("a blob is in a folder");
    disk::make_folder(folder, durability)?;
    {
        let _lock =
            disk::lock_folder(folder, if labels.is_empty() { File::lock_shared } else { File::lock })?;
        // Labels without a blob are what a crash has left: not this blob's.
        let committed = committed::is_file(&blob);
        if !labels.is_empty() {
            let mut all = if committed { sidecar::read(root, digest)? } else { Labels::new() };
            all.extend(labels.clone());
            sidecar::write(root, digest, &all, durability)?;
        } else if !committed {
            disk::remove_file(&sidecar::path(root, digest))?;
        }
        if let Err(error) = fs::rename(data, &blob) {
            if error.kind() != io::ErrorKind::IsADirectory {
                return Err(io_error("give its name to", &blob)(error));
            }
            set_aside(store, digest)?;
            fs::rename(data, &blob).map_err(io_error("give its name to", &blob))?;
        }
    }
    disk::sync_folder(folder, durability)
}

/// Takes a blob's name away, then its labels.
pub(super) fn remove(store: &Inner, digest: &Digest) -> Result<()> {
    let not_found = || Error::NotFound { digest: digest.clone() };
    let blob = disk::blob_path(&store.root, digest);
    let _lock = lock(&blob)?.ok_or_else(not_found)?;
    match fs::remove_file(&blob) {
        Ok(()) => remove_labels(store, digest),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found()),
        Err(source) => Err(io_error("delete", &blob)(source)),
    }
}

/// Replaces the labels of a blob.
pub(super) fn update(store: &Inner, digest: &Digest, labels: &Labels) -> Result<Info> {
    let not_found = || Error::NotFound { digest: digest.clone() };
    let _lock = lock(&disk::blob_path(&store.root, digest))?.ok_or_else(not_found)?;
    let info = committed::info(&store.root, digest)?.ok_or_else(not_found)?;
    sidecar::write(&store.root, digest, labels, store.durability)?;
    Ok(Info { labels: labels.clone(), ..info })
}

/// Moves what is under a blob's name out of the way, to the returned path. `None`, and nothing is moved, if that is no
/// longer what `seen` describes.
pub(super) fn quarantine(store: &Inner, digest: &Digest, seen: &Metadata) -> Result<Option<PathBuf>> {
    let blob = disk::blob_path(&store.root, digest);
    let Some(_lock) = lock(&blob)? else { return Ok(None) };
    match fs::symlink_metadata(&blob) {
        Ok(now) if disk::is_same(&now, seen) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", &blob)(source)),
    }
    let aside = set_aside(store, digest)?;
    remove_labels(store, digest)?;
    Ok(Some(aside))
}

/// Removes the labels that a crash has left without their blob.
pub(super) fn sweep(store: &Inner) -> Result<()> {
    for folder in disk::entries(&store.root.join("labels"))? {
        let Some(algorithm) = folder.file_name() else { continue };
        let blobs = store.root.join("blobs").join(algorithm);
        for path in disk::entries(&folder)? {
            let Some(name) = path.file_name() else { continue };
            // Nobody is kept waiting for the whole sweep.
            let Some(_lock) = lock(&blobs.join(name))? else { continue };
            if fs::symlink_metadata(blobs.join(name))
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            {
                disk::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// The lock of a blob's name, alone; `None` if there is not even a folder for it.
fn lock(blob: &Path) -> Result<Option<File>> {
    match disk::lock_folder(blob.parent().expect("a blob is in a folder"), File::lock) {
        Ok(lock) => Ok(Some(lock)),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the labels of a blob that is gone.
fn remove_labels(store: &Inner, digest: &Digest) -> Result<()> {
    let labels = sidecar::path(&store.root, digest);
    if !labels.exists() {
        return Ok(());
    }
    // A power cut must not bring the blob back without its labels.
    disk::sync_folder(
        disk::blob_path(&store.root, digest).parent().expect("a blob is in a folder"),
        store.durability,
    )?;
    disk::remove_file(&labels)
}

/// Moves what is under a blob's name to the quarantine, in place of what is there under that name.
fn set_aside(store: &Inner, digest: &Digest) -> Result<PathBuf> {
    let blob = disk::blob_path(&store.root, digest);
    let quarantine = store.root.join("quarantine");
    disk::make_folder(&quarantine, store.durability)?;
    let aside = quarantine.join(format!("{}-{}", digest.algorithm(), digest.digest()));
    match fs::symlink_metadata(&aside) {
        Ok(metadata) if metadata.is_dir() => disk::remove_folder(&aside)?,
        _ => disk::remove_file(&aside)?,
    }
    fs::rename(&blob, &aside).map_err(io_error("move to the quarantine", &blob))?;
    disk::sync_folder(&quarantine, store.durability)?;
    disk::sync_folder(blob.parent().expect("a blob is in a folder"), store.durability)?;
    Ok(aside)
}
