//! Everything that a layer can say comes out as it says it.

mod support;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Command,
};

use support::{Place, both, paths, root};
use windlass_rootfs::{
    Error,
    apply::{IdMap, Limits, Options},
};
use windlass_snapshot::Whiteouts;
use windlass_testkit::{Layer, Node, NodeType, Tree, require};

fn node<'a>(tree: &'a Tree, path: &str) -> &'a Node {
    tree.nodes.get(Path::new(path)).unwrap_or_else(|| panic!("no {path} in {:?}", paths(tree)))
}

#[test]
fn every_type_has_its_mode_owner_and_time() {
    let layer = root()
        .dir("dir", 0o3755)
        .owner(1, 2)
        .mtime(-5)
        .file("file", 0o6711, b"content")
        .owner(3_000_000_000, 4_294_967_294)
        .mtime(20_000_000_000)
        .pax("mtime", b"-1.25")
        .file("none", 0o000, b"")
        .mtime(7)
        .symlink("link", "/../nowhere")
        .owner(5, 6)
        .mtime(8)
        .fifo("fifo", 0o1642)
        .owner(7, 8)
        .mtime(9)
        .device("char", 0o4666, 1, 3)
        .owner(9, 10)
        .mtime(10)
        .hardlink("hard", "file");

    let tree = both(&[layer]);

    for (path, kind, mode, owner, mtime) in [
        ("dir", NodeType::Dir, 0o3755, (1, 2), (-5, 0)),
        ("file", NodeType::File, 0o6711, (3_000_000_000, 4_294_967_294), (-2, 750_000_000)),
        ("none", NodeType::File, 0o000, (0, 0), (7, 0)),
        ("link", NodeType::Symlink, 0o777, (5, 6), (8, 0)),
        ("fifo", NodeType::Fifo, 0o1642, (7, 8), (9, 0)),
        ("char", NodeType::CharDevice, 0o4666, (9, 10), (10, 0)),
    ] {
        let node = node(&tree, path);
        let found = (node.kind, node.mode, (node.uid, node.gid), node.mtime);
        assert_eq!(found, (kind, mode, owner, mtime), "{path}");
    }
    assert_eq!(node(&tree, "hard").links, node(&tree, "file").links);
    assert_eq!(node(&tree, "link").target.as_deref(), Some(Path::new("/../nowhere")));
    assert_eq!(node(&tree, "char").rdev, 0x103);
}

#[test]
fn the_order_of_entries_does_not_change_the_times_of_folders() {
    let layer = root()
        .dir("a", 0o755)
        .mtime(5)
        .dir("a/b", 0o500)
        .mtime(6)
        .file("a/b/file", 0o644, b"")
        .file("a/file", 0o644, b"")
        .dir("a/b", 0o555)
        .mtime(8)
        .file("implied/deep/file", 0o644, b"");

    let tree = both(&[layer]);

    for (path, mode, mtime) in [
        ("", 0o755, 1),
        ("a", 0o755, 5),
        ("a/b", 0o555, 8),
        ("implied", 0o755, 0),
        ("implied/deep", 0o755, 0),
    ] {
        assert_eq!((node(&tree, path).mode, node(&tree, path).mtime), (mode, (mtime, 0)), "{path:?}");
    }
}

#[test]
fn a_layer_changes_no_times_of_folders_that_it_does_not_declare() {
    let lower = root().dir("d", 0o755).mtime(5).file("d/old", 0o644, b"").dir("d/e", 0o755).mtime(6);
    let upper = Layer::new().file("d/new", 0o644, b"").whiteout("d/old").file("d/e/new", 0o644, b"");

    let tree = both(&[lower, upper]);

    let times = ["", "d", "d/e"].map(|path| node(&tree, path).mtime.0);
    assert_eq!(times, [1, 5, 6]);
}

#[test]
fn a_folder_that_is_declared_again_has_what_its_last_entry_says_and_nothing_else() {
    let lower = root()
        .dir("d", 0o1777)
        .owner(1, 2)
        .mtime(5)
        .xattr("user.old", b"x")
        .xattr("security.old", b"x")
        .xattr("user.both", b"old")
        .pax("SCHILY.acl.default", b"user::rwx,group::---,group:7:rwx,mask::rwx,other::---")
        .file("d/old", 0o644, b"");
    let upper =
        root().dir("d", 0o700).owner(3, 4).mtime(6).xattr("user.both", b"new").file("d/new", 0o644, b"");

    let tree = both(&[lower, upper]);

    let d = node(&tree, "d");
    assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o700, 3, 4, (6, 0)));
    assert_eq!(d.xattrs, BTreeMap::from([(OsString::from("user.both"), b"new".to_vec())]));
    for path in ["d/old", "d/new"] {
        assert!(node(&tree, path).xattrs.is_empty(), "{path} has no ACL of its own");
    }
}

