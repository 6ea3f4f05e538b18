//! Applies layers in both ways, into folders of its own.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::{
    fs::{self, File},
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
#[cfg(feature = "erofs")]
use windlass_rootfs::apply::image::{self, Files};
use windlass_rootfs::{
    Error,
    apply::{Applied, Options, Settled, apply, apply_again, settle},
};
#[cfg(feature = "erofs")]
use windlass_snapshot::{
    Commit, Durability, Erofs, ErofsOptions, Snapshotter,
    erofs::{Form, LayerForm},
};
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
        // All alike, and two kinds that take turns.
        for kept in [&[LayerForm::Full][..], &[LayerForm::Index], &[LayerForm::Index, LayerForm::Full]] {
            assert_same(&removed, &images(layers, form, kept).expect("they are well-formed"));
        }
    }
    removed
}

/// Each layer an image, put on each other by the snapshotter that keeps these. They are kept in these ways, in turns.
#[cfg(feature = "erofs")]
pub(crate) fn images(layers: &[Layer], form: Form, kept: &[LayerForm]) -> Result<Tree, Error> {
    let place = Place::new();
    let open_as = |kept| {
        let options = ErofsOptions::default().form(form).layers(kept);
        Erofs::open_with(&place.folder.path().join("snapshots"), Durability::Fast, options)
    };
    let drivers = kept.iter().map(|kept| open_as(*kept)).collect::<Result<Vec<_>, _>>()?;
    let create =
        |path| File::options().create_new(true).read(true).write(true).open(path).expect("it is new");
    let mut below: Option<String> = None;
    for (number, (layer, driver)) in layers.iter().zip(drivers.iter().cycle()).enumerate() {
        let whiteouts = if number == 0 { Whiteouts::Remove } else { Whiteouts::Overlay };
        let options = image::Options::default().whiteouts(whiteouts).marks(true);
        let convert = |key: &str, lower: Option<&OwnedFd>| {
            let file = driver.layer_file(&driver.prepare(key, None)?)?;
            let files = Files { image: create(file.image), tar: file.tar.map(create) };
            match lower {
                None => image::convert(&layer.tar()[..], files, &options),
                Some(lower) => image::convert_again(&layer.tar()[..], files, lower, &options),
            }
        };
        let name = number.to_string();
        let commit = |key: &str, supposed| {
            driver.commit(&[Commit::new(key, &name, below.as_deref()).supposing(supposed)])
        };
        let converted = convert("alone", None)?;
        assert_eq!(converted.diff_id, layer.diff_id());
        match commit("alone", &converted.supposed) {
            Err(windlass_snapshot::Error::LinkBelow { .. }) => {
                driver.remove("alone")?;
                let lower = open_tree(&driver.stacked(&[], below.as_deref())?)?;
                let converted = convert("again", Some(&lower))?;
                commit("again", &converted.supposed)?;
            }
            committed => committed?,
        }
        let mut tar = Vec::new();
        if let Some(mut file) = driver.layer_tar(&name)? {
            file.read_to_end(&mut tar).expect("it can be read");
            assert!(tar == layer.tar(), "it is kept byte for byte");
        }
        below = Some(name);
    }
    let driver = &drivers[0];
    let mounts = driver.view("view", below.as_deref())?;
    let target = place.root();
    windlass_snapshot::mount::mount_all(&mounts, &target).expect("it can be mounted");
    let tree = Tree::read(&target).ignore_overlay_xattrs();
    unmount(&target).expect("it is mounted");
    Ok(tree)
}

/// The paths of a tree, the root left out.
pub(crate) fn paths(tree: &Tree) -> Vec<&str> {
    tree.nodes.keys().filter_map(|path| path.to_str().filter(|path| !path.is_empty())).collect()
}
