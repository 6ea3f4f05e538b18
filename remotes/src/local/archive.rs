//! An uncompressed tar archive, as an index of ranges. Nothing is extracted.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tar::EntryType;
use windlass_content::ReadAt;

use super::{
    files::{Files, Span},
    folder::open_regular,
    header::{BLOCK, Extensions, cut_off, header_at, invalid},
};
use crate::{Error, Result};

/// The most headers in one archive.
const MAX_HEADERS: usize = 1 << 16;
/// The most that all names and link targets may have together, in bytes.
const MAX_NAMES: usize = 8 << 20;
/// How many links may lead to each other before they count as a circle.
const MAX_HOPS: usize = 8;

/// What compressed files start with.
const COMPRESSED: [(&[u8], &str); 4] =
    [(&[0x1f, 0x8b], "gzip"), (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"), (b"\xfd7zXZ\0", "xz"), (b"BZh", "bzip2")];

/// A tar archive, of which the headers were read once.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<std::fs::File>,
    path: PathBuf,
    entries: Entries,
}

/// What there is under each name. A name that is there twice means its last entry, as after extracting.
type Entries = HashMap<String, Entry>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File {
        start: u64,
        size: u64,
    },
    /// A hard or symbolic link to this name.
    Link(String),
}

impl Archive {
    /// Opens an archive, and reads its headers.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let (file, length) = open_regular(path)?;
        let entries = scan(&file, length).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::File { path: path.into(), line: None, reason: source.to_string() }
            }
            _ => Error::Io { op: "read", path: path.into(), source },
        })?;
        Ok(Self { file: Arc::new(file), path: path.into(), entries })
    }
}

impl Files for Archive {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str) -> Result<Option<Span>> {
        let path = self.path.join(name);
        let Some(mut name) = normalise("", name.as_bytes()) else { return Ok(None) };
        for _ in 0..=MAX_HOPS {
            match self.entries.get(&name) {
                None => return Ok(None),
                Some(Entry::Link(target)) => name.clone_from(target),
                Some(&Entry::File { start, size }) => {
                    return Ok(Some(Span { file: self.file.clone(), start, size, path }));
                }
            }
        }
        let reason = format!("more than {MAX_HOPS} links lead from it to each other");
        Err(Error::File { path, line: None, reason })
    }
}

/// Reads all headers of an archive of `length` bytes, and passes over what is between them.
fn scan(source: &dyn ReadAt, length: u64) -> io::Result<Entries> {
    refuse_compressed(source)?;
    let mut entries = Entries::new();
    let mut extensions = Extensions::default();
    let (mut position, mut headers, mut names) = (0, 0, 0);
    while let Some(header) = header_at(source, position, length)? {
        headers += 1;
        if headers > MAX_HEADERS {
            return Err(invalid(format!("it has more than {MAX_HEADERS} entries")));
        }
        let start = position + BLOCK;
        let kind = header.entry_type();
        let size = extensions.size(&header)?;
        let end = start.checked_add(size).filter(|end| *end <= length).ok_or_else(cut_off)?;
        position = end.checked_next_multiple_of(BLOCK).ok_or_else(cut_off)?;
        if extensions.take_in(kind, source, start, size)? {
            continue;
        }
        let Extensions { path, link, sparse, .. } = std::mem::take(&mut extensions);
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        if kind.is_gnu_sparse() || sparse {
            let name = String::from_utf8_lossy(&path);
            return Err(invalid(format!("its entry {name:?} is sparse, which is not supported")));
        }
        let link = link.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
        names += path.len() + link.len();
        if names > MAX_NAMES {
            return Err(invalid(format!("the names in it have more than {MAX_NAMES} bytes")));
        }
        // What nobody could ask for is left out: names that lead out of the archive, or are not UTF-8.
        let Some(name) = normalise("", &path) else { continue };
        let entry = match kind {
            EntryType::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                normalise(folder, &link).map(Entry::Link)
            }
            EntryType::Link => normalise("", &link).map(Entry::Link),
            _ if kind.is_file() || kind.is_contiguous() => Some(Entry::File { start, size }),
            _ => None,
        };
        match entry {
            Some(entry) => entries.insert(name, entry),
            None => entries.remove(&name),
        };
    }
    Ok(entries)
}

fn refuse_compressed(source: &dyn ReadAt) -> io::Result<()> {
    let mut head = [0; 6];
    source.read_at(&mut head, 0)?;
    match COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
        None => Ok(()),
        Some((_, name)) => Err(invalid(format!(
            "it is compressed with {name}; decompress it first, for example with `{name} -d`"
        ))),
    }
}

