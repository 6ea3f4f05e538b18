//! The erofs driver keeps every promise of the suite, however its layers are mounted. Needs root.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
};

use windlass_snapshot::{
    Commit, Durability, Erofs, ErofsOptions, Error, Snapshotter,
    erofs::{Form, Options},
    mount::temp_mount,
    testsuite,
};
use windlass_testkit::{Tree, assert_same, require};

#[test]
fn the_erofs_driver_passes_the_suite() {
    testsuite::run_all(&|root: &Path| -> Arc<dyn Snapshotter> {
        Arc::new(Erofs::open(root, Durability::Safe).expect("an empty root"))
    });
}

#[test]
fn the_erofs_driver_passes_the_suite_with_stacked_layers() {
    testsuite::run_all(&|root: &Path| -> Arc<dyn Snapshotter> {
        let options = ErofsOptions::default().form(Form::Stacked);
        Arc::new(Erofs::open_with(root, Durability::Fast, options).expect("an empty root"))
    });
}

/// Commits what `work` writes on top of a snapshot.
fn layer(driver: &Erofs, name: &str, parent: Option<&str>, work: impl FnOnce(&Path)) {
    let mounts = driver.prepare("new", parent).expect("the parent is there");
    temp_mount(&mounts, work).expect("it can be mounted");
    driver.commit(&[Commit::new("new", name, None)]).expect("it is active");
}

fn shown(driver: &Erofs, name: &str) -> Tree {
    let mounts = driver.view("view", Some(name)).expect("it is committed");
    let tree = temp_mount(&mounts, |tree| Tree::read(tree)).expect("it can be mounted");
    driver.remove("view").expect("it is there");
    tree
}

fn run(program: &str, package: &str, arguments: &[&str]) -> String {
    let output = Command::new(require(program, package)).args(arguments).output().expect("it starts");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said
}

/// Three layers, of which the upper ones hide, replace and link.
fn three(driver: &Erofs) {
    layer(driver, "1", None, |tree| {
        fs::create_dir_all(tree.join("usr/bin")).expect("folders");
        fs::write(tree.join("usr/bin/tool"), vec![7; 300_000]).expect("a file");
        fs::write(tree.join("secret"), "this is hidden later").expect("a file");
        symlink("usr/bin", tree.join("bin")).expect("a link");
    });
    layer(driver, "2", Some("1"), |tree| {
        fs::remove_file(tree.join("secret")).expect("it is there");
        fs::hard_link(tree.join("usr/bin/tool"), tree.join("usr/bin/other")).expect("a link");
    });
    layer(driver, "3", Some("2"), |tree| fs::write(tree.join("usr/bin/new"), "new").expect("a file"));
}

#[test]
fn a_snapshot_is_exported_as_one_image_that_a_machine_can_mount() {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Erofs::open(&dir.path().join("root"), Durability::Fast).expect("an empty root");
    three(&driver);
    let disk = dir.path().join("disk");
    let file = File::options().create_new(true).read(true).write(true).open(&disk).expect("it is new");

    let image = driver.export_block("3", file, &Options::default().uuid([7; 16])).expect("it is committed");

    assert_eq!(image.length(), fs::metadata(&disk).expect("it is there").len());
    run("fsck.erofs", "erofs-utils", &[disk.to_str().expect("text")]);
    let bytes = fs::read(&disk).expect("it is there");
    assert!(!bytes.windows(20).any(|part| part == b"this is hidden later"), "only what is seen is in it");
    // By a loop device, as a kernel sees a disk.
    let target = dir.path().join("mnt");
    fs::create_dir(&target).expect("it is new");
    let paths = [disk.to_str().expect("text"), target.to_str().expect("text")];
    run("mount", "mount", &["-t", "erofs", "-o", "ro,loop", paths[0], paths[1]]);
    let tree = Tree::read(&target);
    run("umount", "mount", &[paths[1]]);
    assert_same(&tree, &shown(&driver, "3"));
    let active = driver.prepare("active", Some("3")).map(|_| File::open(&disk).expect("it is there"));
    let refused = driver.export_block("active", active.expect("it is free"), &Options::default());
    assert!(matches!(refused, Err(Error::NotCommitted { .. })), "{refused:?}");
}

