//! How a layer is compressed, found out from its first bytes.

use std::io::{self, Chain, Cursor, Read};

/// The largest window of a zstd frame, as a power of two: 128 MiB.
#[cfg(feature = "zstd")]
const ZSTD_WINDOW_LOG: u32 = 27;

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
}

impl Compression {
    /// What the first four bytes of a stream say.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A reader of the plain bytes, whatever the compression is: media types are often wrong, first bytes are not.
///
/// All members of a gzip file and all frames of a zstd file are read.
///
/// # Errors
///
/// What `compressed` answers; [`io::ErrorKind::Unsupported`] if this crate was built without the feature for the compression.
pub fn decompress(compressed: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut compressed = compressed;
    let mut start = Vec::new();
    compressed.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::detect(&start);
    let whole: Chain<Cursor<Vec<u8>>, _> = Cursor::new(start).chain(compressed);
    match compression {
        Compression::None => Ok(Box::new(whole)),
        Compression::Gzip => gunzip(whole),
        Compression::Zstd => unzstd(whole),
    }
}

#[cfg(feature = "gzip")]
fn gunzip(compressed: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    Ok(Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(128 << 10, compressed))))
}

#[cfg(not(feature = "gzip"))]
fn gunzip(_: impl Read) -> io::Result<Box<dyn Read + Send>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the layer is gzip; build with the feature `gzip`"))
}

#[cfg(feature = "zstd")]
fn unzstd(compressed: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(io::BufReader::with_capacity(128 << 10, compressed))?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Box::new(decoder))
}

#[cfg(not(feature = "zstd"))]
fn unzstd(_: impl Read) -> io::Result<Box<dyn Read + Send>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the layer is zstd; build with the feature `zstd`"))
}
