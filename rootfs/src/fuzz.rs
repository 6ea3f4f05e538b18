//! What reads hostile bytes, for the fuzz targets in `fuzz/`. Not part of the API.

use std::{
    fs::{self, File},
    io::{Cursor, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci_spec::image::MediaType;
use tar::{EntryType, Header};
use windlass_snapshot::Whiteouts;

use crate::{
    apply::{IdMap, Limits, Options, apply, settle},
    compression::{Expansion, decompress},
};

/// A blob, whose first byte says what its media type is.
pub fn compression(bytes: &[u8]) {
    let Some((first, blob)) = bytes.split_first() else { return };
    let media_type = MediaType::from(match first % 4 {
        0 => "application/vnd.oci.image.layer.v1.tar+gzip",
        1 => "application/vnd.oci.image.layer.v1.tar+zstd",
        2 => "application/vnd.oci.image.layer.v1.tar",
        _ => "application/octet-stream",
    });
    let limits = small();
    let Ok(mut plain) = decompress(Cursor::new(blob.to_vec()), &media_type, &limits) else { return };
    let mut expansion = Expansion::new(&limits);
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    while let Ok(some @ 1..) = plain.read(&mut buffer) {
        read += some as u64;
        if expansion.count(some, blob.len() as u64).is_err() {
            break;
        }
    }
    let most = limits.expansion_from.max(limits.expansion * blob.len() as u64) + buffer.len() as u64;
    assert!(read <= most, "{read} bytes of {}", blob.len());
}

/// Layers, put on each other in both ways: nothing outside their roots may change. The first byte says whether the bytes are a tar, or
/// a list of entries that are made into one.
pub fn layers(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let layers = if first % 4 == 0 { vec![rest.to_vec()] } else { tars(rest) };
    let place = std::env::temp_dir().join(format!("windlass-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&place);
    let sentinel = place.join("outside/folder");
    fs::create_dir_all(&sentinel).expect("the temporary folder is ours");
    fs::write(sentinel.join("file"), "outside").expect("the folder is ours");
    let options = Options::default().limits(small()).ids(IdMap::squash()).skip_privileged(true);

    let mut roots = vec![root(&place, "one")];
    let one = open(&roots[0]);
    let mut lower: Option<PathBuf> = None;
    for (number, tar) in layers.iter().enumerate() {
        let removed = apply(&tar[..], &one, &options);
        roots.push(root(&place, &number.to_string()));
        let own = roots.last().expect("it was pushed").clone();
        let options = options.clone().whiteouts(Whiteouts::UserOverlay);
        if let Ok(applied) = apply(&tar[..], &open(&own), &options) {
            let _ = settle(&applied.pending, &open(&own), lower.as_deref().map(open).as_ref());
        }
        lower = Some(own);
        if removed.is_err() {
            break;
        }
    }

    let kept = fs::read(sentinel.join("file")).expect("it was not touched");
    assert_eq!(kept, b"outside");
    let count = |folder: &Path| fs::read_dir(folder).expect("it is still a folder").count();
    assert_eq!((count(&sentinel), count(&place.join("outside"))), (1, 1), "nothing was made beside the file");
    assert_eq!(count(&place), roots.len() + 1, "nothing was made beside the roots");
}

fn small() -> Limits {
    let mut limits = Limits::default();
    limits.entries = 200;
    limits.file = 1 << 20;
    limits.total = 4 << 20;
    limits.headers = 64 << 10;
    limits.expansion = 100;
    limits.expansion_from = 1 << 20;
    limits.window = 8 << 20;
    limits
}

fn root(place: &Path, name: &str) -> PathBuf {
    let root = place.join(name);
    fs::create_dir(&root).expect("the folder is new");
    root
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the folder is there").into()
}

const NAMES: [&str; 16] = [
    "a",
    "b",
    "a/b",
    "b/a",
    "a/b/c",
    "../outside",
    "/",
    ".wh.a",
    "a/.wh..wh..opq",
    ".wh..wh..opq",
    "a/.wh.b",
    "b/a/d",
    "a/../../outside/folder/file",
    ".wh..",
    "c",
    "./a/./c",
];
const TARGETS: [&str; 8] = [
    "a",
    "/",
    "..",
    "../outside/folder",
    "b/a",
    "a/b/c",
    "../../../../../../../../../../tmp",
    "/proc/self/root",
];
const KINDS: &[u8] = b"0123456357123205";

/// Four bytes make an entry: type, name, target, and what else.
fn tars(program: &[u8]) -> Vec<Vec<u8>> {
    let mut tars = vec![Vec::new()];
    for instruction in program.as_chunks::<4>().0 {
        let [kind, name, target, more] = instruction.map(usize::from);
        if kind == 255 {
            tars.push(Vec::new());
            continue;
        }
        let tar = tars.last_mut().expect("there is one");
        let data = vec![b'x'; more * 5];
        if more % 5 == 0 {
            let record = format!("mtime={}.{}\n", more * 7919, name);
            let text = format!("{} {record}", record.len() + 3);
            push(tar, EntryType::XHeader, "pax", "", text.as_bytes());
        }
        let kind = EntryType::new(KINDS[kind % KINDS.len()]);
        let data = if kind.is_file() || kind.is_contiguous() { &data[..] } else { &[] };
        push(tar, kind, NAMES[name % NAMES.len()], TARGETS[target % TARGETS.len()], data);
    }
    tars
}

fn push(tar: &mut Vec<u8>, kind: EntryType, name: &str, target: &str, data: &[u8]) {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(data.len() as u64);
    header.set_cksum();
    tar.extend(header.as_bytes());
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
}