#[test]
fn a_merged_tree_and_its_layers_are_accepted_by_the_checkers_of_others() {
    for form in [Form::Merged, Form::Stacked] {
        let dir = tempfile::tempdir().expect("a folder");
        let options = ErofsOptions::default().form(form);
        let driver = Erofs::open_with(dir.path(), Durability::Fast, options).expect("an empty root");
        three(&driver);
        let [mount] = &driver.view("view", Some("3")).expect("it is committed")[..] else {
            panic!("one mount is enough");
        };
        let images: Vec<String> = match form {
            Form::Merged => {
                let devices = mount.options.iter().filter(|option| option.starts_with("device="));
                let devices: Vec<_> = devices.map(|option| format!("--{option}")).collect();
                assert_eq!(devices.len(), 3, "{mount}");
                [devices, vec!["--extract".to_owned(), mount.source.display().to_string()]].concat()
            }
            Form::Stacked => {
                let images = mount.options.iter().filter_map(|option| option.strip_prefix("lowerimage="));
                assert_eq!(images.clone().count(), 3, "{mount}");
                images.take(1).map(str::to_owned).collect()
            }
        };

        run("fsck.erofs", "erofs-utils", &images.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn a_merged_tree_that_does_not_fit_its_layers_is_made_anew() {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Erofs::open(dir.path(), Durability::Safe).expect("an empty root");
    three(&driver);
    let before = shown(&driver, "3");
    // The only mount of such a view is of the merged tree.
    let path = driver.view("look", Some("3")).expect("it is committed").remove(0).source;

    for damage in [&b"no image"[..], b""] {
        fs::write(&path, damage).expect("it was mounted");
        assert_same(&shown(&driver, "3"), &before);
    }
    assert!(fs::metadata(&path).expect("it is there").len() > 4096);
}

#[test]
fn a_committed_layer_is_one_file_and_removing_it_leaves_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Erofs::open(dir.path(), Durability::Safe).expect("an empty root");
    three(&driver);
    let folders = || fs::read_dir(dir.path().join("snapshots")).expect("it is a folder");
    for folder in folders() {
        let path = folder.expect("it is listed").path();
        let mut files =
            fs::read_dir(&path).expect("it is a folder").map(|it| it.expect("it is listed").file_name());
        assert!(files.all(|name| name == "layer.erofs" || name == "merged.erofs"), "{path:?}");
        run("fsck.erofs", "erofs-utils", &[path.join("layer.erofs").to_str().expect("text")]);
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o700);
    }

    for name in ["3", "2", "1"] {
        driver.remove(name).expect("nothing is on top of it");
    }

    assert_eq!(folders().count(), 0);
}

#[test]
fn only_a_snapshot_of_its_own_without_a_parent_takes_an_image() {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Erofs::open(&dir.path().join("one"), Durability::Fast).expect("an empty root");
    let other = Erofs::open(&dir.path().join("two"), Durability::Fast).expect("an empty root");
    layer(&driver, "low", None, |_| {});

    let alone = driver.layer_file(&driver.prepare("alone", None).expect("a free key")).expect("it is one");

    assert!(alone.tar.is_none_or(|tar| tar.parent() == alone.image.parent()));
    let alone = alone.image;
    assert!(!alone.exists() && alone.parent().is_some_and(Path::is_dir));
    fs::write(&alone, "what is written first is not an image yet").expect("there is room");
    assert!(driver.usage("alone").expect("it is there").bytes > 0);
    for mounts in [driver.prepare("on-low", Some("low")), other.prepare("foreign", None), Ok(vec![])] {
        let refused = driver.layer_file(&mounts.expect("a free key"));
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
}

#[test]
fn a_hash_tree_behind_an_image_is_that_of_veritysetup() {
    let dir = tempfile::tempdir().expect("a folder");
    let driver = Erofs::open(&dir.path().join("root"), Durability::Fast).expect("an empty root");
    three(&driver);
    // One block of hashes, and two levels of them.
    for (name, size) in [("1", 0), ("large", 3 << 20)] {
        if size > 0 {
            layer(&driver, name, None, |tree| fs::write(tree.join("file"), vec![5; size]).expect("a file"));
        }
        let disk = dir.path().join(format!("disk-{name}"));
        let file = File::options().create_new(true).read(true).write(true).open(&disk).expect("it is new");
        let image = driver.export_block(name, file, &Options::default()).expect("it is committed");

        let verity = image.append_verity(b"salt", [9; 16]).expect("there is room");

        let root: String = verity.root.iter().map(|byte| format!("{byte:02x}")).collect();
        let (path, offset) = (disk.to_str().expect("text"), format!("--hash-offset={}", verity.offset));
        run("veritysetup", "cryptsetup-bin", &["verify", path, path, &root, &offset]);
        run("fsck.erofs", "erofs-utils", &[path]);
        let mut bytes = fs::read(&disk).expect("it is there");
        bytes[9000] ^= 1;
        fs::write(&disk, bytes).expect("it is ours");
        let verify = Command::new("veritysetup").args(["verify", path, path, &root, &offset]).status();
        assert!(!verify.expect("it starts").success(), "a changed block is noticed");
    }
}

/// Where `WINDLASS_FS_VERITY` is set (`tests/old-kernel.sh` does), there must be fs-verity; elsewhere there may be.
#[test]
fn a_sealed_layer_has_the_digest_of_its_file_or_sealing_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = ErofsOptions::default().fs_verity(true);
    let driver = match Erofs::open_with(dir.path(), Durability::Safe, options) {
        Ok(driver) => driver,
        Err(error) => {
            assert!(std::env::var_os("WINDLASS_FS_VERITY").is_none(), "{error}");
            assert!(error.to_string().contains("CONFIG_FS_VERITY"), "{error}");
            return;
        }
    };

    three(&driver);

    let sealed = driver.fs_verity("3").expect("it is committed").expect("it was sealed");
    let folders = || fs::read_dir(dir.path().join("snapshots")).expect("it is a folder");
    let layers = || folders().map(|it| it.expect("it is listed").path().join("layer.erofs"));
    let digests: Vec<_> =
        layers().map(|layer| verity_digest(&fs::read(layer).expect("it is there"))).collect();
    assert!(digests.contains(&sealed.image), "{sealed:?}");
    for layer in layers() {
        let error = File::options().write(true).open(layer).expect_err("it is sealed");
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    }
    assert_eq!(shown(&driver, "3").nodes.len(), 7);
    driver.remove("3").expect("a sealed layer can be removed");
}

/// What fs-verity calls the digest of a file: that of a descriptor with the root of a hash tree (`fsverity.rst`).
fn verity_digest(bytes: &[u8]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut level = bytes.to_vec();
    let root = loop {
        let hash = |block: &[u8]| Sha256::digest([block, &vec![0; 4096 - block.len()]].concat());
        let hashes: Vec<_> = level.chunks(4096).map(hash).collect();
        match &hashes[..] {
            [root] => break *root,
            _ => level = hashes.concat(),
        }
    };
    let mut descriptor = vec![1, 1, 12, 0, 0, 0, 0, 0];
    descriptor.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    descriptor.extend_from_slice(&root);
    descriptor.resize(256, 0);
    Sha256::digest(descriptor).into()
}
