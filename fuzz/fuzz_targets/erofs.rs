//! Any tar is either an error, or an image that `fsck.erofs` accepts; or an index that the kernel mounts and reads, for Debian's
//! `fsck.erofs` does not know blocks of 512 bytes.
#![no_main]

use std::{fs::File, path::Path, process::Command};

use libfuzzer_sys::fuzz_target;
use windlass_rootfs::apply::image::{Files, Options, convert};
use windlass_snapshot::{Mount, Whiteouts, mount::temp_mount};

/// The kinds of entries that are tried, in the order of a byte's value.
const KINDS: &[u8] = b"0512346xgLKS7";
const NAMES: [&str; 12] =
    ["a", "b", "a/b", "a/b/c", "b/a", ".wh.a", "a/.wh.b", "a/.wh..wh..opq", "./", "/a", "../a", "c/../a"];

/// Makes an archive of the bytes: some are fields of headers, whose checksums are right, others are data.
fn archive(mut bytes: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    while let [kind, name, link, mode, size, rest @ ..] = bytes {
        let mut header = tar::Header::new_gnu();
        let field = |number: u8| NAMES[usize::from(number) % NAMES.len()];
        header.as_mut_bytes()[..field(*name).len()].copy_from_slice(field(*name).as_bytes());
        header.as_mut_bytes()[157..157 + field(*link).len()].copy_from_slice(field(*link).as_bytes());
        header.set_entry_type(tar::EntryType::new(KINDS[usize::from(*kind) % KINDS.len()]));
        header.set_mode(u32::from(*mode) * 16);
        header.set_uid((*link).into());
        header.set_gid((*mode).into());
        header.set_mtime((*size).into());
        let size = usize::from(*size).min(rest.len());
        let (data, rest) = rest.split_at(size);
        header.set_size(size as u64);
        if header.entry_type().is_character_special() || header.entry_type().is_block_special() {
            let _ = header
                .set_device_major(u32::from(*mode))
                .and_then(|()| header.set_device_minor(u32::from(*link)));
        }
        // The rest of the header may be anything, too.
        if *mode == 255 {
            let length = data.len().min(512);
            header.as_mut_bytes()[512 - length..].copy_from_slice(&data[..length]);
        }
        header.set_cksum();
        tar.extend_from_slice(header.as_bytes());
        tar.extend_from_slice(data);
        tar.resize(tar.len().next_multiple_of(512), 0);
        bytes = rest;
    }
    tar
}

/// Reads all that is in a folder, but no large files: they are holes.
fn read(folder: &Path) {
    for entry in std::fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("an entry can be read").path();
        let metadata = path.symlink_metadata().expect("what is listed can be looked at");
        if metadata.is_dir() {
            read(&path);
        } else if metadata.is_file() && metadata.len() < 1 << 20 {
            std::fs::read(&path).expect("a file can be read");
        } else if metadata.is_symlink() {
            std::fs::read_link(&path).expect("a link can be read");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let image = std::env::temp_dir().join(format!("windlass-fuzz-erofs-{}", std::process::id()));
    let (choice, bytes) = bytes.split_first().unwrap_or((&0, bytes));
    let whiteouts = if choice & 1 == 0 { Whiteouts::Remove } else { Whiteouts::Overlay };
    let options = Options::default().whiteouts(whiteouts).marks(choice & 2 == 0);
    let tar = if choice & 4 == 0 { archive(bytes) } else { bytes.to_vec() };
    let open = |path: &Path| {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path);
        file.expect("there is room for an image")
    };
    let beside = image.with_extension("tar");
    let is_index = choice & 8 != 0;
    let files = Files { image: open(&image), tar: is_index.then(|| open(&beside)) };
    if convert(&tar[..], files, &options).is_err() {
        return;
    }
    if is_index {
        let options = vec!["ro".to_owned(), format!("device={}", beside.display())];
        let mount = Mount { fstype: "erofs".to_owned(), source: image.clone(), options };
        temp_mount(&[mount], read).expect("the kernel takes the index");
        let _ = std::fs::remove_file(&beside);
    } else {
        let checked = Command::new("fsck.erofs").arg(&image).output().expect("install erofs-utils");
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
    let _ = std::fs::remove_file(&image);
});
