//! Applies layers in both ways, into folders of its own.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
#[cfg(feature = "erofs")]
use windlass_rootfs::apply::image;
use windlass_rootfs::{
    Error,
    apply::{Applied, Options, Settled, apply, apply_again, settle},
};
#[cfg(feature = "erofs")]
use windlass_snapshot::{Commit, Durability, Erofs, ErofsOptions, Snapshotter, erofs::Form};
use windlass_snapshot::{
    Mount, Whiteouts,
    mount::{open_tree, unmount},
};
use windlass_testkit::{Layer, Tree, assert_same};

/// A layer with a root, as most have one.
pub(crate) fn root() -> Layer {
    Layer::new().dir("./", 0o755).mtime(1)
}

/// A folder in which layers are applied, and a neighbour that nobody may touch.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let place = Self { folder };
        fs::create_dir(place.root()).expect("the folder is new");
        fs::create_dir(place.outside()).expect("the folder is new");
        fs::write(place.outside().join("file"), "outside").expect("the folder is new");
        place
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// What must stay as it is.
    pub(crate) fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    pub(crate) fn apply(&self, tar: &[u8], options: &Options) -> Result<Applied, Error> {
        apply(tar, &open(&self.root()), options)
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::read(self.root())
    }
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("the folder is there").into()
}

/// All layers in one folder, one after the other.
pub(crate) fn remove(layers: &[Layer]) -> Result<Tree, Error> {
    let place = Place::new();
    for layer in layers {
        let applied = place.apply(&layer.tar(), &Options::default())?;
        assert!(applied.pending.is_empty(), "the layers below are there");
        assert_eq!(applied.diff_id, layer.diff_id());
    }
    Ok(place.tree())
}

/// Each layer in a folder of its own, put on each other by overlayfs.
pub(crate) fn overlay(layers: &[Layer]) -> Result<Tree, Error> {
    overlay_with(layers, Whiteouts::Overlay)
}

/// As [`overlay`], with those whiteouts.
pub(crate) fn overlay_with(layers: &[Layer], whiteouts: Whiteouts) -> Result<Tree, Error> {
    let place = Place::new();
    let mut folders: Vec<PathBuf> = Vec::new();
    let mut pending = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let folder = place.folder.path().join(number.to_string());
        fs::create_dir(&folder).expect("the folder is new");
        let whiteouts = if number == 0 { Whiteouts::Remove } else { whiteouts };
        let applied = apply(&layer.tar()[..], &open(&folder), &Options::default().whiteouts(whiteouts))?;
        assert_eq!(applied.diff_id, layer.diff_id());
        pending.push(applied.pending);
        folders.push(folder);
    }
    for (number, pending) in pending.into_iter().enumerate() {
        let below = (number > 0).then(|| open_tree(&mounts(&folders[..number], whiteouts)));
        let below = below.transpose().expect("overlays can be mounted");
        if settle(&pending, &open(&folders[number]), below.as_ref())? == Settled::Again {
            let below = below.as_ref().expect("the lowest layer takes nothing");
            fs::remove_dir_all(&folders[number]).expect("it is ours");
            fs::create_dir(&folders[number]).expect("the folder is new");
            let (root, options) = (open(&folders[number]), Options::default().whiteouts(whiteouts));
            let applied = apply_again(&layers[number].tar()[..], &root, below, &options)?;
            assert_eq!(settle(&applied.pending, &root, Some(below))?, Settled::Done);
        }
    }
    let target = place.root();
    windlass_snapshot::mount::mount_all(&mounts(&folders, whiteouts), &target).expect("it can be mounted");
    let tree = Tree::read(&target).ignore_overlay_xattrs();
    unmount(&target).expect("it is mounted");
    Ok(tree)
}

/// What shows these folders on top of each other, the highest last.
pub(crate) fn mounts(folders: &[PathBuf], whiteouts: Whiteouts) -> Vec<Mount> {
    let mut options = vec!["ro".to_owned()];
    if let [one] = folders {
        options.push("rbind".to_owned());
        return vec![Mount { fstype: "bind".into(), source: one.clone(), options }];
    }
    if whiteouts == Whiteouts::UserOverlay {
        options.push("userxattr".to_owned());
    }
    let names: Vec<_> = folders.iter().rev().map(|folder| folder.display().to_string()).collect();
    options.push(format!("lowerdir={}", names.join(":")));
    vec![Mount { fstype: "overlay".into(), source: "overlay".into(), options }]
}

/// What the layers are, which is the same in both ways.
#[track_caller]
pub(crate) fn both(layers: &[Layer]) -> Tree {
    let removed = remove(layers).expect("they are well-formed");
    let overlaid = overlay(layers).expect("they are well-formed");
    assert_same(&removed, &overlaid);
    let user = overlay_with(layers, Whiteouts::UserOverlay).expect("they are well-formed");
    assert_same(&removed, &user);
    #[cfg(feature = "erofs")]
    for form in [Form::Merged, Form::Stacked] {
        assert_same(&removed, &images(layers, form).expect("they are well-formed"));
    }
    removed
}

/// Each layer an image, put on each other by the snapshotter that keeps these.
#[cfg(feature = "erofs")]
pub(crate) fn images(layers: &[Layer], form: Form) -> Result<Tree, Error> {
    let place = Place::new();
    let driver = Erofs::open_with(
        &place.folder.path().join("snapshots"),
        Durability::Fast,
        ErofsOptions::default().form(form),
    )?;
    let names: Vec<_> = (0..layers.len()).map(|number| number.to_string()).collect();
    let keys: Vec<_> = names.iter().map(|name| format!("key-{name}")).collect();
    for ((number, layer), key) in layers.iter().enumerate().zip(&keys) {
        let path = driver.layer_file(&driver.prepare(key, None)?)?;
        let file = File::options().create_new(true).read(true).write(true).open(path).expect("it is new");
        let whiteouts = if number == 0 { Whiteouts::Remove } else { Whiteouts::Overlay };
        let options = image::Options::default().whiteouts(whiteouts).marks(true);
        let converted = image::convert(&layer.tar()[..], file, &options)?;
        assert_eq!(converted.diff_id, layer.diff_id());
    }
    let parents = std::iter::once(None).chain(names.iter().map(|name| Some(name.as_str())));
    let steps = keys.iter().zip(&names).zip(parents);
    let steps: Vec<_> = steps.map(|((key, name), parent)| Commit::new(key, name, parent)).collect();
    driver.commit(&steps)?;
    let target = place.root();
    let mounts = driver.view("view", names.last().map(String::as_str))?;
    windlass_snapshot::mount::mount_all(&mounts, &target).expect("it can be mounted");
    let tree = Tree::read(&target).ignore_overlay_xattrs();
    unmount(&target).expect("it is mounted");
    Ok(tree)
}

/// The paths of a tree, the root left out.
pub(crate) fn paths(tree: &Tree) -> Vec<&str> {
    tree.nodes.keys().filter_map(|path| path.to_str().filter(|path| !path.is_empty())).collect()
}
