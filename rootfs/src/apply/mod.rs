//! Applies a layer: a tar stream onto a tree (image-spec, layer.md).
//!
//! ```text
//! tar ──archive, pax, sparse──▶ Member ──entry, attributes──▶ Meta ──tree──▶ folder ──settle──▶ layer on others
//! ```
//!
//! Nothing outside the root is touched, whatever the layer says, and whatever another process does meanwhile: folders are
//! opened one name after the other from handles that were got inside the root, the kernel follows no link, and everything is done
//! relative to such a handle.
//!
//! Whiteouts hide the layers below and nothing of their own layer, in whatever order its entries come.

mod archive;
mod attributes;
mod content;
mod entry;
mod ids;
#[cfg(feature = "erofs")]
pub mod image;
mod limits;
mod lower;
mod made;
mod pax;
mod remove;
mod rules;
mod settle;
mod sparse;
mod thread;
mod tree;
mod walk;

use std::{
    io::{self, BufRead, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;
use tar::EntryType;
use windlass_content::hash::Hasher;
use windlass_snapshot::Whiteouts;

use self::{
    archive::Archive,
    entry::{Meta, Role},
    rules::Rules,
    thread::without_umask,
    tree::Target,
};
use crate::{Error, Result};

pub(crate) use self::{archive::starts_like_tar, limits::OverLimit};
pub use self::{
    ids::{IdMap, IdRange, ParseIdRangeError},
    limits::Limits,
    settle::{Settled, settle},
};

/// How a layer is applied.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How the tree says that something below is gone. [`Whiteouts::Remove`] by default.
    pub whiteouts: Whiteouts,
    /// How much a layer may hold.
    pub limits: Limits,
    /// Whose the files are. The same numbers as in the layer by default.
    pub ids: IdMap,
    /// Leaves out, with a warning, what only root may make (devices, `security.*` attributes). An error by default.
    pub skip_privileged: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (limits, ids) = (Limits::default(), IdMap::default());
        Self { whiteouts: Whiteouts::Remove, limits, ids, skip_privileged: false }
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

    /// Sets whose the files are.
    pub fn ids(self, ids: IdMap) -> Self {
        Self { ids, ..self }
    }

    /// Sets whether what only root may make is left out.
    pub fn skip_privileged(self, skip: bool) -> Self {
        Self { skip_privileged: skip, ..self }
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
    /// How many of them were devices that only root may make, and were left out.
    pub skipped: u64,
    /// What is to be taken from the layers below. Empty with [`Whiteouts::Remove`], where they were there already.
    pub pending: Pending,
}

/// What a layer that was applied alone takes from the layers below, for [`settle`].
#[derive(Debug, Default)]
pub struct Pending {
    /// Folders that hold entries of the layer, and are not in it themselves. Parents before children.
    pub(crate) implied: Vec<PathBuf>,
    /// Hard links to files that are not in the layer: name and target, without links.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
    /// All hard links that the layer had to such files, those that something else has replaced, too: for whom it had one, and the target.
    pub(crate) targets: Vec<(PathBuf, PathBuf)>,
    /// What was taken for folders. Where a layer below has a link, the layer is to be applied again.
    pub(crate) guesses: Vec<PathBuf>,
    /// The first entry that cannot be if what was guessed is so, and why. Nothing after it was applied.
    pub(crate) refused: Option<(PathBuf, String)>,
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
            && self.targets.is_empty()
            && self.guesses.is_empty()
            && self.refused.is_none()
            && self.hidden.is_empty()
            && !self.opaque_root
            && !self.undeclared_root
    }
}

/// Applies a plain tar stream to the tree below `root`, and reads it to its end. Blocks.
///
/// It is read as it is buffered, a quarter of a MiB at a time is good. The work is done on a thread of its own, on which the
/// process's umask does not count.
///
/// # Errors
///
/// [`Error::Tar`] if the stream is no tar archive, [`Error::Entry`] and [`Error::Limit`] if it holds what is refused, [`Error::Io`]
/// if the system refuses. The tree is then half changed, and to be thrown away.
pub fn apply(tar: impl BufRead + Send, root: &OwnedFd, options: &Options) -> Result<Applied> {
    apply_with(tar, root, None, options)
}

/// Applies a layer alone, as [`apply`] does, once the layers below are there: for a layer of which [`settle`] says
/// [`Settled::Again`]. `lower` is their merged tree, and `root` a new folder.
///
/// It follows the links of the layers below. What it takes from there it leaves to [`settle`].
///
/// # Errors
///
/// As [`apply`].
pub fn apply_again(
    tar: impl BufRead + Send,
    root: &OwnedFd,
    lower: &OwnedFd,
    options: &Options,
) -> Result<Applied> {
    apply_with(tar, root, Some(lower), options)
}

fn apply_with(
    tar: impl BufRead + Send,
    root: &OwnedFd,
    lower: Option<&OwnedFd>,
    options: &Options,
) -> Result<Applied> {
    let work = |own_umask| apply_here(tar, root, lower, options, own_umask);
    let done = without_umask(work);
    done.map_err(|source| Error::Io { op: "start a thread to apply to", path: "/".into(), source })?
}

fn apply_here(
    tar: impl BufRead,
    root: &OwnedFd,
    lower: Option<&OwnedFd>,
    options: &Options,
    own_umask: bool,
) -> Result<Applied> {
    let removes = options.whiteouts == Whiteouts::Remove
        && !tree::is_empty(root).map_err(|source| Error::Io { op: "list", path: "/".into(), source })?;
    let mut target = Target::new(root, lower, Rules::new(options, removes, own_umask))?;
    let limits = &options.limits;
    let mut reader = HashingReader::new(tar, limits);
    let mut entries = 0;
    let mut archive = Archive::new(&mut reader, limits);
    let mut refused = None;
    while let Some(member) = archive.next()? {
        entries += 1;
        let meta = Meta::of(member, limits)?;
        if entries > limits.entries {
            return Err(Error::Limit { entry: meta.path, what: "entries", limit: limits.entries });
        }
        if refused.is_none() {
            match apply_entry(&mut target, &meta, &mut archive) {
                Err(Error::Entry { entry, reason }) if target.guesses() => refused = Some((entry, reason)),
                applied => applied?,
            }
        }
    }
    // The DiffID is of all bytes, those after the archive's end included.
    archive.read_to_the_end()?;
    let skipped = target.skipped;
    let pending = Pending { refused, ..target.finish()? };
    Ok(Applied { diff_id: reader.hasher.finish(), entries, skipped, pending })
}

fn apply_entry<R: BufRead>(target: &mut Target<'_>, meta: &Meta, data: &mut Archive<R>) -> Result<()> {
    match &meta.role {
        Role::Hides(path) => target.hide(path),
        Role::HidesAllIn(folder) => target.hide_all_in(folder),
        Role::Leftover => Ok(()),
        Role::Entry if !meta.path.as_os_str().is_empty() => target.put(meta, data),
        // The root has an owner, a mode and times; it is never anything else than a folder.
        Role::Entry if meta.kind == EntryType::Directory => target.root_folder(meta),
        Role::Entry => Err(refused(&meta.path, "the root is a folder, and stays one")),
    }
}

pub(crate) fn refused(entry: &Path, reason: impl Into<String>) -> Error {
    Error::Entry { entry: entry.to_owned(), reason: reason.into() }
}

/// Hashes what passes through: each buffer once, while the processor has it near.
struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    /// How much of the buffer is hashed, and not consumed.
    hashed: usize,
    read: u64,
    limit: u64,
    /// Where everything is written, too.
    #[cfg(feature = "erofs")]
    copy: Option<image::Copy>,
}

impl<R> HashingReader<R> {
    fn new(inner: R, limits: &Limits) -> Self {
        Self {
            inner,
            hasher: Hasher::sha256(),
            hashed: 0,
            read: 0,
            limit: limits.total,
            #[cfg(feature = "erofs")]
            copy: None,
        }
    }

    /// How much was consumed.
    #[cfg(feature = "erofs")]
    fn position(&self) -> u64 {
        self.read - self.hashed as u64
    }
}

impl<R: BufRead> BufRead for HashingReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let there = self.inner.fill_buf()?;
        if let Some(new) = there.get(self.hashed..).filter(|new| !new.is_empty()) {
            self.read += new.len() as u64;
            if self.read > self.limit {
                return Err(OverLimit { what: "bytes of the plain archive", limit: self.limit }.into());
            }
            self.hasher.update(new);
            #[cfg(feature = "erofs")]
            if let Some(copy) = &mut self.copy {
                copy.append(new)?;
            }
            self.hashed = there.len();
        }
        Ok(there)
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.hashed -= amount;
    }
}

impl<R: BufRead> Read for HashingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let read = there.len().min(buf.len());
        buf[..read].copy_from_slice(&there[..read]);
        self.consume(read);
        Ok(read)
    }
}
