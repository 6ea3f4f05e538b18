//! An image made of a running program, for demos that must not need a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use crate::{
    image::{Image, ImageBuilder},
    layer::Layer,
};

/// The type of the ELF program header that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// An image with `program` as `/hello`, its entrypoint.
///
/// The lower layer has the dynamic loader that `program` asks for, and every shared library that this process
/// has mapped; so `program` is `/proc/self/exe`, or a program with no more libraries than this one. The upper
/// layer has the program, `/etc/passwd` and `/etc/group`. `LD_LIBRARY_PATH` leads to the libraries, wherever
/// this machine keeps them, and `WINDLASS_DEMO` is set, so that the program can tell where it is.
///
/// # Panics
///
/// If a file cannot be read, or `program` is not ELF of 64 bits.
pub fn demo_image(program: &Path) -> Image {
    let libraries = mapped_libraries();
    let folders: BTreeSet<_> = libraries.keys().filter_map(|path| path.parent()).collect();
    let search = folders.iter().map(|folder| folder.to_string_lossy()).collect::<Vec<_>>().join(":");

    let users = "root:x:0:0:root:/root:/hello\nhello:x:1000:1000:hello:/:/hello\n";
    let upper = Layer::new()
        .dir("etc", 0o755)
        .file("etc/passwd", 0o644, users.as_bytes())
        .file("etc/group", 0o644, b"root:x:0:\nhello:x:1000:\n")
        .copy_of("hello", 0o755, program);
    ImageBuilder::new()
        .layer(library_layer(interpreter(program), &libraries))
        .layer(upper)
        .entrypoint(&["/hello"])
        .env("LD_LIBRARY_PATH", &search)
        .env("WINDLASS_DEMO", "hello")
        .working_dir("/")
        .build()
}

fn library_layer(interpreter: Option<PathBuf>, libraries: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> Layer {
    let paths = libraries.keys().chain(&interpreter);
    let folders: BTreeSet<_> = paths.clone().flat_map(|path| path.ancestors().skip(1)).collect();
    let mut layer = Layer::new();
    // Sorted, so a folder comes before what is in it. The root itself is not an entry.
    for folder in folders.into_iter().filter(|it| *it != Path::new("/")) {
        layer = layer.dir(inside(folder), 0o755);
    }
    for path in paths.collect::<BTreeSet<_>>() {
        layer = layer.copy_of(inside(path), 0o755, path);
    }
    for (path, names) in libraries {
        for name in names.iter().filter(|name| interpreter.as_ref() != Some(name)) {
            layer = layer.symlink(inside(name), path.file_name().expect("a library is a file"));
        }
    }
    layer
}

/// An absolute path as a layer names it.
fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").expect("the kernel and the linker name files by absolute paths")
}

/// The shared libraries that this process has mapped, and their other names in the same folder, by one of which
/// the loader may look for them.
fn mapped_libraries() -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
    let maps = fs::read("/proc/self/maps").expect("a process can read its own maps");
    let mapped = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        // Address, permissions, offset, device and inode come before the path, which begins with a slash.
        let start = line.iter().position(|byte| *byte == b'/')?;
        let path = Path::new(OsStr::from_bytes(&line[start..]));
        let is_library = path.file_name()?.as_bytes().windows(3).any(|part| part == b".so");
        (is_library && path.is_file()).then(|| path.to_owned())
    });
    mapped.map(|path| (path.clone(), other_names(&path))).collect()
}

fn other_names(library: &Path) -> BTreeSet<PathBuf> {
    let is_it = |path: &Path| {
        let found = fs::metadata(path).ok().zip(fs::metadata(library).ok());
        path != library && found.is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
    };
    let folder = library.parent().expect("a library is in a folder");
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("list {}: {error}", folder.display()));
    entries
        .filter_map(Result::ok)
        .filter(|it| it.path().is_symlink())
        .map(|it| it.path())
        .filter(|it| is_it(it))
        .collect()
}

/// The dynamic loader that an ELF program of 64 bits asks for. None if it is statically linked.
fn interpreter(program: &Path) -> Option<PathBuf> {
    let shown = program.display();
    let file = fs::File::open(program).unwrap_or_else(|error| panic!("open {shown}: {error}"));
    let read = |offset: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, offset).unwrap_or_else(|error| panic!("read {shown}: {error}"));
        bytes
    };
    // The offsets are those of `Elf64_Ehdr` and `Elf64_Phdr` in elf(5).
    let header = read(0, 64);
    assert!(header.starts_with(b"\x7fELF\x02"), "{shown} is not an ELF program of 64 bits");
    let size = usize::from(u16::from_ne_bytes(field(&header, 54)));
    let count = usize::from(u16::from_ne_bytes(field(&header, 56)));
    let table = read(u64::from_ne_bytes(field(&header, 32)), size * count);
    let entry = table.chunks_exact(size).find(|it| u32::from_ne_bytes(field(it, 0)) == PT_INTERP)?;
    let length = u64::from_ne_bytes(field(entry, 32));
    let length = usize::try_from(length).expect("the path of a loader is short");
    let path = read(u64::from_ne_bytes(field(entry, 8)), length);
    let path = path.strip_suffix(b"\0").unwrap_or(&path);
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has this length")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_running_program_runs_in_the_image_alone() {
        let image = demo_image(Path::new("/proc/self/exe"));
        let root = tempfile::tempdir().expect("a temporary folder can be made");
        for layer in image.layers() {
            let blob = image.blob(layer.digest());
            tar::Archive::new(flate2::read::GzDecoder::new(&blob[..]))
                .unpack(root.path())
                .expect("it unpacks");
        }
        let config: serde_json::Value =
            serde_json::from_slice(&image.blob(image.config().digest())).expect("the config is JSON");
        let env = config["config"]["Env"].as_array().expect("it is a list").iter();
        let env = env.filter_map(|it| it.as_str()?.split_once('='));

        let output = Command::new(crate::require("chroot", "coreutils"))
            .arg(root.path())
            .args(["/hello", "--list"])
            .env_clear()
            .envs(env)
            .output()
            .expect("chroot starts");

        let listed = String::from_utf8_lossy(&output.stdout);
        assert!(listed.contains("the_running_program_runs_in_the_image_alone: test"), "{output:?}");
        assert_eq!(config["config"]["Entrypoint"][0], "/hello");
        assert_eq!(fs::read(root.path().join("etc/group")).expect("it is there")[..4], *b"root");
    }

    #[test]
    #[should_panic(expected = "/etc/passwd is not an ELF program of 64 bits")]
    fn a_text_file_is_no_program() {
        interpreter(Path::new("/etc/passwd"));
    }
}
