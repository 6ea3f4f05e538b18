//! Writes a layer: what a tree has changed on top of another, as a tar stream (image-spec, layer.md).
//!
//! ```text
//! upper tree ─┐            ┌─▶ SHA-256 (DiffID)
//!             ├─▶ tar ─────┤
//! lower tree ─┘            └─▶ gzip | zstd | nothing ─▶ SHA-256 (digest) ─▶ out
//! ```
//!
//! The inverse of [`apply`](crate::apply): applying the layer to the lower tree gives the upper one. The same trees give the same
//! bytes: entries are sorted, what is gone comes before what is there, and nothing is written that is not in the trees (no names
//! of users, no access times). Of the attributes, those of overlayfs, all other `trusted.` ones and the SELinux label stay behind.
//!
//! No link is followed, and however deep the trees are, only a few folders are open at once.

mod archive;
mod content;
mod links;
mod listing;
mod node;
mod output;
mod snapshot;
mod track;
mod walk;

use std::{
    ffi::CStr,
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::SystemTime,
};

use oci_spec::image::Digest;
use rustix::{fs::Timespec, io::Errno};
use windlass_snapshot::Whiteouts;

use self::{
    archive::Archive,
    output::{Digests, Output},
    walk::Walk,
};
use crate::{Error, Result, compression::Compression};

pub use snapshot::snapshot;

/// How a layer is written.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How the upper tree says that something below is gone. With [`Whiteouts::Remove`], the default, it is a whole tree: what is
    /// not in it is gone, and files are compared. With the others it is the upper folder of an overlay mount, and everything in
    /// it is a change. [`snapshot()`] knows this itself.
    pub whiteouts: Whiteouts,
    /// How the layer is compressed. [`Compression::Gzip`] by default.
    pub compression: Compression,
    /// Later times are written as this one (`SOURCE_DATE_EPOCH`). None by default.
    pub latest: Option<SystemTime>,
    /// Whether files of the same size, time and attributes are the same without being read. False by default.
    pub trust_times: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            whiteouts: Whiteouts::Remove,
            compression: Compression::Gzip,
            latest: None,
            trust_times: false,
        }
    }
}

impl Options {
    /// Sets how the upper tree says that something below is gone.
    pub fn whiteouts(self, whiteouts: Whiteouts) -> Self {
        Self { whiteouts, ..self }
    }

    /// Sets how the layer is compressed.
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Sets a time after which nothing was changed, as far as the layer says.
    pub fn latest(self, latest: SystemTime) -> Self {
        Self { latest: Some(latest), ..self }
    }

    /// Sets whether files of the same size, time and attributes are the same without being read.
    pub fn trust_times(self, trust_times: bool) -> Self {
        Self { trust_times, ..self }
    }

    fn latest_timespec(&self) -> Option<Timespec> {
        let latest = self.latest?;
        Some(match latest.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
            // Nothing is older than the epoch then; whole seconds do.
            Err(before) => {
                let seconds = i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX);
                Timespec { tv_sec: -seconds, tv_nsec: 0 }
            }
        })
    }
}

/// A layer that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Diffed {
    /// The digest of all plain bytes of the archive.
    pub diff_id: Digest,
    /// The digest of the bytes that were written, compressed.
    pub digest: Digest,
    /// How many bytes were written.
    pub size: u64,
    /// How many entries the archive has. None if nothing has changed.
    pub entries: u64,
    /// The sockets, which tar cannot hold. They are left out.
    pub skipped: Vec<PathBuf>,
}

/// Writes what `upper` has changed on top of `lower`, as a compressed layer. Blocks.
///
/// Without a lower tree, everything in the upper one is new; an overlay's upper folder may still hide what is below it, unseen.
///
/// - Folders that hold a change are written, too, so that nobody has to guess what they are.
/// - Of an overlay's upper folder every file is written, also one that looks as it does below.
/// - Of whole trees, files are compared, and read for it. Of a file with several names all are written if one differs or their
///   number does, so that they are one file again.
/// - Files with holes keep them.
///
/// # Errors
///
/// [`Error::Entry`] if something in the tree cannot be in a layer, above all a name that begins with `.wh.`, or if overlayfs was
/// mounted with `redirect_dir`, `metacopy` or `index`; [`Error::Changed`] if somebody changes the tree meanwhile; [`Error::Io`] if
/// a tree cannot be read, or `out` refuses. What was written until then is no layer.
pub fn diff(upper: &OwnedFd, lower: Option<&OwnedFd>, out: impl Write, options: &Options) -> Result<Diffed> {
    let output = Output::new(out, options.compression).map_err(refused_by_output)?;
    let (archive, skipped) = Walk::new(upper, lower, Archive::new(output), options)?.run()?;
    let entries = archive.entries;
    let output = archive.finish().map_err(refused_by_output)?;
    let Digests { diff_id, digest, size } = output.finish().map_err(refused_by_output)?;
    Ok(Diffed { diff_id, digest, size, entries, skipped })
}

fn joined(folder: &[u8], name: &CStr) -> Vec<u8> {
    match folder {
        [] => name.to_bytes().to_vec(),
        _ => [folder, b"/", name.to_bytes()].concat(),
    }
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io { op, path: path.to_owned(), source: errno.into() }
}

fn changed(path: &Path) -> Error {
    Error::Changed { path: path.to_owned() }
}

fn refused_by_output(source: io::Error) -> Error {
    Error::Io { op: "write", path: "the layer".into(), source }
}
