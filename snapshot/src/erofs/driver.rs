//! Snapshots as EROFS images.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    Image, Options, folder, fs_verity,
    layers::{Layers, TAR},
    options::{ErofsOptions, Form, FsVerity, LayerForm},
    probe,
    read::Opened,
};
use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, LayerFile, Mount, Result, Snapshotter, Supposed,
    Usage, Whiteouts,
    folders::{Files, Folders, io, mkdir},
    metadata::Row,
    mount::images,
    root::Root,
    tree,
};

/// A committed layer, in its snapshot's folder.
const LAYER: &str = "layer.erofs";
/// The merged tree of a layer and those below it.
const MERGED: &str = "merged.erofs";
/// How many layers are mounted one by one: the kernel's overlayfs takes 500 at once.
const STACKED: usize = 400;

/// What a folder of a snapshot takes, whole or not: see [`Files`].
const FILES: Files = Files { usage, remove: tree::remove, whole };

/// Keeps each committed snapshot in one EROFS image, and what is being written in a folder.
///
/// ```text
/// <root>/metadata.db
/// <root>/snapshots/<id>/layer.erofs     a committed layer
/// <root>/snapshots/<id>/layer.tar       what that is an index of, if it is one
/// <root>/snapshots/<id>/merged.erofs    names and attributes of all that it shows, made when it is first mounted
/// <root>/snapshots/<id>/fs, work        what is written on top of the parents, until it is committed
/// ```
///
/// A snapshot is mounted as one EROFS, whose metadata is the merged tree, and whose data is in the images of the layers; or, as
/// [`Form::Stacked`], as an overlay of all layers. What is written goes into an overlay's upper folder on top of that, which
/// becomes an image when it is committed. Removing a layer is removing a file.
///
/// The images are mounted as files, which takes Linux 6.12, or through loop devices before, and root: EROFS cannot be mounted in a
/// user namespace. Whoever has no privilege may read the images, or use another driver.
#[derive(Debug)]
pub struct Erofs {
    folders: Folders,
    form: Form,
    layers: LayerForm,
    fs_verity: bool,
}

impl Erofs {
    /// Opens or creates the snapshots under `root`, and tries whether EROFS and overlayfs work there.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where they cannot be mounted, with the reason; [`Error::Io`] and [`Error::Database`] if the root
    /// cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self> {
        Self::open_with(root, durability, ErofsOptions::default())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(root: &Path, durability: Durability, options: ErofsOptions) -> Result<Self> {
        let root = Root::open(root)?;
        root.can_be_mounted().map_err(|reason| unsupported("use this root", reason))?;
        let ErofsOptions { form, layers, fs_verity } = options;
        if fs_verity {
            fs_verity::probe(&root)?;
        }
        let layers = match layers {
            Some(layers) => probe::run(&root, layers).map(|()| layers)?,
            None => probe::best(&root)?,
        };
        Ok(Self { folders: Folders::open(root, durability, FILES)?, form, layers, fs_verity })
    }

    /// Writes the whole tree of a committed snapshot into one image, which needs no other file: a root disk for a virtual machine.
    /// `file` is emptied first. Nothing is synced.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotCommitted`], [`Error::Image`] if a layer is damaged, and [`Error::Io`].
    pub fn export_block(&self, name: &str, file: File, options: &Options) -> Result<Image> {
        let row = self.folders.metadata.get(name)?;
        if row.info.kind != Kind::Committed {
            return Err(Error::NotCommitted { name: name.to_owned() });
        }
        Layers::open(self.images(&row)?)?.write_whole(file, Path::new("of the export"), options)
    }

