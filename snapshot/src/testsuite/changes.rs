//! Checks of layers that change what is below them.

use std::{
    fs::{self, File},
    os::{
        fd::OwnedFd,
        unix::fs::{FileExt, MetadataExt, symlink},
    },
    path::Path,
};

use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, statat};

use super::{
    Bench, read,
    trees::{mode, names},
    write,
};
use crate::usage_with_parents;

/// Files made, changed, replaced and deleted, in folders made, emptied and replaced.
pub fn each_of_several_layers_shows_what_was_changed_up_to_it(bench: &Bench<'_>) {
    bench.layer("1", None, |tree| {
        fs::create_dir_all(tree.join("etc/deep/er")).expect("folders");
        fs::create_dir(tree.join("var")).expect("a folder");
        for name in ["etc/hosts", "etc/deep/er/file", "var/log", "plain"] {
            write(tree.join(name), "1");
        }
    });
    bench.layer("2", Some("1"), |tree| {
        write(tree.join("etc/hosts"), "2");
        write(tree.join("etc/deep/new"), "2");
        fs::remove_file(tree.join("var/log")).expect("removed");
        fs::remove_file(tree.join("plain")).expect("removed");
        symlink("etc/hosts", tree.join("plain")).expect("a link in the place of a file");
    });
    bench.layer("3", Some("2"), |tree| {
        fs::remove_dir_all(tree.join("etc/deep")).expect("removed");
        write(tree.join("etc/deep"), "3");
        fs::remove_dir(tree.join("var")).expect("it is empty");
        fs::remove_file(tree.join("plain")).expect("removed");
        fs::create_dir(tree.join("plain")).expect("a folder in the place of a link");
        write(tree.join("var"), "3");
    });

    bench.look("1", |tree| {
        assert_eq!(names(tree), ["etc", "plain", "var"]);
        for name in ["etc/hosts", "etc/deep/er/file", "var/log", "plain"] {
            assert_eq!(read(tree.join(name)), "1", "{name}");
        }
        assert_eq!(names(&tree.join("etc/deep")), ["er"]);
    });
    bench.look("2", |tree| {
        assert_eq!(names(&tree.join("var")), Vec::<String>::new());
        assert_eq!(names(&tree.join("etc/deep")), ["er", "new"]);
        assert_eq!(read(tree.join("plain")), "2", "through the link");
        assert_eq!(read(tree.join("etc/deep/er/file")), "1");
    });
    bench.look("3", |tree| {
        assert_eq!(names(&tree.join("etc")), ["deep", "hosts"]);
        assert_eq!([read(tree.join("etc/hosts")), read(tree.join("etc/deep"))], ["2", "3"]);
        assert_eq!(read(tree.join("var")), "3");
        assert_eq!(names(&tree.join("plain")), Vec::<String>::new());
    });
}

/// Where a driver cannot rename it at once, it says `EXDEV`, and whoever renames copies, as `mv` does.
pub fn a_folder_of_a_parent_can_be_renamed(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        fs::create_dir(tree.join("old")).expect("a folder");
        write(tree.join("old/file"), "text");
    });
    bench.layer("high", Some("low"), |tree| {
        fs::create_dir(tree.join("own")).expect("a folder");
        write(tree.join("own/file"), "own");
        fs::rename(tree.join("own"), tree.join("mine"))
            .expect("what is this layer's own can always be renamed");
        match fs::rename(tree.join("old"), tree.join("new")) {
            Err(err) if err.kind() == std::io::ErrorKind::CrossesDevices => {
                fs::create_dir(tree.join("new")).expect("a folder");
                fs::copy(tree.join("old/file"), tree.join("new/file")).expect("a copy");
                fs::remove_dir_all(tree.join("old")).expect("removed");
            }
            renamed => renamed.expect("renamed at once"),
        }
    });
    bench.layer("top", Some("high"), |tree| write(tree.join("new/more"), "more"));

    bench.look("top", |tree| {
        assert_eq!(names(tree), ["mine", "new"]);
        assert_eq!(names(&tree.join("new")), ["file", "more"]);
        assert_eq!([read(tree.join("new/file")), read(tree.join("mine/file"))], ["text", "own"]);
    });
    assert_eq!(bench.look("low", names), ["old"]);
}

