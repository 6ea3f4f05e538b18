//! How a layer is compressed: what its media type says, and what its first bytes say.

use std::io::{self, BufReader, Chain, Cursor, Read};

use oci_spec::image::MediaType;

use crate::apply::{Limits, OverLimit, starts_like_tar};

/// How much is read of the blob at once, in bytes.
const BUFFER: usize = 128 << 10;
/// How many bytes are looked at: the header of a tar archive.
const START: u64 = 512;

/// How bytes are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// The .xz file format.
    Xz,
    /// What bzip2 writes.
    Bzip2,
}

impl Compression {
    /// What the first bytes of a stream say; six are enough.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    /// What a media type says, by its ending; `None` if it says nothing of it.
    pub fn named(media_type: &MediaType) -> Option<Self> {
        let name = media_type.to_string();
        let ending = name.rsplit(['+', '.']).next()?;
        Some(match ending {
            "gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            "xz" => Self::Xz,
            "bzip2" => Self::Bzip2,
            "tar" => Self::None,
            _ => return None,
        })
    }
}

/// A reader of the plain bytes. Where the media type and the first bytes disagree, the bytes are right, as media types are often wrong;
/// if they are neither tar nor any known compression, they are an error.
///
/// All members of a gzip file, frames of a zstd file and streams of the others are read, to the end: anything else after them is an
/// error. That includes eStargz and zstd:chunked layers, which are plain layers with an index for those who know it.
///
/// # Errors
///
/// What `compressed` answers; [`io::ErrorKind::InvalidData`] for bytes that are not what the media type says, nor anything else;
/// [`io::ErrorKind::Unsupported`] if this crate was built without the feature for the compression. The reader's own errors may be that
/// [`Limits::expansion`] or [`Limits::window`] is exceeded.
pub fn decompress(
    compressed: impl Read + Send + 'static,
    media_type: &MediaType,
    limits: &Limits,
) -> io::Result<Box<dyn Read + Send>> {
    let mut compressed = compressed;
    let mut start = Vec::new();
    compressed.by_ref().take(START).read_to_end(&mut start)?;
    let named = Compression::named(media_type);
    let compression = match Compression::detect(&start) {
        // The name of a file may begin like anything.
        _ if starts_like_tar(&start) => Compression::None,
        Compression::None if !start.is_empty() && named.is_some_and(|named| named != Compression::None) => {
            let message = format!("the media type is {media_type}, but the bytes are neither that nor tar");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        found => found,
    };
    if named.is_some_and(|named| named != compression) {
        tracing::debug!(%media_type, ?compression, "the media type of a layer is wrong");
    }
    let whole: Whole<_> = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(compressed));
    match compression {
        Compression::None => Ok(Box::new(whole)),
        Compression::Gzip => gunzip(whole),
        Compression::Zstd => unzstd(whole, limits),
        Compression::Xz => unxz(whole, limits),
        Compression::Bzip2 => bunzip2(whole),
    }
}

/// The whole blob again.
type Whole<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// Says that a decompressor wants to look back farther than it may.
#[cfg(any(feature = "zstd", feature = "xz"))]
struct Window<R> {
    inner: R,
    limit: u64,
    /// How the decompressor says so.
    words: &'static str,
}

#[cfg(any(feature = "zstd", feature = "xz"))]
impl<R: Read> Read for Window<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buf).map_err(|error| match error.to_string().contains(self.words) {
            true => OverLimit { what: "bytes of a decompressor's window", limit: self.limit }.into(),
            false => error,
        })
    }
}

/// Stops a stream that expands out of all proportion.
pub(crate) struct Expansion {
    plain: u64,
    limit: u64,
    from: u64,
}

impl Expansion {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { plain: 0, limit: limits.expansion, from: limits.expansion_from }
    }

    /// Counts plain bytes that were made of all the compressed bytes so far.
    pub(crate) fn count(&mut self, plain: usize, compressed: u64) -> io::Result<()> {
        self.plain += plain as u64;
        match self.plain > self.from && self.plain > self.limit.saturating_mul(compressed) {
            true => {
                Err(OverLimit { what: "plain bytes for each byte of the blob", limit: self.limit }.into())
            }
            false => Ok(()),
        }
    }
}

#[cfg(feature = "gzip")]
fn gunzip(compressed: Whole<impl Read + Send + 'static>) -> io::Result<Box<dyn Read + Send>> {
    Ok(Box::new(flate2::bufread::MultiGzDecoder::new(compressed)))
}

#[cfg(not(feature = "gzip"))]
fn gunzip<R>(_: R) -> io::Result<Box<dyn Read + Send>> {
    Err(without("gzip"))
}

#[cfg(feature = "zstd")]
fn unzstd(
    compressed: Whole<impl Read + Send + 'static>,
    limits: &Limits,
) -> io::Result<Box<dyn Read + Send>> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
    // The least and the most that the library knows.
    decoder.window_log_max(limits.window.checked_ilog2().unwrap_or(0).clamp(10, 31))?;
    Ok(Box::new(Window { inner: decoder, limit: limits.window, words: "too much memory" }))
}

#[cfg(not(feature = "zstd"))]
fn unzstd<R>(_: R, _: &Limits) -> io::Result<Box<dyn Read + Send>> {
    Err(without("zstd"))
}

#[cfg(feature = "xz")]
fn unxz(compressed: Whole<impl Read + Send + 'static>, limits: &Limits) -> io::Result<Box<dyn Read + Send>> {
    use liblzma::stream::{CONCATENATED, Stream};
    // The decoder needs a little more than the dictionary.
    let stream = Stream::new_stream_decoder(limits.window.saturating_add(1 << 20), CONCATENATED)?;
    let decoder = liblzma::bufread::XzDecoder::new_stream(compressed, stream);
    Ok(Box::new(Window { inner: decoder, limit: limits.window, words: "memory limit" }))
}

#[cfg(not(feature = "xz"))]
fn unxz<R>(_: R, _: &Limits) -> io::Result<Box<dyn Read + Send>> {
    Err(without("xz"))
}

#[cfg(feature = "bzip2")]
fn bunzip2(compressed: Whole<impl Read + Send + 'static>) -> io::Result<Box<dyn Read + Send>> {
    Ok(Box::new(bzip2::bufread::MultiBzDecoder::new(compressed)))
}

#[cfg(not(feature = "bzip2"))]
fn bunzip2<R>(_: R) -> io::Result<Box<dyn Read + Send>> {
    Err(without("bzip2"))
}

#[cfg(not(all(feature = "gzip", feature = "zstd", feature = "xz", feature = "bzip2")))]
fn without(feature: &str) -> io::Error {
    let message = format!("the layer is {feature}; build with the feature `{feature}`");
    io::Error::new(io::ErrorKind::Unsupported, message)
}