    /// The plain tar that a layer came as, byte for byte: its digest is the layer's DiffID. `None` if it is kept as
    /// [`LayerForm::Full`], or was no tar.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotCommitted`], [`Error::Io`].
    pub fn layer_tar(&self, name: &str) -> Result<Option<File>> {
        let row = self.folders.metadata.get(name)?;
        if row.info.kind != Kind::Committed {
            return Err(Error::NotCommitted { name: name.to_owned() });
        }
        let tar = self.folders.folder(row.id).join(TAR);
        match File::open(&tar) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io("open", &tar, source)),
        }
    }

    /// The fs-verity digests of a committed layer. `None` if it was committed without [`ErofsOptions::fs_verity`].
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::NotCommitted`], [`Error::Io`].
    pub fn fs_verity(&self, name: &str) -> Result<Option<FsVerity>> {
        let row = self.folders.metadata.get(name)?;
        if row.info.kind != Kind::Committed {
            return Err(Error::NotCommitted { name: name.to_owned() });
        }
        let layer = self.folders.folder(row.id).join(LAYER);
        let Some(image) = fs_verity::digest(&layer)? else { return Ok(None) };
        let tar = layer.with_file_name(TAR);
        let tar = if tar.exists() { fs_verity::digest(&tar)? } else { None };
        Ok(Some(FsVerity { image, tar }))
    }

    /// The images of a committed snapshot, the lowest first.
    fn images(&self, row: &Row) -> Result<Vec<PathBuf>> {
        let chain = self.folders.metadata.chain(row.id)?;
        Ok(chain.into_iter().rev().map(|id| self.folders.folder(id).join(LAYER)).collect())
    }

    fn begin(&self, keys: &[&str], kind: Kind, parent: Option<&str>) -> Result<Vec<Vec<Mount>>> {
        let rows = self.folders.create_all(keys, kind, parent, |folder, below| {
            let upper = folder.join("fs");
            mkdir(&upper, 0o755)?;
            mkdir(&folder.join("work"), 0o711)?;
            match below {
                Some(below) => inherit(&below.join(LAYER), &upper),
                None => Ok(()),
            }
        })?;
        let shown = rows.iter().map(|row| self.show(row)).collect::<Result<Vec<_>>>();
        if shown.is_err() {
            keys.iter().try_for_each(|key| self.folders.remove(key))?;
        }
        shown
    }

    fn show(&self, row: &Row) -> Result<Vec<Mount>> {
        let lower = self.folders.metadata.chain(row.id)?.split_off(1);
        if lower.is_empty() {
            return Ok(self.folders.bind(row));
        }
        let lower = self.lower(&lower)?;
        if row.info.kind == Kind::View {
            return Ok(vec![read_only(&[], &lower)]);
        }
        let folder = self.folders.folder(row.id);
        let place = |name: &str| {
            format!("{name}={}", folder.join(if name == "upperdir" { "fs" } else { "work" }).display())
        };
        let mut options = vec!["rw".to_owned()];
        options.extend(lower.iter().map(|image| format!("lowerimage={image}")));
        options.extend([place("upperdir"), place("workdir"), "index=off".to_owned()]);
        Ok(vec![overlay(options)])
    }

    /// The images that are mounted for committed snapshots, highest first, each with the devices that its data is on.
    fn lower(&self, ids: &[i64]) -> Result<Vec<String>> {
        let layer = |id: &i64| self.folders.folder(*id).join(LAYER);
        if ids.len() == 1 || self.form == Form::Stacked && ids.len() <= STACKED {
            return Ok(ids.iter().map(|id| alone(&layer(id))).collect());
        }
        let images: Vec<_> = ids.iter().rev().map(layer).collect();
        let merged = self.folders.folder(ids[0]).join(MERGED);
        let devices = self.merge(&images, &merged)?;
        let list = |list: String, device: &PathBuf| format!("{list}:{}", device.display());
        Ok(vec![devices.iter().fold(merged.display().to_string(), list)])
    }

    /// Writes the merged tree of some layers, unless it is there. Gives the devices that its data is on.
    fn merge(&self, images: &[PathBuf], merged: &Path) -> Result<Vec<PathBuf>> {
        let (devices, tags): (Vec<_>, Vec<_>) = Layers::devices(images)?.into_iter().unzip();
        if merged.exists()
            && Opened::open(merged).and_then(|there| there.devices(merged)).is_ok_and(|there| there == tags)
        {
            return Ok(devices);
        }
        // Several may do so at once; each has a file of its own, and all write the same.
        let folder = merged.parent().expect("it is in a folder");
        let new = tempfile_in(folder)?;
        let written = Layers::open(images.to_vec()).and_then(|layers| {
            let image = layers.write_index(&new)?;
            image.into_file().sync_data().map_err(|source| io("sync", &new, source))?;
            std::fs::rename(&new, merged).map_err(|source| io("rename", &new, source))
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        written.map(|()| devices)
    }

    /// Makes what is to be committed an image each. Says which ones were made of folders.
    fn seal(&self, commits: &[Commit<'_>], made: &mut Vec<PathBuf>) -> Result<()> {
        let mut new: HashMap<&str, Vec<PathBuf>> = HashMap::new();
        let metadata = &self.folders.metadata;
        let mut rows = Vec::new();
        for commit in commits {
            let row = metadata.get(commit.key)?;
            if row.info.kind != Kind::Active {
                return Err(Error::NotActive { name: commit.key.to_owned() });
            }
            rows.push(row);
        }
        let mut below = Layers::default();
        for (commit, row) in commits.iter().zip(&rows) {
            let mut images = match commit.parent.or(row.info.parent.as_deref()) {
                None => Vec::new(),
                Some(parent) => match new.get(parent) {
                    Some(images) => images.clone(),
                    None => self.images(&metadata.get(parent)?)?,
                },
            };
            let there = metadata.find(commit.name)?.filter(|there| self.folders.is_whole(there));
            let layer = self.folders.folder(row.id).join(LAYER);
            if layer.exists() {
                let nothing = Supposed::default();
                let supposed = commit.supposed.unwrap_or(&nothing);
                if row.parent.is_none()
                    && let Some(path) = below.settle(&layer, &images, supposed)?
                {
                    return Err(Error::LinkBelow { key: commit.key.to_owned(), path: path.to_owned() });
                }
            } else {
                made.push(layer.clone());
                folder::pack(&self.folders.tree(row.id), &layer)?;
            }
            // Somebody may have committed that name meanwhile; then it is that one which is below the next.
            images.push(there.map_or(layer, |there| self.folders.folder(there.id).join(LAYER)));
            new.insert(commit.name, images);
        }
        // Not before all of them are as they stay.
        for row in rows.iter().filter(|_| self.fs_verity) {
            let layer = self.folders.folder(row.id).join(LAYER);
            fs_verity::seal(&layer)?;
            let tar = layer.with_file_name(TAR);
            if tar.exists() {
                fs_verity::seal(&tar)?;
            }
        }
        Ok(())
    }
}

impl Snapshotter for Erofs {
    fn name(&self) -> &str {
        "erofs"
    }

    fn lock_file(&self) -> &Path {
        self.folders.lock_file()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(true, Whiteouts::Overlay).images().stacked(STACKED)
    }

    fn stat(&self, name: &str) -> Result<Option<Info>> {
        self.folders.stat(name)
    }

    fn update(&self, name: &str, labels: BTreeMap<String, String>) -> Result<Info> {
        self.folders.metadata.label(name, &labels)
    }

    fn usage(&self, name: &str) -> Result<Usage> {
        self.folders.usage(name)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let row = self.folders.metadata.get(key)?;
        if row.info.kind == Kind::Committed {
            return Err(Error::NotActive { name: key.to_owned() });
        }
        self.show(&row)
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        Ok(self.begin(&[key], Kind::Active, parent)?.swap_remove(0))
    }

    fn prepare_all(&self, keys: &[&str]) -> Result<Vec<Vec<Mount>>> {
        self.begin(keys, Kind::Active, None)
    }

    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        Ok(self.begin(&[key], Kind::View, parent)?.swap_remove(0))
    }

    fn stacked(&self, keys: &[&str], base: Option<&str>) -> Result<Vec<Mount>> {
        if keys.len() > STACKED {
            return Err(unsupported("stack", format!("{} snapshots are more than {STACKED}", keys.len())));
        }
        let (mut folders, mut lower) = (Vec::new(), Vec::new());
        for key in keys {
            let row = self.folders.metadata.get(key)?;
            if row.info.kind != Kind::Active || row.parent.is_some() {
                return Err(Error::NotActive { name: (*key).to_owned() });
            }
            let layer = self.folders.folder(row.id).join(LAYER);
            match layer.exists() {
                true => lower.push(alone(&layer)),
                false if lower.is_empty() => folders.push(self.folders.tree(row.id).display().to_string()),
                false => {
                    let reason = format!("{key:?} is a folder, and below a layer that is an image");
                    return Err(unsupported("stack", reason));
                }
            }
        }
        if let Some(base) = base {
            let row = self.folders.metadata.get(base)?;
            if row.info.kind != Kind::Committed {
                return Err(Error::NotCommitted { name: base.to_owned() });
            }
            let mut chain = self.lower(&self.folders.metadata.chain(row.id)?)?;
            lower.append(&mut chain);
        }
        if folders.is_empty() && lower.is_empty() {
            return Err(unsupported("stack", "no snapshot was given".to_owned()));
        }
        Ok(vec![read_only(&folders, &lower)])
    }

    /// The image may have the marks [`IMPLIED`](super::IMPLIED) and [`LINK`](super::LINK): the commit looks up in the layers
    /// below what they stand for. A commit that failed may have done so already; the snapshot is then to be removed.
    fn layer_file(&self, mounts: &[Mount]) -> Result<LayerFile> {
        let snapshots = self.folders.root().path().join("snapshots");
        match mounts {
            [Mount { fstype, source, .. }]
                if fstype == "bind"
                    && source.ends_with("fs")
                    && source.ancestors().nth(2) == Some(&snapshots) =>
            {
                let tar = (self.layers == LayerForm::Index).then(|| source.with_file_name(TAR));
                Ok(LayerFile { image: source.with_file_name(LAYER), tar })
            }
            _ => {
                let reason = "these are not the mounts of one of its snapshots without a parent".to_owned();
                Err(unsupported("write a layer", reason))
            }
        }
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        let mut made = Vec::new();
        let committed = self.seal(commits, &mut made).and_then(|()| {
            self.folders.commit(commits, &[], |row, parent| {
                if row.parent.is_some() && row.info.parent.as_deref() != Some(parent) {
                    let (name, below) = (&row.info.name, &row.info.parent);
                    let reason = format!("{name:?} was prepared on {below:?}, not on {parent:?}");
                    return Err(unsupported("change the parent", reason));
                }
                Ok(())
            })
        });
        for layer in made {
            match &committed {
                // The image has it all now.
                Ok(()) => forget_folders(&layer),
                Err(_) => drop(std::fs::remove_file(&layer)),
            }
        }
        committed
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.folders.remove(name)
    }

    fn forget(&self, name: &str) -> Result<()> {
        self.folders.metadata.remove(name).map(drop)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.folders.walk(visit)
    }

    fn cleanup(&self) -> Result<u64> {
        self.folders.cleanup()
    }

    fn close(&self) -> Result<()> {
        self.folders.metadata.close()
    }
}

/// Removes what was written before it became an image. What is left takes room, and is gone with the snapshot.
fn forget_folders(layer: &Path) {
    for name in ["fs", "work"] {
        if let Err(error) = tree::remove(&layer.with_file_name(name)) {
            tracing::warn!(path = %layer.display(), error = &error as &dyn std::error::Error, "a folder is left beside its image");
        }
    }
}

/// A layer that is mounted by itself: its image, and the tar that this is an index of.
fn alone(layer: &Path) -> String {
    let tar = layer.with_file_name(TAR);
    let image = layer.display();
    if tar.exists() { format!("{image}:{}", tar.display()) } else { image.to_string() }
}

/// Layers, highest first: folders on top of images.
fn read_only(folders: &[String], images: &[String]) -> Mount {
    match (folders, images) {
        ([folder], []) => Mount {
            fstype: "bind".to_owned(),
            source: folder.into(),
            options: vec!["ro".to_owned(), "rbind".to_owned()],
        },
        ([], [image]) => {
            let mut parts = image.split(':');
            images::erofs(parts.next().expect("there is always one part"), parts)
        }
        _ => {
            let folders = folders.iter().map(|folder| format!("lowerdir+={folder}"));
            let images = images.iter().map(|image| format!("lowerimage={image}"));
            overlay(["ro".to_owned()].into_iter().chain(folders).chain(images).collect())
        }
    }
}

/// What an upper layer holds must mean the same in an image, and on every machine.
pub(super) fn overlay(mut options: Vec<String>) -> Mount {
    options.extend(["metacopy=off", "redirect_dir=nofollow"].map(str::to_owned));
    Mount { fstype: "overlay".to_owned(), source: "overlay".into(), options }
}

/// The upper folder is what a mount shows as its root: without this, the root of every container would lose the mode, the owner
/// and the time that its image gives it.
fn inherit(layer: &Path, to: &Path) -> Result<()> {
    let root = Opened::open(layer)?.root(layer)?;
    let owner = (rustix::fs::Uid::from_raw(root.uid), rustix::fs::Gid::from_raw(root.gid));
    rustix::fs::chown(to, Some(owner.0), Some(owner.1))
        .and_then(|()| rustix::fs::chmod(to, rustix::fs::Mode::from_raw_mode(root.mode.into())))
        .and_then(|()| {
            let time = rustix::fs::Timespec { tv_sec: root.mtime.0, tv_nsec: root.mtime.1.into() };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::empty())
        })
        .map_err(|err| io("copy the mode, owner and time to", to, err.into()))
}

/// A name in a folder that nobody else has.
fn tempfile_in(folder: &Path) -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    Ok(folder.join(format!("{MERGED}.{}-{count}-{now}", std::process::id())))
}

/// What a snapshot takes: its image, or the folder that is not one yet.
fn usage(tree: &Path, _parent: Option<&Path>) -> Result<Usage> {
    let layer = tree.with_file_name(LAYER);
    let blocks = |path: &Path| match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.blocks())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io("look at", path, source)),
    };
    let Some(image) = blocks(&layer)? else { return tree::usage(tree) };
    let tar = blocks(&layer.with_file_name(TAR))?.unwrap_or_default();
    let inodes = match Opened::open(&layer) {
        Ok(image) => image.header.inodes,
        // It is being written.
        Err(Error::Image { .. }) => 0,
        Err(err) => return Err(err),
    };
    Ok(Usage { inodes, bytes: (image + tar) * 512 })
}

/// Whether the image of a snapshot, or the folder that is not one yet, is there.
fn whole(tree: &Path) -> bool {
    let layer = tree.with_file_name(LAYER);
    let has_tar = || match Opened::open(&layer) {
        Ok(image) => !image.is_index() || layer.with_file_name(TAR).is_file(),
        // Another call says what is wrong with it.
        Err(_) => true,
    };
    if layer.is_file() { has_tar() } else { tree.is_dir() }
}

pub(super) fn unsupported(op: &'static str, reason: String) -> Error {
    Error::Unsupported { driver: "erofs", op, reason }
}
