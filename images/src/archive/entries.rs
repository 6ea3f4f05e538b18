use std::io::{self, Read};

use tar::EntryType;

use super::{
    header::{BLOCK, Extensions, cut_off, invalid, next_header},
    normalise,
};

/// The most headers in one archive.
const MAX_HEADERS: usize = 1 << 16;
/// The most that all names and link targets may have together, in bytes.
const MAX_NAMES: usize = 8 << 20;

/// The bytes of an archive, in order.
pub trait Source: Read {
    /// Passes over some bytes, and gives how many there were: fewer only at the end.
    ///
    /// # Errors
    ///
    /// What the source answers.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

/// Bytes that come once, such as those of a pipe.
#[derive(Debug)]
pub struct Stream<R>(pub R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<R: Read> Source for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())
    }
}

/// The entries of an uncompressed tar archive, one after another. Nothing is extracted.
#[derive(Debug)]
pub struct Entries<S> {
    source: S,
    /// Where the next byte is, from the start of the archive, in bytes.
    position: u64,
    /// How much of the current entry's data is still to come, in bytes.
    left: u64,
    /// What follows the data, in bytes.
    padding: u64,
    headers: usize,
    names: usize,
}

/// What one header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, relative and without `.` and `..`.
    pub name: String,
    /// What there is under the name.
    pub kind: Kind,
}

/// The kind of an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of this size, in bytes.
    File(u64),
    /// A hard or symbolic link to this name in the archive.
    Link(String),
    /// A folder, a device, or a link that leads out of the archive.
    Other,
}

impl<S: Source> Entries<S> {
    /// Reads from the start of an archive.
    pub fn new(source: S) -> Self {
        Self { source, position: 0, left: 0, padding: 0, headers: 0, names: 0 }
    }

    /// Where the data of the current entry goes on, in bytes from the start of the archive.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on to the next entry, past what was not read of the current one; `None` at the end of the archive.
    ///
    /// Entries whose names lead out of the archive, or are not UTF-8, are left out: nobody could ask for them.
    ///
    /// # Errors
    ///
    /// What the source answers, and [`io::ErrorKind::InvalidData`] or [`io::ErrorKind::UnexpectedEof`] if it is no
    /// archive that can be read, or is larger than anybody needs.
    pub fn advance(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_over()?;
            let Some(header) = next_header(&mut Counted(&mut self.source, &mut self.position))? else {
                return Ok(None);
            };
            self.headers += 1;
            if self.headers > MAX_HEADERS {
                return Err(invalid(format!("it has more than {MAX_HEADERS} entries")));
            }
            let kind = header.entry_type();
            self.left = extensions.size(&header)?;
            self.padding = self.left.checked_next_multiple_of(BLOCK).ok_or_else(cut_off)? - self.left;
            let size = self.left;
            if extensions.take_in(kind, self, size)? {
                continue;
            }
            let Extensions { path, link, sparse, .. } = std::mem::take(&mut extensions);
            let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
            if kind.is_gnu_sparse() || sparse {
                let name = String::from_utf8_lossy(&path);
                return Err(invalid(format!("its entry {name:?} is sparse, which is not supported")));
            }
            let link = link.or_else(|| Some(header.link_name_bytes()?.into_owned())).unwrap_or_default();
            self.names += path.len() + link.len();
            if self.names > MAX_NAMES {
                return Err(invalid(format!("the names in it have more than {MAX_NAMES} bytes")));
            }
            let Some(name) = normalise("", &path) else { continue };
            let kind = match kind {
                EntryType::Symlink => {
                    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                    normalise(folder, &link).map(Kind::Link)
                }
                EntryType::Link => normalise("", &link).map(Kind::Link),
                _ if kind.is_file() || kind.is_contiguous() => Some(Kind::File(size)),
                _ => None,
            };
            return Ok(Some(Entry { name, kind: kind.unwrap_or(Kind::Other) }));
        }
    }

    /// The bytes that follow the archive.
    pub fn into_rest(self) -> S {
        self.source
    }

    /// Goes to where the next header is.
    fn pass_over(&mut self) -> io::Result<()> {
        let left = std::mem::take(&mut self.left);
        if self.skip_in_source(left)? < left {
            return Err(cut_off());
        }
        // Some writers leave the last padding out.
        let padding = std::mem::take(&mut self.padding);
        self.skip_in_source(padding).map(drop)
    }

    fn skip_in_source(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = if bytes == 0 { 0 } else { self.source.skip(bytes)? };
        self.position += skipped;
        Ok(skipped)
    }
}

/// The data of the current entry.
impl<S: Source> Read for Entries<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let wanted = buf.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        match self.source.read(&mut buf[..wanted])? {
            0 => Err(cut_off()),
            read => {
                self.left -= read as u64;
                self.position += read as u64;
                Ok(read)
            }
        }
    }
}

/// So that extensions of a header are read like an entry's data.
impl<S: Source> Source for Entries<S> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = self.skip_in_source(bytes.min(self.left))?;
        self.left -= skipped;
        Ok(skipped)
    }
}

/// A source that counts what is read of it.
struct Counted<'a, S>(&'a mut S, &'a mut u64);

impl<S: Source> Read for Counted<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buf)?;
        *self.1 += read as u64;
        Ok(read)
    }
}

impl<S: Source> Source for Counted<'_, S> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = self.0.skip(bytes)?;
        *self.1 += skipped;
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use tar::Header;
    use windlass_testkit::Layer;

    use super::*;

    /// What there is under each name, and where a file's data starts.
    fn entries(bytes: &[u8]) -> io::Result<HashMap<String, (Kind, usize)>> {
        let mut entries = Entries::new(Stream(bytes));
        let mut all = HashMap::new();
        while let Some(entry) = entries.advance()? {
            all.insert(entry.name, (entry.kind, entries.position() as usize));
        }
        Ok(all)
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

        assert_eq!(entries.len(), 4, "{entries:?}");
        for (name, content) in [("a/short", "four"), (&long, "two")] {
            let (Kind::File(size), start) = entries[name] else { panic!("{name} is a file") };
            assert_eq!(&tar[start..][..size as usize], content.as_bytes(), "{name}");
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

        assert_eq!(entries[&long].0, Kind::File(1));
        assert_eq!(entries["link"].0, Kind::Link(long));
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

            let want = want.map_or(Kind::Other, |want| Kind::Link(want.into()));
            assert_eq!(entries[path].0, want, "{target}");
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
