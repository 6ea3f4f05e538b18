//! Layers, written entry by entry.

use std::{ffi::OsStr, fmt, fs, io::Write, os::unix::ffi::OsStrExt, path::Path};

use bytes::Bytes;
use flate2::{Compression as Level, write::GzEncoder};
use oci_spec::image::Digest;
use tar::{EntryType, Header};

use crate::image::sha256;

/// The bytes of one field in a ustar header that a longer value moves out of, into a PAX record.
const NAME_LENGTH: usize = 100;

/// One layer of an image: a tar archive, and how it is compressed.
///
/// Names are written as they are given, so a hostile archive is written like any other. An entry belongs to
/// root and dates from the epoch unless [`owner`](Self::owner) and [`mtime`](Self::mtime) say otherwise.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    parts: Vec<Part>,
    /// The parts are a whole archive, which has an end of its own.
    whole: bool,
    compression: Compression,
}

impl Layer {
    /// A layer without entries, compressed with gzip.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer of an archive that exists, kept byte for byte. Nothing can be added to it.
    pub fn from_tar(tar: &[u8]) -> Self {
        Self { parts: vec![Part::Raw(Bytes::copy_from_slice(tar))], whole: true, ..Self::default() }
    }

    /// Adds a folder. `mode` is its permission bits.
    pub fn dir(self, path: impl AsRef<Path>, mode: u32) -> Self {
        self.entry(Entry::new(EntryType::Directory, path.as_ref(), mode))
    }

    /// Adds a regular file. `mode` is its permission bits.
    pub fn file(self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Self {
        let entry = Entry::new(EntryType::Regular, path.as_ref(), mode);
        self.entry(Entry { content: Bytes::copy_from_slice(content), ..entry })
    }

    /// Adds a symbolic link to `target`, which is not looked at.
    pub fn symlink(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.entry(Entry::new(EntryType::Symlink, path.as_ref(), 0o777).to(target.as_ref()))
    }

    /// Adds another name for `target`, a path in the archive or in a lower layer.
    pub fn hardlink(self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        self.entry(Entry::new(EntryType::Link, path.as_ref(), 0o644).to(target.as_ref()))
    }

    /// Adds a named pipe. `mode` is its permission bits.
    pub fn fifo(self, path: impl AsRef<Path>, mode: u32) -> Self {
        self.entry(Entry::new(EntryType::Fifo, path.as_ref(), mode))
    }

    /// Adds a character device of these numbers. `mode` is its permission bits.
    pub fn device(self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) -> Self {
        let entry = Entry::new(EntryType::Char, path.as_ref(), mode);
        self.entry(Entry { device: Some((major, minor)), ..entry })
    }

    /// Hides `path` of the lower layers.
    pub fn whiteout(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut name = OsStr::new(".wh.").to_owned();
        name.push(path.file_name().expect("what a whiteout hides has a name"));
        self.file(path.with_file_name(name), 0o644, b"")
    }

    /// Hides everything that the lower layers have in the folder `dir`. An empty path is the root.
    pub fn opaque(self, dir: impl AsRef<Path>) -> Self {
        self.file(dir.as_ref().join(".wh..wh..opq"), 0o644, b"")
    }

    /// Gives the last entry to this user and group. Root if not called.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.last().owner = (uid, gid);
        self
    }

    /// Dates the last entry, in seconds since the epoch, which may be negative. 0 if not called.
    pub fn mtime(mut self, seconds: i64) -> Self {
        let last = self.last();
        match u64::try_from(seconds) {
            Ok(seconds) => last.mtime = seconds,
            Err(_) => last.pax.push(("mtime".to_owned(), seconds.to_string().into_bytes())),
        }
        self
    }