/// In the layer that links it, and in those on top.
pub fn a_hard_link_to_a_file_of_a_parent_is_the_same_file(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("one"), "old"));
    bench.layer("high", Some("low"), |tree| {
        fs::hard_link(tree.join("one"), tree.join("two")).expect("a link");
        write(tree.join("two"), "new");
    });

    bench.look("high", |tree| {
        assert_eq!([read(tree.join("one")), read(tree.join("two"))], ["new", "new"]);
        let inode = |name| fs::metadata(tree.join(name)).expect("it is there").ino();
        assert_eq!(inode("one"), inode("two"));
    });
    assert_eq!(bench.look("low", |tree| read(tree.join("one"))), "old");
}

/// A gigabyte that is not there is neither copied nor counted.
pub fn holes_in_files_take_no_space_in_a_child(bench: &Bench<'_>) {
    const SIZE: u64 = 1 << 30;
    bench.layer("low", None, |tree| {
        let file = File::create_new(tree.join("sparse")).expect("it is new");
        file.write_all_at(b"middle", SIZE / 2).expect("written");
        file.set_len(SIZE).expect("set");
    });
    bench.layer("high", Some("low"), |tree| write(tree.join("new"), "text"));

    bench.look("high", |tree| {
        let file = File::open(tree.join("sparse")).expect("it is there");
        assert_eq!(file.metadata().expect("it is there").len(), SIZE);
        let mut middle = [0; 8];
        file.read_exact_at(&mut middle, SIZE / 2 - 1).expect("it is there");
        assert_eq!(&middle, b"\0middle\0");
    });
    // What the mount says of the file's blocks is another thing: EROFS counts its holes.
    let usage = usage_with_parents(&*bench.driver, "high").expect("it is there");
    assert!(usage.bytes < 1 << 20, "{usage:?}");
}

/// Two thousand folders, with a hard link from the bottom to the top.
pub fn a_tree_deeper_than_any_path_is_kept_and_removed(bench: &Bench<'_>) {
    const DEPTH: usize = 2_000;
    bench.layer("low", None, |tree| {
        write(tree.join("top"), "top");
        let mut folder = open(tree);
        let top = folder.try_clone().expect("a second handle");
        for _ in 0..DEPTH {
            mkdirat(&folder, "deep", Mode::from_raw_mode(0o700)).expect("it is new");
            folder = below(&folder);
        }
        rustix::fs::linkat(&top, "top", &folder, "bottom", AtFlags::empty()).expect("a link");
    });
    bench.layer("high", Some("low"), |tree| write(tree.join("new"), "text"));

    bench.look("high", |tree| {
        assert_eq!(mode(&tree.join("deep")), 0o700);
        let mut folder = open(tree);
        let top = statat(&folder, "top", AtFlags::empty()).expect("it is there");
        for _ in 0..DEPTH {
            folder = below(&folder);
        }
        let bottom = statat(&folder, "bottom", AtFlags::empty()).expect("it is there");
        assert_eq!((bottom.st_ino, bottom.st_nlink), (top.st_ino, 2));
    });
    let usage = bench.driver.usage("low").expect("it is there");
    assert_eq!(usage.inodes, DEPTH as u64 + 2, "the top folder, those below, and one file");
    for name in ["high", "low"] {
        bench.driver.remove(name).expect("nothing is on top of it");
    }
    let left = fs::read_dir(bench.root().join("snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "its files are gone");
}

fn open(tree: &Path) -> OwnedFd {
    File::open(tree).expect("it is there").into()
}

fn below(folder: &OwnedFd) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(folder, "deep", flags, Mode::empty()).expect("it is there")
}