#[test]
fn attributes_are_kept_that_a_layer_may_set() {
    // cap_net_raw=ep
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl = b"user::rwx,user:502:rw-,group::r-x,mask::rwx,other::---";
    let layer = root()
        .file("ping", 0o4755, b"program")
        .owner(1, 1)
        .xattr("security.capability", &capability)
        .file("file", 0o670, b"")
        .xattr("user.binary", &[0, 255, b'\n', b'='])
        .xattr("user.empty", b"")
        .pax("LIBARCHIVE.xattr.user.other", b"AP8")
        .pax("SCHILY.acl.access", acl)
        .xattr("user.overlay.opaque", b"y")
        .xattr("trusted.overlay.opaque", b"y")
        .xattr("trusted.mine", b"y")
        .xattr("com.apple.quarantine", b"x")
        .dir("dir", 0o750)
        .xattr("user.note", b"x")
        .pax("SCHILY.acl.default", acl)
        .file("dir/inner", 0o640, b"")
        .dir("dir/sub", 0o710)
        .symlink("dir/link", "inner")
        .fifo("dir/fifo", 0o600)
        .symlink("link", "file")
        .xattr("user.no.place", b"x");

    let tree = both(&[layer]);

    let names =
        |path| node(&tree, path).xattrs.keys().map(|it| it.to_str().expect("UTF-8")).collect::<Vec<_>>();
    assert_eq!(node(&tree, "ping").xattrs[OsStr::new("security.capability")], capability);
    assert_eq!(node(&tree, "ping").mode, 0o4755);
    assert_eq!(names("file"), ["system.posix_acl_access", "user.binary", "user.empty", "user.other"]);
    assert_eq!(node(&tree, "file").xattrs[OsStr::new("user.binary")], [0, 255, b'\n', b'=']);
    assert_eq!(node(&tree, "file").xattrs[OsStr::new("user.other")], [0, 255]);
    assert_eq!(names("dir"), ["system.posix_acl_default", "user.note"]);
    for (path, mode) in [("dir/inner", 0o640), ("dir/sub", 0o710), ("dir/fifo", 0o600), ("link", 0o777)] {
        assert!(names(path).is_empty(), "{path} takes nothing from its folder");
        assert_eq!(node(&tree, path).mode, mode, "{path}");
    }
}

#[test]
fn acls_of_a_lower_folder_reach_nothing_that_is_made_in_it() {
    let acl = b"user::rwx,group::---,group:7:rwx,mask::rwx,other::---";
    let lower = root().dir("dir", 0o2770).owner(0, 7).pax("SCHILY.acl.default", acl);
    let upper = Layer::new().file("dir/file", 0o644, b"").dir("dir/sub", 0o755).fifo("dir/fifo", 0o644).file(
        "dir/implied/file",
        0o600,
        b"",
    );

    let tree = both(&[lower, upper]);

    for (path, mode) in [("dir/file", 0o644), ("dir/sub", 0o755), ("dir/fifo", 0o644), ("dir/implied", 0o755)]
    {
        let node = node(&tree, path);
        assert_eq!((node.mode, node.gid, node.xattrs.len()), (mode, 0, 0), "{path}");
    }
}

#[test]
fn names_are_bytes_of_any_length() {
    let long = "n".repeat(255);
    let deep = format!("{}{long}", "folder/".repeat(60));
    let odd = OsStr::from_bytes(b"not-\xff\xfe-utf8\n");
    let layer = root()
        .file(odd, 0o644, b"")
        .symlink("to-odd", odd)
        .file(&deep, 0o644, b"deep")
        .hardlink("hard", &deep)
        .symlink("long-target", "t".repeat(4000));

    let tree = both(&[layer]);

    assert!(tree.nodes.contains_key(Path::new(odd)));
    assert_eq!(node(&tree, "to-odd").target.as_deref(), Some(Path::new(odd)));
    assert_eq!(node(&tree, "hard").links.len(), 2);
    assert_eq!(node(&tree, "long-target").target.as_ref().map(|it| it.as_os_str().len()), Some(4000));
}