    /// Gives the last entry an extended attribute, such as `user.note`.
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// Gives the last entry a PAX record, whatever it says.
    pub fn pax(mut self, name: &str, value: &[u8]) -> Self {
        self.last().pax.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds these bytes in place of an entry, for archives that no builder would write.
    pub fn raw(self, bytes: &[u8]) -> Self {
        self.part(Part::Raw(Bytes::copy_from_slice(bytes)))
    }

    /// Compresses with gzip, which is also what happens if nothing is said.
    pub fn gzip(self) -> Self {
        Self { compression: Compression::Gzip, ..self }
    }

    /// Compresses with zstd.
    pub fn zstd(self) -> Self {
        Self { compression: Compression::Zstd, ..self }
    }

    /// Does not compress.
    pub fn plain(self) -> Self {
        Self { compression: Compression::Plain, ..self }
    }

    /// The archive, not compressed.
    pub fn tar(&self) -> Bytes {
        if let ([Part::Raw(whole)], true) = (&self.parts[..], self.whole) {
            return whole.clone();
        }
        let mut tar = Vec::new();
        for part in &self.parts {
            match part {
                Part::Raw(bytes) => tar.extend_from_slice(bytes),
                Part::Entry(entry) => entry.write(&mut tar),
            }
        }
        // Two empty blocks end an archive.
        tar.resize(tar.len() + 1024, 0);
        tar.into()
    }

    /// The layer as a registry has it: compressed.
    pub fn blob(&self) -> Bytes {
        self.compress(self.tar())
    }

    /// The digest of the archive, not compressed.
    pub fn diff_id(&self) -> Digest {
        sha256(&self.tar())
    }

    /// What a media type of such a layer ends in, after `tar`, with this before the compression's name.
    pub(crate) fn media_type_suffix(&self, separator: char) -> String {
        match self.compression {
            Compression::Gzip => format!("{separator}gzip"),
            Compression::Zstd => format!("{separator}zstd"),
            Compression::Plain => String::new(),
        }
    }

    pub(crate) fn compress(&self, tar: Bytes) -> Bytes {
        match self.compression {
            Compression::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), Level::fast());
                gzip.write_all(&tar).and_then(|()| gzip.finish()).expect("memory takes every write").into()
            }
            Compression::Zstd => zstd::encode_all(&tar[..], 3).expect("memory takes every write").into(),
            Compression::Plain => tar,
        }
    }

    /// Adds a copy of the regular file at `source`, with its content and permission bits.
    pub(crate) fn copy_of(self, path: impl AsRef<Path>, mode: u32, source: &Path) -> Self {
        let content = fs::read(source).unwrap_or_else(|error| panic!("read {}: {error}", source.display()));
        self.file(path, mode, &content)
    }

    fn entry(self, entry: Entry) -> Self {
        self.part(Part::Entry(entry))
    }

    fn part(mut self, part: Part) -> Self {
        assert!(!self.whole, "nothing can be added to a layer that was made from an archive");
        self.parts.push(part);
        self
    }

    fn last(&mut self) -> &mut Entry {
        match self.parts.last_mut() {
            Some(Part::Entry(entry)) => entry,
            _ => panic!("owner, mtime, xattr and pax follow the entry that they change"),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum Compression {
    #[default]
    Gzip,
    Zstd,
    Plain,
}

#[derive(Clone)]
enum Part {
    Entry(Entry),
    Raw(Bytes),
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "{:?} {:?}", entry.kind, String::from_utf8_lossy(&entry.path)),
            Self::Raw(bytes) => write!(f, "{} raw bytes", bytes.len()),
        }
    }
}

#[derive(Clone)]
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    target: Vec<u8>,
    mode: u32,
    owner: (u64, u64),
    mtime: u64,
    device: Option<(u32, u32)>,
    pax: Vec<(String, Vec<u8>)>,
    content: Bytes,
}

impl Entry {
    fn new(kind: EntryType, path: &Path, mode: u32) -> Self {
        let mut path = path.as_os_str().as_bytes().to_vec();
        if kind.is_dir() && !path.ends_with(b"/") {
            path.push(b'/');
        }
        Self {
            kind,
            path,
            target: Vec::new(),
            mode,
            owner: (0, 0),
            mtime: 0,
            device: None,
            pax: Vec::new(),
            content: Bytes::new(),
        }
    }

    fn to(self, target: &Path) -> Self {
        Self { target: target.as_os_str().as_bytes().to_vec(), ..self }
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut records = Vec::new();
        for (name, value) in [("path", &self.path), ("linkpath", &self.target)] {
            if value.len() > NAME_LENGTH {
                records.extend(pax_record(name, value));
            }
        }
        for (name, value) in &self.pax {
            records.extend(pax_record(name, value));
        }
        if !records.is_empty() {
            write_block(tar, &mut Header::new_ustar(), EntryType::XHeader, b"PaxHeaders/entry", &records);
        }

        let mut header = Header::new_ustar();
        header.set_mode(self.mode);
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        if let Some((major, minor)) = self.device {
            header.set_device_major(major).expect("a ustar header has device numbers");
            header.set_device_minor(minor).expect("a ustar header has device numbers");
        }
        // The link name is at 157. Set as bytes, since the setter refuses what a hostile archive says.
        let target = &self.target[..self.target.len().min(NAME_LENGTH)];
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        write_block(tar, &mut header, self.kind, &self.path, &self.content);
    }
}

