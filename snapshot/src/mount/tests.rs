use std::{
    fs,
    os::unix::fs::MetadataExt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rustix::fs::{StatVfsMountFlags, openat, statvfs};
use tempfile::TempDir;

use super::{options::Options, *};

fn one(fstype: &str, source: impl Into<PathBuf>, options: &[String]) -> Mount {
    Mount { fstype: fstype.into(), source: source.into(), options: options.to_vec() }
}

fn bind(source: impl Into<PathBuf>, options: &[&str]) -> Mount {
    one("bind", source, &options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
}

/// A folder with these folders in it.
fn folders(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for name in names {
        fs::create_dir(dir.path().join(name)).expect("a folder");
    }
    dir
}

/// An overlay with folders `lower`, `upper` and `work`.
fn overlay(dir: &TempDir) -> Mount {
    let option = |name: &str| format!("{name}dir={}", dir.path().join(name).display());
    one("overlay", "overlay", &["lower", "upper", "work"].map(option))
}

#[test]
fn a_mount_reads_as_the_command_that_makes_it() {
    let plain = one("overlay", "overlay", &["ro".into(), "lowerdir=/a:/b".into()]);
    let odd = bind("/it's here", &["ro", "rbind"]);

    let lines = [plain.command_line(Path::new("/mnt")), odd.command_line(Path::new("/mnt/$HOME"))];

    assert_eq!(lines[0], "mount -t overlay overlay /mnt -o ro,lowerdir=/a:/b");
    assert_eq!(lines[1], r"mount -t bind '/it'\''s here' '/mnt/$HOME' -o ro,rbind");
}

#[test]
fn unmounting_where_nothing_is_mounted_succeeds() {
    let dir = folders(&[]);

    unmount(dir.path()).expect("nothing to do");
}

#[test]
fn the_old_interface_and_the_new_one_show_the_same_tree() {
    let dir = folders(&["high", "low"]);
    let path = |name: &str| dir.path().join(name).display().to_string();
    for name in ["high", "low"] {
        fs::write(dir.path().join(name).join(name), name).expect("a file");
    }
    let both =
        one("overlay", "overlay", &["ro".into(), format!("lowerdir={}:{}", path("high"), path("low"))]);
    let apart = [format!("lowerdir+={}", path("high")), format!("lowerdir+={}", path("low"))];
    let apart = one("overlay", "overlay", &["ro".into(), apart[0].clone(), apart[1].clone()]);

    for one in [both, apart] {
        let options = Options::parse(&one.options).expect("they are options");
        let old = kernel::detached_by_path(&one, &options).expect("the old one");
        for tree in [kernel::detached(&one).expect("the new one"), old] {
            for name in ["high", "low"] {
                openat(&tree, name, OFlags::RDONLY, Mode::empty()).expect(name);
            }
            let flags = OFlags::CREATE | OFlags::WRONLY;
            let err = openat(&tree, "new", flags, Mode::RWXU).expect_err("it is read-only");
            assert_eq!(err, Errno::ROFS);
        }
    }
}

#[test]
fn the_old_interface_takes_more_layers_than_a_page_can_name_in_full() {
    let names: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let dir = folders(&names.iter().map(String::as_str).chain(["target"]).collect::<Vec<_>>());
    fs::write(dir.path().join("199/lowest"), "").expect("a file");
    let layer = |name: &String| format!("lowerdir+={}", dir.path().join(name).display());
    let many = one("overlay", "overlay", &names.iter().map(layer).collect::<Vec<_>>());
    assert!(many.options.join(",").len() > 4096, "{}", many.options.join(",").len());
    let target = dir.path().join("target");

    let options = Options::parse(&many.options).expect("they are options");
    kernel::classic(&many, &options, &target).expect("they are shorter from the folder above");

    let shown = target.join("lowest").exists();
    unmount(&target).expect("nobody uses it");
    assert!(shown);
}

#[test]
fn a_tree_is_opened_without_a_trace_in_the_file_system() {
    let dir = folders(&["lower", "upper", "work"]);
    let mounted = || fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    let before = mounted();

    let tree = open_tree(&[overlay(&dir)]).expect("an overlay");
    rustix::fs::mkdirat(&tree, "new", Mode::RWXU).expect("it can be written");

    assert!(dir.path().join("upper/new").is_dir(), "what is written lands in the upper folder");
    let place = dir.path().display().to_string();
    assert!(!before.contains(&place), "the folder is not mounted before");
    assert!(!mounted().contains(&place), "nor afterwards");
}

#[test]
fn a_failed_mount_unmounts_those_before_it() {
    let dir = folders(&["source", "target"]);
    fs::write(dir.path().join("source/file"), "").expect("a file");
    let bind = |source: &str| bind(dir.path().join(source), &["rw"]);
    let target = dir.path().join("target");

    let err = mount_all(&[bind("source"), bind("missing")], &target).expect_err("a source is missing");

    assert!(matches!(err, Error::Mount { .. }), "{err:?}");
    assert!(!target.join("file").exists(), "the first mount is gone");
}

#[test]
fn a_bind_mount_keeps_what_the_mount_that_it_shows_forbids() {
    let dir = folders(&["source", "target", "old"]);
    let forbidding = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV | StatVfsMountFlags::NOEXEC;
    let source = dir.path().join("source");
    let strict = one("tmpfs", "tmpfs", &["nosuid", "nodev", "noexec"].map(str::to_owned));
    mount_all(&[strict], &source).expect("a tmpfs");
    let read_only = bind(&source, &["ro", "rbind"]);
    let flags = |path: &str| statvfs(dir.path().join(path)).expect("it is there").f_flag;

    mount_all(std::slice::from_ref(&read_only), &dir.path().join("target")).expect("the new interface");
    let options = Options::parse(&read_only.options).expect("they are options");
    let old = kernel::classic(&read_only, &options, &dir.path().join("old"));

    let seen = [flags("source"), flags("target"), flags("old")];
    for name in ["old", "target", "source"] {
        unmount(&dir.path().join(name)).expect("nobody uses it");
    }
    old.expect("the old interface");
    assert!(!seen[0].contains(StatVfsMountFlags::RDONLY));
    for flags in &seen[1..] {
        assert!(flags.contains(forbidding | StatVfsMountFlags::RDONLY), "{flags:?}");
    }
}

#[test]
fn a_temporary_mount_is_gone_afterwards_even_after_a_panic() {
    let dir = folders(&["source"]);
    fs::write(dir.path().join("source/file"), "text").expect("a file");
    let mounts = [bind(dir.path().join("source"), &["ro"]), bind(dir.path().join("source"), &["ro"])];
    let mut place = PathBuf::new();

    let text = temp_mount(&mounts, |tree| {
        place = tree.to_owned();
        fs::read_to_string(tree.join("file")).expect("it is shown")
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        temp_mount(&mounts, |tree| {
            place = tree.to_owned();
            panic!("as a test");
        })
    }));

    assert_eq!(text.expect("it mounts"), "text");
    assert!(panicked.is_err());
    assert!(!place.exists(), "{}", place.display());
    assert!(dir.path().join("source/file").exists(), "what it showed is not its own");
}

#[test]
fn owners_are_shown_as_others_and_written_back() {
    let dir = folders(&["lower", "upper", "work"]);
    fs::write(dir.path().join("lower/file"), "text").expect("a file");
    std::os::unix::fs::chown(dir.path().join("lower/file"), Some(5), Some(6)).expect("chown");
    let users = IdMap { inside: 0, outside: 100_000, count: 1000 };
    let groups = IdMap { inside: 0, outside: 200_000, count: 1000 };
    let owner = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.uid(), meta.gid())).expect("there");
    for (mounts, disk) in [(bind(dir.path().join("lower"), &["rbind"]), "lower"), (overlay(&dir), "upper")] {
        let mapped = mounts.idmapped(&[users], &[groups]);

        let seen = temp_mount(std::slice::from_ref(&mapped), |tree| {
            let seen = owner(&tree.join("file"));
            fs::create_dir(tree.join("new")).expect_err("nobody is root of the host in there");
            std::os::unix::fs::chown(tree.join("file"), Some(100_007), Some(200_008)).expect("mapped ids");
            (seen, owner(&tree.join("file")))
        });

        assert_eq!(seen.expect("this kernel can"), ((100_005, 200_006), (100_007, 200_008)), "{mapped}");
        assert_eq!(owner(&dir.path().join(disk).join("file")), (7, 8), "{mapped}");
        std::os::unix::fs::chown(dir.path().join("lower/file"), Some(5), Some(6)).expect("chown");
        let tree = open_tree(&[mapped]).expect("this kernel can");
        rustix::fs::statat(&tree, "file", rustix::fs::AtFlags::empty()).expect("it is shown");
    }
}

