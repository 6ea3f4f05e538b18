//! An image shows what `apply` makes of the same layer, and the checkers of others accept it. Needs root and erofs-utils.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use tempfile::TempDir;
use windlass_rootfs::{
    Error,
    apply::{
        self, apply,
        image::{Converted, Files, Options, convert},
    },
};
use windlass_snapshot::{
    Mount, Whiteouts,
    mount::{mount_all, unmount},
};
use windlass_testkit::{Layer, Tree, assert_same};

/// A folder with an image of a layer.
struct Made {
    folder: TempDir,
    converted: Converted,
}

impl Made {
    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn tar(&self) -> PathBuf {
        self.folder.path().join("tar")
    }

    /// What the image shows when it is mounted.
    fn tree(&self) -> Tree {
        let target = self.folder.path().join("mnt");
        fs::create_dir_all(&target).expect("there is room");
        let mut options = vec!["ro".to_owned()];
        if self.tar().exists() {
            options.push(format!("device={}", self.tar().display()));
        }
        let mount = Mount { fstype: "erofs".into(), source: self.image(), options };
        mount_all(&[mount], &target).expect("the kernel takes it");
        let tree = Tree::read(&target);
        unmount(&target).expect("it is mounted");
        tree
    }

    /// Has erofs-utils check it, and extract all data.
    fn check(&self) {
        let extract = format!("--extract={}", self.folder.path().join("extracted").display());
        for arguments in
            [&["fsck.erofs"][..], &["fsck.erofs", &extract, "--force"], &["dump.erofs", "-s", "-S"]]
        {
            let program = Command::new(arguments[0]).args(&arguments[1..]).arg(self.image()).output();
            let output = program.expect("install erofs-utils");
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success(), "{arguments:?}: {said}");
            assert!(!said.contains("<E>") && !said.contains("<W>"), "{arguments:?}: {said}");
        }
    }
}

fn make(tar: &[u8], options: &Options) -> Result<Made, Error> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = create(folder.path(), "image");
    Ok(Made { converted: convert(tar, file, options)?, folder })
}

/// The tar, and an index of it. Debian's erofs-utils do not know blocks of 512 bytes.
fn make_index(tar: &[u8], options: &Options) -> Result<Made, Error> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let files = Files { image: create(folder.path(), "image"), tar: Some(create(folder.path(), "tar")) };
    Ok(Made { converted: convert(tar, files, options)?, folder })
}

fn create(folder: &Path, name: &str) -> File {
    let file = File::options().create_new(true).read(true).write(true).open(folder.join(name));
    file.expect("there is room")
}

/// What `apply` makes of a layer alone.
fn applied(tar: &[u8], whiteouts: Whiteouts) -> Result<Tree, Error> {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
    let root = rustix::fs::open(folder.path(), flags, Mode::empty()).expect("it is there");
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).expect("it is ours");
    apply(tar, &root, &apply::Options::default().whiteouts(whiteouts))?;
    Ok(Tree::read(folder.path()))
}

/// Both, compared, and checked.
fn same(layer: &Layer) -> Made {
    let tar = layer.tar();
    let made = make(&tar, &Options::default()).expect("it is a layer");
    made.check();
    let expected = applied(&tar, Whiteouts::Remove).expect("it is a layer");
    assert_same(&made.tree(), &expected);
    assert_eq!(made.converted.diff_id, layer.diff_id());
    let index = make_index(&tar, &Options::default()).expect("it is a layer");
    assert_same(&index.tree(), &expected);
    assert_eq!(index.converted.diff_id, layer.diff_id());
    assert!(fs::read(index.tar()).expect("it is there") == tar, "the tar is kept byte for byte");
    let again = make_index(&tar, &Options::default()).expect("it is a layer");
    let [image, other] = [index.image(), again.image()].map(|path| fs::read(path).expect("it is there"));
    assert!(image == other, "the same tar gives the same index");
    made
}

fn root() -> Layer {
    Layer::new().dir("./", 0o755)
}

