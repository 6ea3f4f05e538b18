//! The labels of a blob, in a file beside the layout, so that `blobs` has nothing but blobs.
//!
//! A file of labels is written before its blob gets its name, and removed after the blob has lost it. Whoever writes
//! or removes one holds the lock of the blob's [`names`](super::names).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;

use super::{
    Durability,
    disk::{self, io_error},
};
use crate::{Labels, Result};

/// Where the labels of a blob are, if it has any.
pub(super) fn path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("labels").join(digest.algorithm().as_ref()).join(digest.digest())
}

/// The labels of a blob. A file that is torn, which only [`Durability::Fast`] allows, has none.
pub(super) fn read(root: &Path, digest: &Digest) -> Result<Labels> {
    let path = path(root, digest);
    match fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Labels::new()),
        Err(source) => Err(io_error("read", &path)(source)),
    }
}

/// Replaces the labels of a blob.
pub(super) fn write(root: &Path, digest: &Digest, labels: &Labels, durability: Durability) -> Result<()> {
    let path = path(root, digest);
    if labels.is_empty() {
        return disk::remove_file(&path);
    }
    let folder = path.parent().expect("a file of labels is in a folder");
    disk::make_folder(folder, durability)?;
    let text = serde_json::to_vec(labels).expect("labels can always be serialised");
    // One name is enough under the lock, and no crash can leave more than one such file behind.
    disk::replace(&path, &folder.join("new"), &text, durability)
}
