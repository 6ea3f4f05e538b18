//! Checks of the trees that mounts show.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat},
    io::Errno,
};

use super::{Bench, read, write};

/// Three deep.
pub fn parents_are_seen_through_their_children(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("low"), "low"));
    bench.layer("middle", Some("low"), |tree| write(tree.join("middle"), "middle"));
    bench.layer("high", Some("middle"), |tree| write(tree.join("high"), "high"));

    bench.look("high", |tree| {
        for name in ["low", "middle", "high"] {
            assert_eq!(read(tree.join(name)), name);
        }
    });
}

/// Copy on write.
pub fn a_file_changed_in_a_child_stays_as_it_was_in_the_parent(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "old"));

    bench.layer("high", Some("low"), |tree| write(tree.join("file"), "new"));

    assert_eq!(bench.look("low", |tree| read(tree.join("file"))), "old");
    assert_eq!(bench.look("high", |tree| read(tree.join("file"))), "new");
}

/// What was below the old folder stays away.
pub fn a_folder_removed_in_a_child_can_be_made_anew(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        fs::create_dir(tree.join("dir")).expect("a folder");
        write(tree.join("dir/old"), "old");
    });

    bench.layer("high", Some("low"), |tree| {
        fs::remove_dir_all(tree.join("dir")).expect("removed");
        fs::create_dir(tree.join("dir")).expect("made anew");
        write(tree.join("dir/new"), "new");
    });

    assert_eq!(bench.look("high", |tree| names(&tree.join("dir"))), ["new"]);
    assert_eq!(bench.look("low", |tree| names(&tree.join("dir"))), ["old"]);
}

/// Of files and folders, also of those that only a lower layer made.
pub fn owners_survive_a_commit(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        fs::create_dir(tree.join("dir")).expect("a folder");
        for name in ["file", "dir", "dir/below"] {
            if name != "dir" {
                write(tree.join(name), "text");
            }
            chown(tree.join(name), Some(1000), Some(1001)).expect("chown");
        }
    });

    bench.layer("high", Some("low"), |tree| {
        for name in ["file", "dir"] {
            chown(tree.join(name), Some(2000), Some(2001)).expect("chown");
        }
    });

    let owners = |tree: &Path| {
        ["file", "dir", "dir/below"].map(|name| {
            let meta = fs::metadata(tree.join(name)).expect("it is there");
            (meta.uid(), meta.gid())
        })
    };
    assert_eq!(bench.look("low", owners), [(1000, 1001); 3]);
    assert_eq!(bench.look("high", owners), [(2000, 2001), (2000, 2001), (1000, 1001)]);
}

/// Including the sticky bit.
pub fn the_mode_of_a_folder_survives_a_commit(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        fs::create_dir(tree.join("tmp")).expect("a folder");
        fs::set_permissions(tree.join("tmp"), Permissions::from_mode(0o1777)).expect("chmod");
    });
    bench.layer("high", Some("low"), |tree| write(tree.join("tmp/file"), "text"));

    assert_eq!(bench.look("high", |tree| mode(&tree.join("tmp"))), 0o1777);
}

/// Deletions are inherited.
pub fn a_file_deleted_in_a_child_is_gone_in_the_grandchild(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        write(tree.join("gone"), "text");
        write(tree.join("kept"), "text");
    });
    bench.layer("middle", Some("low"), |tree| fs::remove_file(tree.join("gone")).expect("removed"));
    bench.layer("high", Some("middle"), |tree| write(tree.join("new"), "text"));

    assert_eq!(bench.look("high", names), ["kept", "new"]);
}

/// From a lower layer.
pub fn a_file_moved_in_a_child_has_only_its_new_name(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        fs::create_dir(tree.join("dir")).expect("a folder");
        write(tree.join("dir/old"), "text");
    });

    bench.layer("high", Some("low"), |tree| {
        fs::rename(tree.join("dir/old"), tree.join("new")).expect("moved");
    });

    bench.look("high", |tree| {
        assert_eq!(names(tree), ["dir", "new"]);
        assert_eq!(names(&tree.join("dir")), Vec::<String>::new());
        assert_eq!(read(tree.join("new")), "text");
    });
}

