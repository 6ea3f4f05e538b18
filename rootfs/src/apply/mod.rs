//! Applies a layer: a tar stream onto a tree (image-spec, layer.md).
//!
//! Nothing outside the root is touched, whatever the layer says: the folder of each entry is opened with `openat2` and
//! `RESOLVE_IN_ROOT`, and everything else is done relative to that handle, without following the last name.

mod archive;
mod entry;
#[cfg(feature = "erofs")]
pub mod image;
mod settle;
mod sparse;
mod tree;

use std::{
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;
use tar::EntryType;
use windlass_content::hash::Hasher;
use windlass_snapshot::Whiteouts;

use self::{archive::Archive, entry::Meta, tree::Target};
use crate::{Error, Result};

pub use settle::settle;

/// How a layer is applied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How the tree says that something below is gone. [`Whiteouts::Remove`] by default.
    pub whiteouts: Whiteouts,
    /// How much a layer may hold.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Self {
        Self { whiteouts: Whiteouts::Remove, limits: Limits::default() }
    }
}

impl Options {
    /// Sets how the tree says that something below is gone.
    pub fn whiteouts(self, whiteouts: Whiteouts) -> Self {
        Self { whiteouts, ..self }
    }

    /// Sets how much a layer may hold.
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }
}

/// How much a layer may hold before it is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries. 5,000,000 by default.
    pub entries: u64,
    /// Folders above each other, the entry itself counted. 512 by default.
    pub depth: u64,
    /// Bytes of a file, its holes counted. 1 TiB by default.
    pub file: u64,
    /// Bytes of the headers of an entry beside its own: PAX records, long names, the map of a sparse file. 4 MiB by default.
    pub headers: u64,
    /// Bytes of a path. 4,095 by default: what the kernel takes.
    pub path: u64,
    /// Bytes of all extended attributes of an entry together. 1 MiB by default.
    pub xattrs: u64,
    /// Bytes of the plain archive. 1 TiB by default.
    pub total: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 5_000_000,
            depth: 512,
            file: 1 << 40,
            headers: 4 << 20,
            path: 4095,
            xattrs: 1 << 20,
            total: 1 << 40,
        }
    }
}

/// A layer that was applied.
#[derive(Debug)]
#[non_exhaustive]
pub struct Applied {
    /// The digest of all plain bytes of the archive.
    pub diff_id: Digest,
    /// How many entries it had.
    pub entries: u64,
    /// What is to be taken from the layers below. Empty with [`Whiteouts::Remove`], where they were there already.
    pub pending: Pending,
}

/// What a layer that was applied alone takes from the layers below, for [`settle`].
#[derive(Debug, Default)]
pub struct Pending {
    /// Folders that hold entries of the layer, and are not in it themselves. Parents before children.
    pub(crate) implied: Vec<PathBuf>,
    /// Hard links to files that are not in the layer: name and target.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    /// Whiteouts that were written.
    pub(crate) hidden: Vec<PathBuf>,
    /// The attribute that makes a folder opaque.
    pub(crate) opaque: Option<&'static str>,
    /// Everything below is hidden.
    pub(crate) opaque_root: bool,
    /// The layer says nothing of the root itself.
    pub(crate) undeclared_root: bool,
}

impl Pending {
    /// Whether nothing is to be taken.
    pub fn is_empty(&self) -> bool {
        self.implied.is_empty()
            && self.links.is_empty()
            && self.hidden.is_empty()
            && !self.opaque_root
            && !self.undeclared_root
    }
}

/// Applies a plain tar stream to the tree below `root`, and reads it to its end. Blocks.
///
/// # Errors
///
/// [`Error::Tar`] if the stream is no tar archive, [`Error::Entry`] and [`Error::Limit`] if it holds what is refused, [`Error::Io`]
/// if the system refuses. The tree is then half changed, and to be thrown away.
pub fn apply(tar: impl Read, root: &OwnedFd, options: &Options) -> Result<Applied> {
    let mut reader = HashingReader { inner: tar, hasher: Hasher::sha256(), left: options.limits.total };
    let mut target = Target::new(root, options.whiteouts);
    let mut entries = 0;
    let mut archive = Archive::new(&mut reader, &options.limits);
    while let Some(member) = archive.next()? {
        entries += 1;
        let meta = Meta::of(member, &options.limits)?;
        if entries > options.limits.entries {
            let limit = options.limits.entries;
            return Err(Error::Limit { entry: meta.path, what: "entries", limit });
        }
        apply_entry(&mut target, meta, &mut archive)?;
    }
    // The DiffID is of all bytes, those after the archive's end included.
    io::copy(&mut reader, &mut io::sink()).map_err(tar_error)?;
    let pending = target.finish()?;
    Ok(Applied { diff_id: reader.hasher.finish(), entries, pending })
}

fn apply_entry(target: &mut Target<'_>, meta: Meta, data: &mut impl Read) -> Result<()> {
    let Some(name) = meta.path.file_name() else {
        // The root has an owner, a mode and times; it is never anything else than a folder.
        return match meta.kind {
            EntryType::Directory => target.root_folder(&meta),
            _ => Err(refused(&meta.path, "the root is a folder, and stays one")),
        };
    };
    let name = name.as_encoded_bytes();
    let Some(hidden) = name.strip_prefix(b".wh.") else {
        return target.put(&meta, data);
    };
    let folder = meta.path.parent().unwrap_or(Path::new(""));
    match hidden {
        b".wh..opq" => target.hide_all_in(folder),
        // What AUFS kept for itself.
        other if other.starts_with(b".wh.") => Ok(()),
        b"" | b"." | b".." => Err(refused(&meta.path, "it hides nothing that has a name")),
        other => target.hide(&folder.join(entry::os_str(other))),
    }
}

pub(crate) fn refused(entry: &Path, reason: impl Into<String>) -> Error {
    Error::Entry { entry: entry.to_owned(), reason: reason.into() }
}

pub(crate) fn tar_error(source: io::Error) -> Error {
    Error::Tar { source }
}

/// Hashes what passes through.
struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    left: u64,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other("it is larger than the limit for all plain bytes of a layer"))?;
        self.hasher.update(&buf[..read]);
        Ok(read)
    }
}
