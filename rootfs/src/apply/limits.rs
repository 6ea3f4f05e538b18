use std::{error::Error, fmt, io};

/// How much a layer may hold before it is refused.
///
/// The defaults are far above what images have, and below what harms a machine. Change a field to change a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Entries. 5,000,000 by default.
    pub entries: u64,
    /// Folders above each other, the entry itself counted. 512 by default.
    pub depth: u64,
    /// Bytes of a path, or of the target of a link. 4,095 by default: what the kernel takes.
    pub path: u64,
    /// Bytes of one name in a path. 255 by default: what the kernel takes.
    pub name: u64,
    /// Bytes of the headers of an entry beside its own (PAX records, long names, the map of a sparse file), and of all that
    /// global headers say. 4 MiB by default.
    pub headers: u64,
    /// Extended attributes of an entry. 1,024 by default.
    pub xattrs: u64,
    /// Bytes of all extended attributes of an entry together, names counted. 1 MiB by default.
    pub xattr_bytes: u64,
    /// Bytes of a file, its holes counted. 1 TiB by default.
    pub file: u64,
    /// Bytes of the plain archive. 1 TiB by default.
    pub total: u64,
    /// Plain bytes for each byte of the blob. 2,000 by default. gzip cannot exceed 1,032; zstd gets to 30,000 with zeros.
    pub expansion: u64,
    /// Plain bytes from which on [`expansion`](Self::expansion) counts: less is never too much. 1 GiB by default.
    pub expansion_from: u64,
    /// Bytes that a decompressor may look back, which it keeps in memory: the window of a zstd frame, the dictionary of xz.
    /// 128 MiB by default, as in other tools for containers. zstd counts it in powers of two.
    pub window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 5_000_000,
            depth: 512,
            path: 4095,
            name: 255,
            headers: 4 << 20,
            xattrs: 1024,
            xattr_bytes: 1 << 20,
            file: 1 << 40,
            total: 1 << 40,
            expansion: 2_000,
            expansion_from: 1 << 30,
            window: 128 << 20,
        }
    }
}

/// A limit that a reader of bytes has come to: it knows of no entries. It travels inside an [`io::Error`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverLimit {
    pub(crate) what: &'static str,
    pub(crate) limit: u64,
}

impl OverLimit {
    /// The limit in an error of a reader, if that is what it is.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<OverLimit> for io::Error {
    fn from(over: OverLimit) -> Self {
        Self::new(io::ErrorKind::InvalidData, over)
    }
}

impl Error for OverLimit {}

impl fmt::Display for OverLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit of {} {} is exceeded", self.limit, self.what)
    }
}