#[test]
fn what_gnu_tar_writes_is_read_as_it_was() {
    let source = tempfile::tempdir().expect("a temporary folder can be made");
    let long = source.path().join("l".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).expect("the folder is new");
    let mut file = File::create(long.join("file")).expect("the folder is new");
    file.write_all(b"content").expect("there is room");
    let far = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
        last_modification: rustix::fs::Timespec { tv_sec: -86_401, tv_nsec: 123_456_789 },
    };
    rustix::fs::futimens(&file, &far).expect("it is ours");
    std::os::unix::fs::symlink("t".repeat(150), source.path().join("link")).expect("it is new");
    fs::hard_link(long.join("file"), source.path().join("hard")).expect("it is new");
    std::os::unix::fs::chown(long.join("file"), Some(3_000_000_000), Some(70_000)).expect("we are root");
    for (format, nanoseconds) in [("gnu", false), ("pax", true)] {
        let tar = Command::new(require("tar", "tar"))
            .args(["-c", "-f", "-", "-C"])
            .arg(source.path())
            .arg(format!("--format={format}"))
            .arg(".")
            .output()
            .expect("tar starts");
        assert!(tar.status.success(), "{format}");
        let place = Place::new();

        place.apply(&tar.stdout, &Options::default()).unwrap_or_else(|err| panic!("{format}: {err}"));

        let (mut want, mut found) = (Tree::read(source.path()), place.tree());
        if !nanoseconds {
            for node in want.nodes.values_mut().chain(found.nodes.values_mut()) {
                node.mtime.1 = 0;
            }
        }
        let differences = want.diff(&found);
        assert!(differences.is_empty(), "{format}: {differences:?}");
    }
}

/// A record of a PAX header, in one of its own, before whatever comes.
fn header(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest..).find(|length| rest + length.to_string().len() == *length).expect("it grows");
        text.push_str(&format!("{length} {key}={value}\n"));
    }
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(text.len() as u64);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), text.as_bytes()].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn global_headers_count_until_something_else_is_said() {
    let layer = root()
        .raw(&header(b'g', &[("uid", "70"), ("gid", "71"), ("SCHILY.xattr.user.all", "x")]))
        .file("first", 0o644, b"")
        .file("second", 0o644, b"")
        .pax("uid", b"80")
        .file("third", 0o644, b"")
        .pax("gid", b"")
        .raw(&header(b'g', &[("uid", "72")]))
        .file("fourth", 0o644, b"");

    let tree = both(&[layer]);

    for (path, uid, gid) in [("first", 70, 71), ("second", 80, 71), ("third", 70, 0), ("fourth", 72, 71)] {
        let node = node(&tree, path);
        assert_eq!((node.uid, node.gid), (uid, gid), "{path}");
        assert_eq!(node.xattrs[OsStr::new("user.all")], b"x", "{path}");
    }
}