#[test]
fn everything_that_a_layer_can_have_is_in_the_image() {
    let acl = [
        &2_u32.to_le_bytes()[..],
        &[1, 0, 6, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 9, 0, 0, 0],
        &[4, 0, 4, 0, 255, 255, 255, 255],
        &[16, 0, 5, 0, 255, 255, 255, 255],
        &[32, 0, 1, 0, 255, 255, 255, 255],
    ]
    .concat();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = "n".repeat(255);
    let layer = root()
        .mtime(1_000_000_000)
        .dir("etc", 0o755)
        .owner(1000, 100_000)
        .file("etc/empty", 0o644, b"")
        .file("etc/passwd", 0o4755, &[b'x'; 5000])
        .pax("mtime", b"1700000000.123456789")
        .hardlink("etc/again", "etc/passwd")
        .hardlink("etc/once-more", "etc/again")
        .file("etc/page", 0o600, &[b'y'; 4096])
        .pax("uid", b"4294967294")
        .pax("gid", b"3000000000")
        .symlink("etc/link", "passwd")
        .owner(7, 8)
        .mtime(-1)
        .symlink("long-link", "t".repeat(4095))
        .symlink("longest-inline", "t".repeat(4000))
        .hardlink("etc/link2", "etc/link")
        .dir("t", 0o1777)
        .xattr("user.note", b"value")
        .xattr("user.other", &[7; 2500])
        .file("t/capable", 0o755, b"x")
        .xattr("security.capability", &capability)
        .file("t/capable2", 0o755, b"y")
        .xattr("security.capability", &capability)
        .file("t/listed", 0o640, b"z")
        .xattr("system.posix_acl_access", &acl)
        .dir("t/inherits", 0o750)
        .xattr("system.posix_acl_default", &acl)
        .xattr("user.big", &[9; 3000])
        .device("null", 0o666, 1, 3)
        .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
        .fifo("pipe", 0o622)
        .file(format!("deep/er/{long}"), 0o644, b"long")
        .file(Path::new(std::ffi::OsStr::new("not\u{fffd}")), 0o644, b"");

    let made = same(&layer);

    assert_eq!(made.tree().nodes[Path::new("etc/again")].links.len(), 3);
}

#[test]
fn names_that_are_not_text_and_folders_of_all_sizes_are_kept() {
    use std::os::unix::ffi::OsStrExt;
    let mut layer = root().file(std::ffi::OsStr::from_bytes(b"\xff\xfe-\x01"), 0o644, b"x");
    for count in [1, 100, 140, 1000, 5000] {
        layer = layer.dir(format!("d{count}"), 0o755);
        for number in 0..count {
            layer = layer.file(format!("d{count}/.-{number:0width$}", width = 1 + number % 90), 0o644, b"");
        }
    }

    same(&layer);
}

#[test]
fn files_with_holes_have_them_in_the_image() {
    let map = |pieces: &[(u64, u64)], size: u64| {
        let numbers: Vec<_> = pieces.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
        let data: u64 = pieces.iter().map(|(_, length)| length).sum();
        (numbers.join(","), size.to_string(), vec![b'd'; data as usize])
    };
    let mut layer = root();
    for (name, pieces, size) in [
        ("front", &[(0, 5000)][..], 100_000),
        ("middle", &[(8192, 4096), (16_384, 1)], 40_000),
        ("odd", &[(1, 1), (4095, 2), (12_000, 9000)], 30_001),
        ("end", &[(99_999, 1)], 100_000),
        ("none", &[(1 << 33, 0)], 1 << 33),
        ("large", &[(0, 3), (1 << 30, 10), ((1 << 34) - 7, 7)], 1 << 34),
    ] {
        let (map, size, data) = map(pieces, size);
        layer = layer.file(name, 0o644, &data).pax("GNU.sparse.map", map.as_bytes());
        layer = layer.pax("GNU.sparse.size", size.as_bytes()).pax("GNU.sparse.name", name.as_bytes());
    }
    let tar = layer.tar();
    let made = make(&tar, &Options::default()).expect("it is a layer");

    let program = Command::new("fsck.erofs").arg(made.image()).status();
    assert!(program.expect("install erofs-utils").success());
    let data: u64 = fs::metadata(made.image())
        .map(|it| std::os::unix::fs::MetadataExt::blocks(&it) * 512)
        .expect("it is there");
    assert!(data < 1 << 20, "{data} bytes are taken");
    let target = made.folder.path().join("mnt");
    fs::create_dir_all(&target).expect("there is room");
    let mount = Mount { fstype: "erofs".into(), source: made.image(), options: vec!["ro".into()] };
    mount_all(&[mount], &target).expect("the kernel takes it");
    let looked = std::panic::catch_unwind(|| {
        for (name, size, at) in [
            ("front", 100_000, &[0, 4999][..]),
            ("end", 100_000, &[99_999]),
            ("none", 1 << 33, &[]),
            ("large", 1 << 34, &[0, 1 << 30, (1 << 34) - 1]),
        ] {
            use std::os::unix::fs::FileExt;
            let file = File::open(target.join(name)).expect("it is there");
            assert_eq!(file.metadata().expect("it is there").len(), size, "{name}");
            for at in at {
                let mut around = [1; 2];
                file.read_exact_at(&mut around[..1], *at).expect("it is there");
                assert_eq!(around[0], b'd', "{name} at {at}");
            }
        }
        for name in ["middle", "odd"] {
            let content = fs::read(target.join(name)).expect("it is there");
            assert_eq!(
                content.iter().filter(|byte| **byte == b'd').count(),
                if name == "odd" { 9003 } else { 4097 }
            );
        }
    });
    unmount(&target).expect("it is mounted");
    looked.expect("the holes are where they were");
}

