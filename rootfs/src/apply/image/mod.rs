//! Turns a layer into an EROFS image, in one pass: a tar stream in, one file out; or two, the tar itself and an index of it.
//!
//! What is in the image is what [`apply`](super::apply) would make of the layer, entry for entry, with the same limits.

mod acl;
mod applier;
mod target;
mod walk;

use std::{
    fs::File,
    io::{self, BufRead},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci_spec::image::Digest;
use windlass_snapshot::{
    Supposed, Whiteouts,
    erofs::{Image, TarFile, Writer},
};

pub use self::applier::ImageApplier;
use self::target::Target;
use super::{Archive, HashingReader, Limits, Meta};
use crate::{Error, Result};

/// How a layer becomes an image.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// How the image says that something below is gone. [`Whiteouts::Remove`] by default: nothing is below, and it says nothing.
    pub whiteouts: Whiteouts,
    /// Whether the image says, by attributes that only windlass knows, what it takes from the layers below. The snapshotter
    /// `Erofs` looks it up there at commit. Without, such a folder is root's, of mode 0755, and such a hard link is refused. Not
    /// by default.
    pub marks: bool,
    /// How much a layer may hold.
    pub limits: Limits,
    /// What tells the image from others. By default, the first half of the digest of the plain bytes: the same tar gives the
    /// same image.
    pub uuid: Option<[u8; 16]>,
    /// When the image was made, in seconds since the epoch. 0 by default.
    pub time: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { whiteouts: Whiteouts::Remove, marks: false, limits: Limits::default(), uuid: None, time: 0 }
    }
}

impl Options {
    /// Sets how the image says that something below is gone.
    pub fn whiteouts(self, whiteouts: Whiteouts) -> Self {
        Self { whiteouts, ..self }
    }

    /// Sets whether the image says what it takes from the layers below.
    pub fn marks(self, marks: bool) -> Self {
        Self { marks, ..self }
    }

    /// Sets how much a layer may hold.
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Sets what tells the image from others.
    pub fn uuid(self, uuid: [u8; 16]) -> Self {
        Self { uuid: Some(uuid), ..self }
    }

    /// Sets when the image was made, in seconds since the epoch.
    pub fn time(self, time: u64) -> Self {
        Self { time, ..self }
    }
}

/// A layer that became an image.
#[derive(Debug)]
#[non_exhaustive]
pub struct Converted {
    /// The digest of all plain bytes of the archive.
    pub diff_id: Digest,
    /// How many entries it had.
    pub entries: u64,
    /// What the layer was taken to mean, for [`Commit::supposing`](windlass_snapshot::Commit::supposing). Empty with [`Whiteouts::Remove`].
    pub supposed: Supposed,
    /// The image.
    pub image: Image,
}

/// Where an image is written.
#[derive(Debug)]
pub struct Files {
    /// The image. It is emptied first.
    pub image: File,
    /// Where the plain tar goes, byte for byte, if the image is to be an index of it. It is emptied first.
    pub tar: Option<File>,
}

impl From<File> for Files {
    fn from(image: File) -> Self {
        Self { image, tar: None }
    }
}

/// Turns a plain tar stream into an image, and reads the stream to its end. Blocks. Nothing is synced.
///
/// # Errors
///
/// [`Error::Tar`] if the stream is no tar archive, [`Error::Entry`] and [`Error::Limit`] if it holds what is refused, [`Error::Io`]
/// if the system refuses. The file is then no image.
pub fn convert(tar: impl BufRead, files: impl Into<Files>, options: &Options) -> Result<Converted> {
    convert_with(tar, files.into(), None, options)
}

/// As [`convert`], once the layers below are there: for a layer of which a commit has said
/// [`LinkBelow`](windlass_snapshot::Error::LinkBelow). `lower` is their merged tree.
///
/// It follows the links of the layers below. What it takes from there it leaves to the commit.
///
/// # Errors
///
/// As [`convert`].
pub fn convert_again(
    tar: impl BufRead,
    files: impl Into<Files>,
    lower: &OwnedFd,
    options: &Options,
) -> Result<Converted> {
    convert_with(tar, files.into(), Some(lower), options)
}

fn convert_with(
    tar: impl BufRead,
    files: Files,
    lower: Option<&OwnedFd>,
    options: &Options,
) -> Result<Converted> {
    let mut reader = HashingReader::new(tar, &options.limits);
    reader.copy = files.tar.map(TarFile::new).transpose().map_err(cannot_write)?.map(Copy::new);
    let writer = if reader.copy.is_some() { Writer::index(files.image) } else { Writer::new(files.image) };
    let mut writer = writer.map_err(cannot_write)?;
    let mut target = Target::new(options, lower);
    let filled = fill(&mut target, &mut writer, &mut reader, options);
    if let Some(error) = reader.copy.as_mut().and_then(|copy| copy.failed.take()) {
        return Err(cannot_write(error));
    }
    let (entries, refused) = filled?;
    let diff_id = reader.hasher.finish();
    let image = windlass_snapshot::erofs::Options::default()
        .uuid(options.uuid.unwrap_or_else(|| half(&diff_id)))
        .time(options.time);
    let (mut tree, supposed) = target.finish();
    let supposed = Supposed { refused, ..supposed };
    let finished = match &reader.copy {
        Some(copy) => writer.finish_index(&mut tree, &image, copy.tar.length()),
        None => writer.finish(&mut tree, &image),
    };
    let image = finished.map_err(|error| target::data_error(error, Path::new("/"), cannot_write))?;
    Ok(Converted { diff_id, entries, supposed, image })
}

/// Applies all entries. Gives how many there were, and the first that cannot be if the layer's guesses are right.
fn fill(
    target: &mut Target<'_>,
    writer: &mut Writer,
    reader: &mut HashingReader<impl BufRead>,
    options: &Options,
) -> Result<(u64, Option<(PathBuf, String)>)> {
    let limits = &options.limits;
    let (mut entries, mut refused) = (0, None);
    let mut archive = Archive::new(reader, limits);
    while let Some(member) = archive.next()? {
        entries += 1;
        let meta = Meta::of(member, limits)?;
        if entries > limits.entries {
            return Err(Error::Limit { entry: meta.path, what: "entries", limit: limits.entries });
        }
        if refused.is_none() {
            let from = archive.get_ref();
            let offset = from.copy.is_some().then(|| from.position());
            match target.apply(&meta, offset, &mut archive, writer) {
                Err(Error::Entry { entry, reason }) if target.guesses() => refused = Some((entry, reason)),
                applied => applied?,
            }
        }
    }
    // The DiffID is of all bytes, those after the archive's end included.
    archive.read_to_the_end()?;
    Ok((entries, refused))
}

/// The tar beside an index.
pub(super) struct Copy {
    tar: TarFile,
    /// What the system answered when it could not be written: the reader can only say that it did not go on.
    failed: Option<io::Error>,
}

impl Copy {
    fn new(tar: TarFile) -> Self {
        Self { tar, failed: None }
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tar.append(bytes).map_err(|error| {
            let kind = error.kind();
            self.failed = Some(error);
            kind.into()
        })
    }
}

/// The first 16 bytes of a digest.
fn half(digest: &Digest) -> [u8; 16] {
    let digits = digest.digest().as_bytes();
    let value = |digit: u8| (digit as char).to_digit(16).expect("a digest is made of hex digits") as u8;
    std::array::from_fn(|at| value(digits[2 * at]) << 4 | value(digits[2 * at + 1]))
}

fn cannot_write(source: io::Error) -> Error {
    Error::Io { op: "write", path: "the image".into(), source }
}
