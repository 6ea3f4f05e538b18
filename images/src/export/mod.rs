//! Images out of a content store, into one file or folder that other tools read.
//!
//! ```text
//! names ──▶ Plan: which blobs, index.json, manifest.json ──▶ worker thread ──▶ tar archive │ folder
//!                                       provider ──blobs──────▲
//! ```
//!
//! The archive is at once an OCI image layout and what `docker load` takes. The same images give the same bytes.

mod documents;
mod folder;
mod plan;
mod tar;
mod write;

use std::{io::Write, path::Path};

use oci_spec::image::Descriptor;
use windlass_content::Provider;

use self::{folder::Folder, plan::Plan, tar::Tar};
use crate::{Error, Platform, Result, worker::Worker};

/// What an export does beyond the defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExportOptions {
    /// Exports of each image only the manifest for this platform, which takes the place of the image's index. All
    /// platforms, with their index, by default.
    pub platform: Option<Platform>,
    /// Leaves out what an index lists and the store has not, as after a pull for one platform. One platform must be there,
    /// and whatever is there must be whole. True by default.
    pub skip_missing: bool,
    /// The time of all entries of an archive, in seconds since the epoch: what `SOURCE_DATE_EPOCH` says, for instance. 0 by
    /// default.
    pub mtime: u64,
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self { platform: None, skip_missing: true, mtime: 0 }
    }
}

impl ExportOptions {
    /// Sets the only platform to export.
    pub fn platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Sets whether platforms that are not there are left out.
    pub fn skip_missing(self, skip_missing: bool) -> Self {
        Self { skip_missing, ..self }
    }

    /// Sets the time of all entries, in seconds since the epoch.
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }
}

/// Writes images, each with its name, as one uncompressed tar archive.
///
/// It is an OCI image layout: `index.json` has each name twice, whole for containerd and podman, and as its tag, which is
/// what `skopeo` asks for (`oci-archive:FILE:TAG`); where two images have one tag, the whole name is there in its place.
/// And it is an archive for `docker load`: `manifest.json` lists each image's manifest for [`platform`], or for this host,
/// unless there is none. Blobs that images share are there once. Entries are sorted, and say nothing of who wrote them or
/// when.
///
/// Blobs are verified on the way, and stream: memory does not grow with them. `writer` is written to on a thread of its
/// own, and flushed. What was written before an error is no archive. Dropping the future stops the writing soon.
///
/// `provider` must not wait for what is not there, as [`Following`](windlass_content::Following) does.
///
/// [`platform`]: ExportOptions::platform
///
/// # Errors
///
/// [`Error::Incomplete`] names the image, and what is missing of it; [`Error::NoPlatform`], [`Error::Malformed`] and
/// [`Error::Content`] if an image cannot be read, [`Error::Stream`] if the writer refuses.
pub async fn export(
    provider: &dyn Provider,
    images: &[(String, Descriptor)],
    options: &ExportOptions,
    writer: impl Write + Send + 'static,
) -> Result<()> {
    let plan = Plan::of(provider, images, options).await?;
    write::all(provider, plan.archive_entries(), Tar::new(writer, options.mtime)).await
}

/// As [`export`], but as an OCI image layout in a folder, which must be empty or not there yet.
///
/// `index.json` is written last: without it, an export that was broken off is no layout.
///
/// # Errors
///
/// As [`export`], and [`Error::Io`] if the folder cannot be made, or is not empty.
pub async fn export_layout(
    provider: &dyn Provider,
    images: &[(String, Descriptor)],
    options: &ExportOptions,
    folder: impl AsRef<Path>,
) -> Result<()> {
    let plan = Plan::of(provider, images, options).await?;
    let path = folder.as_ref().to_owned();
    let made = start("windlass-export", {
        let path = path.clone();
        move || Folder::make(path)
    })?;
    let folder =
        made.end().await.map_err(|source| Error::Io { op: "make an image layout of", path, source })?;
    write::all(provider, plan.layout_entries(), folder).await
}

/// Starts a thread.
fn start<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<Worker<T>> {
    Worker::start(name, work).map_err(|source| Error::Stream { op: "start a thread that writes", source })
}
