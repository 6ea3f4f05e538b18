//! Images out of an archive, into a content store, while the archive comes.
//!
//! ```text
//! bytes ──▶ worker thread: tar entries
//!             ├── blobs/ALGORITHM/HEX ──channel──▶ store        verified as it comes
//!             ├── oci-layout, index.json, manifest.json         in memory
//!             └── other files ──▶ a temporary file ──▶ store    Docker's layers, whose digests are known at their end
//! ```
//!
//! Archives are hostile. No entry becomes a file of its own, what is kept in memory is limited, and nothing is returned
//! that is not whole.

mod docker;
mod found;
mod ingest;
mod scan;
mod spool;

use std::{collections::HashMap, io::Read, path::PathBuf};

use oci_spec::image::Descriptor;
use tokio::sync::mpsc;
use windlass_content::{Ingester, Provider};

use self::scan::{Scanned, scan};
use crate::{
    Error, Platform, Result,
    archive::{
        Named, choose_names,
        layout::{self, bare},
        recorded_names,
    },
    whole::{manifest_for, whole},
    worker::Worker,
};

/// How many chunks wait for the store.
const AHEAD: usize = 4;

/// What an import does beyond the defaults.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    /// What images are called that have only a tag, or no name: `localhost/BASE:TAG`. For a file this is its name, of which
    /// `.tar` is left out. Without a base, a tag is given to `localhost/import`, and what has no name is left without one.
    pub base: Option<String>,
    /// The names, tags or digests of the images that are wanted. All by default.
    pub names: Vec<String>,
    /// The platform of which each image must be whole; the others may be or not. By default whatever the archive has of an
    /// image must be whole, and it must have at least one platform.
    pub platform: Option<Platform>,
    /// The folder for temporary files, as large as the layers of a Docker archive together. The system's by default.
    pub temporary: Option<PathBuf>,
}

impl ImportOptions {
    /// Sets what images without a whole name are called after.
    pub fn base(self, base: impl Into<String>) -> Self {
        Self { base: Some(base.into()), ..self }
    }

    /// Sets which images are wanted.
    pub fn names(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets the platform that must be whole.
    pub fn platform(self, platform: Platform) -> Self {
        Self { platform: Some(platform), ..self }
    }

    /// Sets the folder for temporary files.
    pub fn temporary(self, temporary: impl Into<PathBuf>) -> Self {
        Self { temporary: Some(temporary.into()), ..self }
    }
}

/// An image whose content is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Imported {
    /// The name to record it under. `None` if the archive has none for it, and the options no base.
    pub name: Option<String>,
    /// What the name stands for: a manifest or an index.
    pub target: Descriptor,
    /// The manifests of which everything is there, in the order of their index.
    pub manifests: Vec<Descriptor>,
}

/// Reads an uncompressed tar archive to its end, and takes its content into a store.
///
/// It may be an OCI image layout, an archive of `docker save`, or both; then the layout counts, unless its manifests are not
/// there. Content that the store has already need not be in the archive. An image is given once for each of its names; where
/// two images have the same, recording them in this order leaves the last, as `docker load` does. Nothing is recorded here:
/// until the caller does so, the content belongs to no image. Everything in an archive is taken in, also what is not wanted.
///
/// `archive` is read on a thread of its own, which may stay in a last read when the future is dropped. What came is kept as
/// after a crash, to be resumed.
///
/// # Errors
///
/// [`Error::Archive`] if it is compressed, damaged, none at all, or has more entries, longer names or larger documents than
/// any image needs; [`Error::Incomplete`], [`Error::NoPlatform`], [`Error::NotInArchive`]; [`Error::Content`] if the store
/// refuses, above all because a blob is not what its name says; [`Error::Stream`] if reading fails. Blobs that were
/// committed before stay in the store.
pub async fn import<S: Provider + Ingester>(
    store: &S,
    archive: impl Read + Send + 'static,
    options: &ImportOptions,
) -> Result<Vec<Imported>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let temporary = options.temporary.clone();
    let scanning = Worker::start("windlass-import", move || scan(archive, temporary, &sender))
        .map_err(|source| Error::Stream { op: "start a thread that reads", source })?;
    ingest::arriving(store, receiver).await?;
    let scanned = scanning.end().await?;

    let saved = scanned.saved()?;
    let laid_out = match scanned.roots()? {
        Some(roots) if !roots.is_empty() || saved.is_empty() => {
            let names = layout::names(&roots);
            finish(store, Images::Roots(&roots), names, options).await
        }
        _ => Err(Error::Archive { reason: scanned.what_it_is_not() }),
    };
    match laid_out {
        // Docker's archives of one platform may have an index whose manifests are elsewhere.
        Err(Error::Incomplete { .. } | Error::Archive { .. }) if !saved.is_empty() => {
            let names = saved.iter().enumerate().flat_map(|(image, saved)| saved.names(image)).collect();
            finish(store, Images::Saved(&saved, &scanned), names, options).await
        }
        answer => answer,
    }
}

/// Where the images of an archive are.
enum Images<'a> {
    Roots(&'a [Descriptor]),
    Saved(&'a [crate::archive::docker::Saved], &'a Scanned),
}

/// Checks the images that are wanted, and gives them their names.
async fn finish<S: Provider + Ingester>(
    store: &S,
    images: Images<'_>,
    names: Vec<Named>,
    options: &ImportOptions,
) -> Result<Vec<Imported>> {
    let chosen = choose_names(&names, &options.names).map_err(|name| not_there(name, &names))?;
    if chosen.is_empty() {
        return Err(Error::Archive { reason: "it has no images".into() });
    }
    let mut targets = HashMap::new();
    for name in &chosen {
        if targets.contains_key(&name.image) {
            continue;
        }
        let target = match images {
            Images::Roots(roots) => bare(&roots[name.image]),
            Images::Saved(saved, scanned) => docker::make(store, &saved[name.image], scanned).await?,
        };
        let manifests = check(store, &name.shown(), &target, options.platform.as_ref()).await?;
        targets.insert(name.image, (target, manifests));
    }
    let pairs: Vec<_> = chosen.iter().map(|name| (*name, targets[&name.image].0.digest())).collect();
    let recorded = recorded_names(&pairs, options.base.as_deref());
    let imported = recorded.into_iter().zip(&chosen).map(|(recorded, name)| {
        let (target, manifests) = targets[&name.image].clone();
        Imported { name: recorded, target, manifests }
    });
    Ok(imported.collect())
}

/// The manifests of an image of which everything is there: the best one for `platform`, or all that are there, of which
/// there must be one. `name` is for errors.
///
/// # Errors
///
/// [`Error::Incomplete`], [`Error::NoPlatform`], [`Error::Malformed`], [`Error::Content`].
pub async fn check(
    provider: &dyn Provider,
    name: &str,
    target: &Descriptor,
    platform: Option<&Platform>,
) -> Result<Vec<Descriptor>> {
    let whole = match platform {
        None => whole(provider, name, target, true).await?,
        Some(platform) => {
            let manifest = manifest_for(provider, name, target, platform).await?;
            whole(provider, name, &manifest, false).await?
        }
    };
    Ok(whole.manifests)
}

/// The most names in a message.
const SHOWN: usize = 20;

fn not_there(name: &str, names: &[Named]) -> Error {
    let mut shown: Vec<_> = names.iter().take(SHOWN).map(Named::shown).collect();
    if names.len() > SHOWN {
        shown.push(format!("{} more", names.len() - SHOWN));
    }
    let available = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    Error::NotInArchive { name: name.to_owned(), available }
}