/// A header with a checksum, and its data.
fn raw(kind: u8, name: &str, data: &[u8], change: impl Fn(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("the name is short");
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    change(&mut header);
    header.set_cksum();
    let mut bytes = [header.as_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn sizes_of_pax_headers_win_and_what_is_all_header_has_no_data() {
    let next = raw(b'0', "next", b"next", |_| {});
    for (what, bytes) in [
        (
            "a size",
            [header(b'x', &[("size", "5")]), raw(b'0', "it", b"12345", |header| header.set_size(3))].concat(),
        ),
        (
            "a link with a size",
            raw(b'2', "it", b"", |header| {
                header.set_size(5000);
                header.set_link_name("to").expect("it is short");
            }),
        ),
        ("a folder with a size", [header(b'x', &[("size", "5000")]), raw(b'5', "it", b"", |_| {})].concat()),
        ("a fifo with a size", raw(b'6', "it", b"", |header| header.set_size(1 << 33))),
        ("a folder by its slash", raw(b'0', "it/", b"data of nothing", |_| {})),
    ] {
        let place = Place::new();

        place
            .apply(&[bytes, next.clone()].concat(), &Options::default())
            .unwrap_or_else(|err| panic!("{what}: {err}"));

        assert_eq!(paths(&place.tree()), ["it", "next"], "{what}");
    }
}

#[test]
fn every_byte_after_the_end_counts_for_the_digest() {
    let tar = root().file("file", 0o644, b"content").tar();
    for more in [0, 1, 511, 10_240, 300_000] {
        let whole = [&tar[..], &vec![0; more]].concat();
        let place = Place::new();

        let applied = place.apply(&whole, &Options::default()).expect("it is well-formed");

        assert_eq!(applied.diff_id, windlass_content::hash::sha256(&whole), "{more}");
        assert_eq!(applied.entries, 2);
    }
    let without_end = &tar[..tar.len() - 1024];
    Place::new().apply(without_end, &Options::default()).expect("the end may be missing");
}

#[test]
fn what_is_malformed_is_refused_with_the_entry() {
    let number = |at: usize, text: &'static [u8]| {
        move |header: &mut tar::Header| {
            header.as_mut_bytes()[at..at + text.len()].copy_from_slice(text);
        }
    };
    let big = b"\x80\0\0\x01\0\0\0\0";
    for (what, bytes, why) in [
        ("type", raw(b'V', "it", b"", |_| {}), "type 'V' is not known"),
        ("type", raw(b'D', "it", b"", |_| {}), "type 'D' is not known"),
        ("uid", raw(b'0', "it", b"", number(108, big)), "owner is malformed"),
        ("uid", raw(b'0', "it", b"", number(108, b"9999999\0")), "owner is malformed"),
        (
            "uid -1",
            [header(b'x', &[("uid", "4294967295")]), raw(b'0', "it", b"", |_| {})].concat(),
            "owner is malformed",
        ),
        (
            "gid",
            [header(b'x', &[("gid", "-7")]), raw(b'0', "it", b"", |_| {})].concat(),
            "group is malformed",
        ),
        ("mode", raw(b'0', "it", b"", number(100, b"xyz\0\0\0\0\0")), "mode is malformed"),
        (
            "time",
            [header(b'x', &[("mtime", "now")]), raw(b'0', "it", b"", |_| {})].concat(),
            "time is malformed",
        ),
        (
            "size",
            [header(b'x', &[("size", "0x5")]), raw(b'0', "it", b"", |_| {})].concat(),
            "size is malformed",
        ),
        (
            "size",
            raw(b'0', "it", b"", number(124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")),
            "size is malformed",
        ),
        ("major", raw(b'3', "it", b"", number(329, b"0010000\0")), "device number is malformed"),
        ("minor", raw(b'4', "it", b"", number(337, b"4000000\0")), "device number is malformed"),
        ("target", raw(b'2', "it", b"", |_| {}), "link to nothing"),
        (
            "acl",
            [header(b'x', &[("SCHILY.acl.access", "user:lisa:rwx")]), raw(b'0', "it", b"", |_| {})].concat(),
            "numeric",
        ),
        (
            "base64",
            [header(b'x', &[("LIBARCHIVE.xattr.user.a", "*")]), raw(b'0', "it", b"", |_| {})].concat(),
            "base64",
        ),
        (
            "sparse",
            [
                header(b'x', &[("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")]),
                raw(b'0', "it", b"", |_| {}),
            ]
            .concat(),
            "not known",
        ),
        (
            "sparse map",
            [
                header(b'x', &[("GNU.sparse.map", "0,9"), ("GNU.sparse.size", "5")]),
                raw(b'0', "it", b"", |_| {}),
            ]
            .concat(),
            "larger than the file",
        ),
    ] {
        let place = Place::new();
        let err = place.apply(&bytes, &Options::default()).expect_err(what);
        let text = err.to_string();
        assert!(text.contains(why) && text.contains("\"it\""), "{what}: {text}");
        assert_eq!(paths(&place.tree()), [""; 0], "{what}");
    }
    for (what, bytes) in [
        ("a record", [header(b'x', &[("a", "b\u{0}")]), b"17 path=x\n".to_vec()].concat()),
        ("a checksum", vec![7; 512]),
        ("a cut header", raw(b'0', "it", b"", |_| {})[..300].to_vec()),
        ("cut data", raw(b'0', "it", b"12345", |_| {})[..514].to_vec()),
        ("cut padding", raw(b'0', "it", b"12345", |_| {})[..600].to_vec()),
        ("a header without its member", header(b'x', &[("path", "it")])),
        ("something after an empty block", [vec![0; 512], raw(b'0', "hidden", b"", |_| {})].concat()),
    ] {
        let err = Place::new().apply(&bytes, &Options::default()).expect_err(what);
        assert!(matches!(err, Error::Tar { .. }), "{what}: {err:?}");
    }
}

#[test]
fn every_limit_says_which_entry_and_which_limit() {
    let layer = || {
        root().dir("a", 0o755).file("a/it", 0o644, b"12345678").xattr("user.a", b"1").xattr("user.b", b"2")
    };
    type Lower = fn(&mut Limits);
    for (what, lower) in [
        ("entries", (|limits| limits.entries = 2) as Lower),
        ("folders above each other", |limits| limits.depth = 1),
        ("bytes of a path", |limits| limits.path = 3),
        ("bytes of a name", |limits| limits.name = 1),
        ("bytes of headers", |limits| limits.headers = 530),
        ("extended attributes", |limits| limits.xattrs = 1),
        ("bytes of extended attributes", |limits| limits.xattr_bytes = 10),
        ("bytes of a file", |limits| limits.file = 7),
        ("bytes of the plain archive", |limits| limits.total = 4000),
    ] {
        let mut limits = Limits::default();
        lower(&mut limits);
        let err = Place::new().apply(&layer().tar(), &Options::default().limits(limits)).expect_err(what);
        match err {
            Error::Limit { entry, what: found, .. } => {
                assert_eq!(found, what);
                assert!(
                    entry.ends_with("it") || entry.ends_with("entry") || found.contains("archive"),
                    "{what}: {entry:?}"
                );
            }
            other => panic!("{what}: {other:?}"),
        }
    }
}

#[test]
fn ids_are_mapped_everywhere() {
    let range = |host| format!("0 {host} 1000").parse().expect("a range");
    let map = IdMap::ranges([range(100_000)], [range(200_000)]);
    let lower = root().dir("d", 0o755).owner(5, 6).file("d/file", 0o644, b"").owner(7, 8);
    let place = Place::new();

    place.apply(&lower.tar(), &Options::default().ids(map.clone())).expect("all ids are mapped");
    let implied = Layer::new().file("new/file", 0o4755, b"").symlink("link", "x").owner(1, 1).dir("d", 0o700);
    place.apply(&implied.tar(), &Options::default().ids(map.clone())).expect("all ids are mapped");

    let tree = place.tree();
    for (path, uid, gid) in
        [("", 0, 0), ("d", 0, 0), ("d/file", 7, 8), ("new", 0, 0), ("new/file", 0, 0), ("link", 1, 1)]
    {
        let node = node(&tree, path);
        assert_eq!((node.uid, node.gid), (100_000 + uid, 200_000 + gid), "{path:?}");
    }
    assert_eq!(node(&tree, "new/file").mode, 0o4755);
    let unmapped = root().file("it", 0o644, b"").owner(5000, 0);
    let err =
        place.apply(&unmapped.tar(), &Options::default().ids(map.clone())).expect_err("5000 is in no range");
    assert!(err.to_string().contains("\"it\"") && err.to_string().contains("user 5000"), "{err}");
    let squashed = Options::default().ids(map.squash_unmapped(true));
    place.apply(&unmapped.tar(), &squashed).expect("it is squashed");
    assert_eq!(node(&place.tree(), "it").gid, 200_000);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    // Another process, since a umask is a process's.
    const DONE: &str = "WINDLASS_TEST_UMASK";
    if let Some(folder) = std::env::var_os(DONE) {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let root = support::open(Path::new(&folder));
        let layer = Layer::new().file("file", 0o666, b"").dir("dir", 0o777).fifo("fifo", 0o622).file(
            "implied/x",
            0o777,
            b"",
        );
        windlass_rootfs::apply::apply(&layer.tar()[..], &root, &Options::default())
            .expect("it is well-formed");
        let umask = rustix::process::umask(rustix::fs::Mode::empty());
        assert_eq!(umask.as_raw_mode(), 0o077, "ours stays");
        return;
    }
    let place = Place::new();
    let test = std::env::current_exe().expect("it is running");

    let done = Command::new(test)
        .args(["--exact", "modes_do_not_depend_on_the_umask"])
        .env(DONE, place.root())
        .status()
        .expect("it starts");

    assert!(done.success());
    let tree = place.tree();
    for (path, mode) in
        [("file", 0o666), ("dir", 0o777), ("fifo", 0o622), ("implied", 0o755), ("implied/x", 0o777)]
    {
        assert_eq!(node(&tree, path).mode, mode, "{path}");
    }
}

#[test]
fn whiteouts_of_an_overlay_are_devices_and_attributes() {
    for (whiteouts, attribute) in
        [(Whiteouts::Overlay, "trusted.overlay.opaque"), (Whiteouts::UserOverlay, "user.overlay.opaque")]
    {
        let place = Place::new();
        let layer = root().whiteout("gone").dir("opaque", 0o755).opaque("opaque");

        place.apply(&layer.tar(), &Options::default().whiteouts(whiteouts)).expect("it is well-formed");

        let tree = place.tree();
        let gone = node(&tree, "gone");
        assert_eq!((gone.kind, gone.rdev), (NodeType::CharDevice, 0));
        assert_eq!(node(&tree, "opaque").xattrs[OsStr::new(attribute)], b"y");
    }
}