/// Neither with one layer below, nor with two, nor with none.
pub fn a_view_cannot_be_written(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "text"));
    bench.layer("high", Some("low"), |_| {});

    for (key, parent) in [("none", None), ("one", Some("low")), ("two", Some("high"))] {
        let mounts = bench.driver.view(key, parent).expect("a view");
        let err = bench.mounted(&mounts, |tree| fs::write(tree.join("new"), "text").expect_err(key));
        assert_eq!(err.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
    }
}

/// 0755 whatever the umask, and then as the image wants it.
pub fn the_root_folder_is_0755_and_keeps_what_the_parent_made_of_it(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        assert_eq!(mode(tree), 0o755);
        fs::set_permissions(tree, Permissions::from_mode(0o711)).expect("chmod");
        chown(tree, Some(7), Some(8)).expect("chown");
    });

    let mounts = bench.driver.prepare("high", Some("low")).expect("a committed parent");

    bench.mounted(&mounts, |tree| {
        let meta = fs::metadata(tree).expect("the root");
        assert_eq!((mode(tree), meta.uid(), meta.gid()), (0o711, 7, 8));
    });
}

/// Everything that a tar archive can say of a file.
pub fn links_devices_attributes_and_times_survive_a_commit(bench: &Bench<'_>) {
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    bench.layer("low", None, |tree| {
        write(tree.join("file"), "text");
        fs::hard_link(tree.join("file"), tree.join("hard")).expect("a link");
        symlink("no/such/target", tree.join("soft")).expect("a link");
        mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("a fifo");
        let null = rustix::fs::makedev(1, 3);
        let made = mknodat(CWD, tree.join("null"), FileType::CharacterDevice, Mode::RUSR, null);
        // In a user namespace nobody may make devices.
        made.or_else(|err| if err == Errno::PERM && in_user_namespace() { Ok(()) } else { Err(err) })
            .expect("a device");
        lsetxattr(tree.join("file"), "user.note", b"kept", XattrFlags::empty()).expect("an attribute");
        let file = fs::File::options().write(true).open(tree.join("file")).expect("the file");
        file.set_modified(time).expect("a time");
        fs::set_permissions(tree.join("file"), Permissions::from_mode(0o4755)).expect("chmod");
    });
    bench.layer("high", Some("low"), |_| {});

    bench.look("high", |tree| {
        let file = fs::metadata(tree.join("file")).expect("the file");
        assert_eq!(file.modified().expect("a time"), time);
        assert_eq!(mode(&tree.join("file")), 0o4755);
        assert_eq!(file.nlink(), 2);
        assert_eq!(fs::metadata(tree.join("hard")).expect("the link").ino(), file.ino());
        assert_eq!(fs::read_link(tree.join("soft")).expect("the link"), Path::new("no/such/target"));
        let raw = |name| fs::symlink_metadata(tree.join(name)).expect("it is there");
        assert_eq!(FileType::from_raw_mode(raw("fifo").mode()), FileType::Fifo);
        if !in_user_namespace() {
            assert_eq!(raw("null").rdev(), rustix::fs::makedev(1, 3));
        }
        let mut value = [0; 8];
        let length = lgetxattr(tree.join("file"), "user.note", &mut value[..]).expect("the attribute");
        assert_eq!(&value[..length], b"kept");
    });
}

/// More than one page of mount options can name.
pub fn a_hundred_and_twenty_eight_layers_can_be_mounted(bench: &Bench<'_>) {
    bench.layer("0", None, |tree| write(tree.join("0"), "0"));
    for number in 1..128 {
        let (name, parent) = (number.to_string(), (number - 1).to_string());
        bench.layer(&name, Some(&parent), |tree| write(tree.join(&name), &name));
    }

    bench.look("127", |tree| {
        for number in 0..128 {
            assert_eq!(read(tree.join(number.to_string())), number.to_string());
        }
    });
}

/// Whether our ids are not those of the host, or not all of them.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("the kernel has user namespaces");
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

pub(super) fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it is there").mode() & 0o7777
}

pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