/// Writes a header and its content, filled up to whole blocks of 512 bytes.
fn write_block(tar: &mut Vec<u8>, header: &mut Header, kind: EntryType, path: &[u8], content: &[u8]) {
    let path = &path[..path.len().min(NAME_LENGTH)];
    header.as_mut_bytes()[..path.len()].copy_from_slice(path);
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

/// `LENGTH NAME=VALUE\n`, where the length counts its own digits.
fn pax_record(name: &str, value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + " =\n".len();
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {name}=").as_bytes(), value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Kind, path, and link target of each entry, as the `tar` crate reads them.
    fn read(tar: &[u8]) -> Vec<(EntryType, String, Option<String>)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("the test's names are UTF-8");
        let mut archive = tar::Archive::new(tar);
        let entries = archive.entries().expect("it starts like an archive");
        entries
            .map(|entry| {
                let entry = entry.expect("it is an entry");
                let target = entry.link_name_bytes().map(|it| text(&it));
                (entry.header().entry_type(), text(&entry.path_bytes()), target)
            })
            .collect()
    }

    #[test]
    fn every_kind_of_entry_is_read_back() {
        let long = "long/".repeat(50);
        let layer = Layer::new()
            .dir("etc", 0o755)
            .file("etc/motd", 0o644, b"hello")
            .symlink("etc/link", "/etc/motd")
            .hardlink("etc/same", "etc/motd")
            .fifo("pipe", 0o600)
            .device("null", 0o666, 1, 3)
            .whiteout("etc/gone")
            .opaque("etc")
            .symlink("../escaped", &long)
            .file(format!("{long}file"), 0o644, b"deep");

        let entries = read(&layer.tar());

        let link = |to: &str| Some(to.to_owned());
        let want = [
            (EntryType::Directory, "etc/".to_owned(), None),
            (EntryType::Regular, "etc/motd".to_owned(), None),
            (EntryType::Symlink, "etc/link".to_owned(), link("/etc/motd")),
            (EntryType::Link, "etc/same".to_owned(), link("etc/motd")),
            (EntryType::Fifo, "pipe".to_owned(), None),
            (EntryType::Char, "null".to_owned(), None),
            (EntryType::Regular, "etc/.wh.gone".to_owned(), None),
            (EntryType::Regular, "etc/.wh..wh..opq".to_owned(), None),
            (EntryType::Symlink, "../escaped".to_owned(), link(&long)),
            (EntryType::Regular, format!("{long}file"), None),
        ];
        assert_eq!(entries, want);
    }

    #[test]
    fn what_follows_an_entry_changes_it() {
        let layer = Layer::new()
            .file("file", 0o4755, b"content")
            .owner(70_000_000_000, 7)
            .mtime(1_700_000_000)
            .file("old", 0o600, b"")
            .mtime(-5)
            .xattr("user.note", b"\0binary");

        let tar = layer.tar();

        let mut archive = tar::Archive::new(&tar[..]);
        let mut entries =
            archive.entries().expect("it starts like an archive").map(|it| it.expect("an entry"));
        let mut first = entries.next().expect("there are two");
        let header = first.header();
        assert_eq!(header.mode().expect("a number"), 0o4755);
        assert_eq!(header.uid().expect("a number"), 70_000_000_000);
        assert_eq!(header.gid().expect("a number"), 7);
        assert_eq!(header.mtime().expect("a number"), 1_700_000_000);
        let mut content = String::new();
        first.read_to_string(&mut content).expect("it is all there");
        assert_eq!(content, "content");
        let mut second = entries.next().expect("there are two");
        let records: Vec<_> = second
            .pax_extensions()
            .expect("they parse")
            .expect("there are some")
            .map(|it| it.expect("it parses"))
            .map(|it| (it.key().expect("it is UTF-8").to_owned(), it.value_bytes().to_vec()))
            .collect();
        assert_eq!(records[0], ("mtime".to_owned(), b"-5".to_vec()));
        assert_eq!(records[1], ("SCHILY.xattr.user.note".to_owned(), b"\0binary".to_vec()));
    }

    #[test]
    fn compression_changes_the_blob_and_not_the_diff_id() {
        let layer = Layer::new().file("file", 0o644, b"content");
        let (gzip, zstd, plain) = (layer.clone().gzip(), layer.clone().zstd(), layer.plain());

        assert_eq!(gzip.blob()[..2], [0x1f, 0x8b]);
        assert_eq!(zstd.blob()[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(plain.blob(), plain.tar());
        assert_eq!(gzip.diff_id(), zstd.diff_id());
        assert_eq!(gzip.blob(), gzip.blob(), "the same bytes every time");
        let mut inflated = Vec::new();
        let blob = gzip.blob();
        flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut inflated).expect("it inflates");
        assert_eq!(inflated, plain.tar());
    }

    #[test]
    fn an_archive_is_kept_byte_for_byte() {
        let tar = b"whatever this is";

        assert_eq!(&Layer::from_tar(tar).tar()[..], tar);
        assert_eq!(Layer::from_tar(tar).diff_id(), sha256(tar));
    }

    #[test]
    fn a_pax_record_counts_its_own_digits() {
        for length in (0..12).chain(80..100).chain(980..1000) {
            let record = pax_record("key", &vec![b'v'; length]);
            assert!(record.starts_with(format!("{} key=", record.len()).as_bytes()), "{length}");
        }
    }
}