#[test]
fn the_old_interface_and_the_new_one_map_the_owners_of_an_overlay_alike() {
    let dir = folders(&["lower", "upper", "work"]);
    fs::write(dir.path().join("lower/file"), "text").expect("a file");
    let ids = IdMap { inside: 0, outside: 100_000, count: 1000 };
    let mapped = overlay(&dir).idmapped(&[ids], &[ids]);
    let options = Options::parse(&mapped.options).expect("they are options");

    let new = kernel::detached(&mapped).expect("the new one");
    let seen = rustix::fs::statat(&new, "file", rustix::fs::AtFlags::empty()).expect("it is shown");
    drop(new);
    let old = kernel::overlay_of_mapped(&options, |layers| kernel::by_path_of_mapped(&mapped, layers));
    let old = old.expect("the old one");

    let stat = rustix::fs::statat(&old, "file", rustix::fs::AtFlags::empty()).expect("it is shown");
    assert_eq!((stat.st_uid, stat.st_gid), (seen.st_uid, seen.st_gid));
    assert_eq!((seen.st_uid, seen.st_gid), (100_000, 100_000));
    let owner = Some(rustix::fs::Uid::from_raw(100_009));
    rustix::fs::chownat(&old, "file", owner, None, rustix::fs::AtFlags::empty()).expect("it can be written");
    let err =
        openat(&old, "new", OFlags::CREATE, Mode::RWXU).expect_err("nobody is root of the host in there");
    assert_eq!(err, Errno::OVERFLOW);
    assert_eq!(fs::metadata(dir.path().join("upper/file")).expect("it was copied up").uid(), 9);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    assert!(!mounts.contains(&dir.path().display().to_string()), "nothing stays mounted");
}

#[test]
fn owners_are_mapped_by_many_at_once() {
    let dir = folders(&["lower"]);
    let ids = IdMap { inside: 0, outside: 100_000, count: 1000 };
    let mapped = bind(dir.path().join("lower"), &["rbind"]).idmapped(&[ids], &[ids]);

    std::thread::scope(|scope| {
        let map =
            || (0..40).for_each(|_| drop(open_tree(std::slice::from_ref(&mapped)).expect("this kernel can")));
        (0..8).for_each(|_| drop(scope.spawn(map)));
    });
}