#[test]
fn the_same_tar_gives_the_same_image() {
    let layer =
        root().file("f", 0o644, &[1; 10_000]).xattr("user.a", b"1").xattr("user.b", b"2").dir("d", 0o755);
    let images = [(); 2].map(|()| {
        let made = make(&layer.tar(), &Options::default()).expect("it is a layer");
        fs::read(made.image()).expect("it is there")
    });
    assert!(images[0] == images[1]);

    let other = make(&layer.tar(), &Options::default().uuid([7; 16]).time(9)).expect("it is a layer");
    assert!(fs::read(other.image()).expect("it is there") != images[0]);
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    same(
        &root()
            .file("f", 0o644, b"old")
            .hardlink("g", "f")
            .file("f", 0o600, b"new")
            .dir("d", 0o755)
            .file("d/x", 0o644, b"x")
            .symlink("d", "elsewhere")
            .dir("d", 0o700)
            .symlink("s", "d")
            .file("s/through", 0o644, b"t")
            .symlink("loop", "loop")
            .file("loop/x", 0o644, b"")
            .symlink("dangling", "made/later")
            .file("dangling/x", 0o644, b"")
            .symlink("out", "../../..")
            .file("out/inside", 0o644, b"i")
            .dir("twice", 0o700)
            .xattr("user.a", b"1")
            .dir("twice", 0o711)
            .xattr("user.b", b"2"),
    );
}

#[test]
fn what_is_hostile_is_refused() {
    for (layer, why) in [
        (Layer::new().file("../escaped", 0o644, b"x"), "`..`"),
        (Layer::new().hardlink("link", "nowhere"), "in no layer below"),
        (Layer::new().dir("d", 0o755).hardlink("link", "d"), "the folder"),
        (Layer::new().device("hole", 0o600, 0, 0), "0/0"),
        (Layer::new().symlink("./", "/"), "the root"),
        (Layer::new().file("n".repeat(256), 0o644, b""), "bytes of a name"),
        (Layer::new().symlink("l", "t".repeat(4096)), "bytes of a link"),
        (Layer::new().file("f", 0o644, b"").xattr("user.x", &[0; 65_536]), "65,535"),
        (Layer::new().file("f", 0o644, b"").xattr("system.posix_acl_access", b"x"), "access list"),
        (Layer::new().raw(&[7; 2048]), "tar"),
    ] {
        let err = make(&layer.tar(), &Options::default()).err().expect(why).to_string();
        assert!(err.contains(why), "{why}: {err}");
    }
    let many = (0..20).fold(Layer::new(), |layer, at| layer.file(format!("{at}/a/b/c/d"), 0o644, b""));
    let mut limits = apply::Limits::default();
    limits.entries = 30;
    let err = make(&many.tar(), &Options::default().limits(limits)).err().expect("they imply too many");
    assert!(matches!(err, Error::Limit { .. }), "{err:?}");
}

/// One entry of a random layer: few names, so that they meet often.
fn entry() -> impl Strategy<Value = (u8, usize, u8)> {
    (0..9u8, 0..PATHS.len(), any::<u8>())
}

const PATHS: [&str; 9] = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "c", "c/a", "longer-name"];

fn layer(entries: &[(u8, usize, u8)]) -> Layer {
    // Mostly of something that is there: a layer that is refused shows little.
    let mut last_file = None;
    entries.iter().fold(root().mtime(5), |layer, (kind, path, random)| {
        let (path, other) = (PATHS[*path], PATHS[usize::from(*random) % PATHS.len()]);
        let size = usize::from(*random) * 50;
        let layer = match kind {
            0 | 1 => layer.file(path, 0o600 | u32::from(*random), &vec![*random; size]),
            2 | 3 => layer.dir(path, 0o700 | u32::from(*random & 0o77)),
            4 => layer.symlink(path, other),
            5 => layer.hardlink(path, last_file.unwrap_or(other)),
            6 => layer.fifo(path, 0o644),
            7 => layer.file(path, 0o644, b"").xattr("user.x", &vec![1; size % 2000]),
            _ => layer.dir(path, 0o755).xattr("user.y", &vec![2; size % 60]),
        };
        if matches!(kind, 0 | 1 | 7) {
            last_file = Some(path);
        }
        layer.owner(u64::from(*random), 7).mtime(i64::from(*random))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn random_layers_are_what_apply_makes_of_them(entries in proptest::collection::vec(entry(), 0..24)) {
        let tar = layer(&entries).tar();
        match (make(&tar, &Options::default()), applied(&tar, Whiteouts::Remove)) {
            (Ok(made), Ok(expected)) => {
                made.check();
                assert_same(&made.tree(), &expected);
            }
            (Err(_), Err(_)) => {}
            (made, expected) => panic!("{:?} or {:?}", made.map(|it| it.converted), expected.map(|_| "a tree")),
        }
    }
}