/// A path in the archive without `.` and `..`. `None` if it is not UTF-8, is empty, or leads out of the archive.
fn normalise(folder: &str, path: &[u8]) -> Option<String> {
    let path = str::from_utf8(path).ok()?;
    let folder = if path.starts_with('/') { "" } else { folder };
    let mut parts = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tar::Header;
    use windlass_testkit::Layer;

    use super::*;

    fn entries(bytes: &[u8]) -> io::Result<Entries> {
        scan(&Bytes::copy_from_slice(bytes), bytes.len() as u64)
    }

    #[test]
    fn an_entry_is_a_range_of_the_archive() {
        let long = "folder/".repeat(40) + "file";
        let tar = Layer::new()
            .dir("a", 0o755)
            .file("./a/short", 0o644, b"one")
            .file(&long, 0o644, b"two")
            .fifo("pipe", 0o644)
            .file("../outside", 0o644, b"three")
            .file("a/short", 0o644, b"four")
            .tar();

        let entries = entries(&tar).expect("it is an archive");

        assert_eq!(entries.len(), 2, "{entries:?}");
        for (name, content) in [("a/short", "four"), (&long, "two")] {
            let Entry::File { start, size } = entries[name] else { panic!("{name} is a file") };
            assert_eq!(&tar[start as usize..][..size as usize], content.as_bytes(), "{name}");
        }
    }

    #[test]
    fn a_long_name_may_be_written_as_gnu_tar_does() {
        let long = "n".repeat(300);
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(1);
        builder.append_data(&mut header, &long, &b"x"[..]).expect("it is written to memory");
        let mut link = Header::new_gnu();
        link.set_entry_type(EntryType::Symlink);
        link.set_size(0);
        builder.append_link(&mut link, "link", &long).expect("it is written to memory");

        let entries =
            entries(&builder.into_inner().expect("it is written to memory")).expect("it is an archive");

        assert!(matches!(entries[&long], Entry::File { size: 1, .. }));
        assert_eq!(entries["link"], Entry::Link(long));
    }

    #[test]
    fn links_are_names_in_the_archive() {
        for (path, target, hard, want) in [
            ("b/layer.tar", "../a/layer.tar", false, Some("a/layer.tar")),
            ("b/layer.tar", "layer.tar", false, Some("b/layer.tar")),
            ("b/layer.tar", "a/layer.tar", true, Some("a/layer.tar")),
            ("b/layer.tar", "/etc/passwd", false, Some("etc/passwd")),
            ("b/layer.tar", "../../etc/passwd", false, None),
        ] {
            let layer = Layer::new();
            let layer = if hard { layer.hardlink(path, target) } else { layer.symlink(path, target) };

            let entries = entries(&layer.tar()).expect(target);

            assert_eq!(entries.get(path), want.map(|want| Entry::Link(want.into())).as_ref(), "{target}");
        }
    }

    #[test]
    fn what_is_no_plain_archive_says_why() {
        let file = || Layer::new().file("file", 0o644, &[7; 2000]);
        let whole = file().tar();
        let mut sparse = Header::new_gnu();
        sparse.set_entry_type(EntryType::GNUSparse);
        sparse.set_path("hole").expect("it is short");
        sparse.set_size(0);
        sparse.set_cksum();
        for (bytes, why) in [
            (&file().blob()[..], "compressed with gzip; decompress it first"),
            (&file().zstd().blob(), "compressed with zstd; decompress it first"),
            (&whole[..1000], "it ends in the middle of an entry"),
            (&[b'x'; 2000], "the checksum of a header is wrong"),
            (&file().pax("GNU.sparse.map", b"0,1").tar(), "\"file\" is sparse"),
            (sparse.as_bytes(), "\"hole\" is sparse"),
            (&file().pax("size", b"99999999999999999999").tar(), "malformed"),
            (&file().pax("size", b"18446744073709551615").tar(), "cut off"),
            (&file().pax("comment", &[b'x'; 2 << 20]).tar(), "1048576 bytes"),
        ] {
            let error = entries(bytes).expect_err(why);
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..1600),
            kind in proptest::sample::select(&b"01257LKSxg"[..]),
        ) {
            let _ = entries(&bytes);
            // And again with a header that is one.
            if bytes.len() >= 512 {
                bytes[124..136].copy_from_slice(b"00000001000\0");
                bytes[156] = kind;
                let others: u32 = bytes[..148].iter().chain(&bytes[156..512]).map(|byte| u32::from(*byte)).sum();
                bytes[148..156].copy_from_slice(format!("{:06o}\0 ", others + 256).as_bytes());
                let _ = entries(&bytes);
            }
        }
    }
}
