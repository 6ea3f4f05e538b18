//! Where a layer goes: hashed plain, compressed, hashed again, in one pass.

use std::io::{self, BufWriter, Write};

use oci_spec::image::Digest;
use windlass_content::hash::Hasher;

use crate::compression::Compression;

/// How much is handed on at once, in bytes.
const CHUNK: usize = 128 << 10;

/// Takes the plain bytes of a layer.
pub(super) struct Output<W: Write> {
    plain: Hashed<Encoder<W>>,
}

/// What became of the bytes.
pub(super) struct Digests {
    /// Of the plain bytes.
    pub(super) diff_id: Digest,
    /// Of the compressed bytes.
    pub(super) digest: Digest,
    /// How many compressed bytes there are.
    pub(super) size: u64,
}

impl<W: Write> Output<W> {
    pub(super) fn new(out: W, compression: Compression) -> io::Result<Self> {
        let out = BufWriter::with_capacity(CHUNK, out);
        let encoder = match compression {
            Compression::None => Encoder::None(out),
            #[cfg(feature = "gzip")]
            // Its header has no time and no name, so the same bytes are the same file.
            Compression::Gzip => Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(
                Hashed::new(out),
                flate2::Compression::default(),
            ))),
            #[cfg(feature = "zstd")]
            Compression::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(
                Hashed::new(out),
                zstd::DEFAULT_COMPRESSION_LEVEL,
            )?),
            other => {
                let message = format!(
                    "layers are written plain, or as gzip or zstd by a program that is built with these features, not as {other:?}"
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
        };
        Ok(Self { plain: Hashed::new(encoder) })
    }

    /// Ends the compressed stream, and hands on all that is left of it.
    pub(super) fn finish(self) -> io::Result<Digests> {
        let Hashed { inner, hasher, size } = self.plain;
        let diff_id = hasher.finish();
        let compressed = match inner {
            Encoder::None(mut out) => {
                out.flush()?;
                None
            }
            #[cfg(feature = "gzip")]
            Encoder::Gzip(gzip) => Some(gzip.finish()?.end()?),
            #[cfg(feature = "zstd")]
            Encoder::Zstd(zstd) => Some(zstd.finish()?.end()?),
        };
        let (digest, size) = compressed.unwrap_or_else(|| (diff_id.clone(), size));
        Ok(Digests { diff_id, digest, size })
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.plain.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.plain.flush()
    }
}

/// Hashes and counts what passes through.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::sha256(), size: 0 }
    }
}

#[cfg(any(feature = "gzip", feature = "zstd"))]
impl<W: Write> Hashed<W> {
    /// Hands on all that is left; gives the digest and the number of all bytes.
    fn end(mut self) -> io::Result<(Digest, u64)> {
        self.inner.flush()?;
        Ok((self.hasher.finish(), self.size))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

enum Encoder<W: Write> {
    None(BufWriter<W>),
    #[cfg(feature = "gzip")]
    Gzip(Box<flate2::write::GzEncoder<Hashed<BufWriter<W>>>>),
    #[cfg(feature = "zstd")]
    Zstd(zstd::stream::write::Encoder<'static, Hashed<BufWriter<W>>>),
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            #[cfg(feature = "gzip")]
            Self::Gzip(out) => out.write(bytes),
            #[cfg(feature = "zstd")]
            Self::Zstd(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(out) => out.flush(),
            #[cfg(feature = "gzip")]
            Self::Gzip(out) => out.flush(),
            #[cfg(feature = "zstd")]
            Self::Zstd(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use windlass_content::hash::sha256;

    use super::*;
    use crate::{apply::Limits, compression::decompress};

    #[test]
    fn both_digests_are_those_of_the_bytes_that_came_in_and_went_out() {
        let plain = b"the bytes of a layer ".repeat(20_000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut out = Vec::new();
            let mut output = Output::new(&mut out, compression).expect("it is built in");
            output.write_all(&plain).expect("memory takes all");

            let Digests { diff_id, digest, size } = output.finish().expect("memory takes all");

            assert_eq!(diff_id, sha256(&plain), "{compression:?}");
            assert_eq!((digest, size), (sha256(&out), out.len() as u64), "{compression:?}");
            assert_eq!(Compression::detect(&out), compression);
            let mut again = Vec::new();
            let unnamed = MediaType::Other(String::new());
            let mut read =
                decompress(io::Cursor::new(out), &unnamed, &Limits::default()).expect("it is built in");
            io::copy(&mut read, &mut again).expect("it is whole");
            assert_eq!(again, plain, "{compression:?}");
        }
    }
}
