use std::{
    collections::BTreeMap,
    fmt,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{Mount, Result};

/// Keeps layered file system trees.
///
/// All calls may block on the disk. Every call is atomic: it succeeds, or leaves nothing that another
/// call would see. Several processes may share one root.
pub trait Snapshotter: fmt::Debug + Send + Sync {
    /// What this driver is called: `overlay`. For logs, and for leases on its snapshots.
    fn name(&self) -> &str;

    /// What this driver can do. Never changes during its life.
    fn capabilities(&self) -> Capabilities;

    /// A file, made when it is first needed, in which those who share these snapshots lock what they are making, so that it is made
    /// once. It is a driver's own, and as near to its snapshots as it can be: whoever sees these sees the locks.
    fn lock_file(&self) -> &Path;

    /// What is known of a snapshot, active or committed. `None` if there is none of that name, or if its files are gone: a
    /// [`commit`](Self::commit) of that name then makes it, and what is on top of it, whole again.
    fn stat(&self, name: &str) -> Result<Option<Info>>;

    /// Replaces the labels of a snapshot, and gives its new state.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    fn update(&self, name: &str, labels: BTreeMap<String, String>) -> Result<Info>;

    /// What the snapshot itself takes on the disk, its parents not counted: [`usage_with_parents`] adds those.
    ///
    /// What a driver shares between snapshots counts where it was first written, as far as the driver knows: a changed file counts
    /// whole, and copies that share blocks count as if they did not.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound).
    fn usage(&self, name: &str) -> Result<Usage>;

    /// How to mount an active snapshot. Asking again gives the same answer.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::NotActive`](crate::Error::NotActive).
    fn mounts(&self, key: &str) -> Result<Vec<Mount>>;

    /// Begins a writable snapshot that shows `parent`'s tree, or an empty one, and says how to mount it.
    ///
    /// # Errors
    ///
    /// [`Error::Exists`](crate::Error::Exists) if the key is taken, [`Error::NotFound`](crate::Error::NotFound) if the parent
    /// is missing, [`Error::NotCommitted`](crate::Error::NotCommitted) if it is active.
    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>>;

    /// Begins writable snapshots that show an empty tree, and says how to mount each: as [`prepare`](Self::prepare) of every key
    /// does, but drivers with [`Capabilities::rebase`] wait for the disk as long as for one.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare). With these drivers none has begun then; with others some may have.
    fn prepare_all(&self, keys: &[&str]) -> Result<Vec<Vec<Mount>>> {
        keys.iter().map(|key| self.prepare(key, None)).collect()
    }

    /// Begins a snapshot that shows `parent`'s tree and cannot be written, and says how to mount it.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>>;

    /// How to mount, read-only, the tree that active snapshots without a parent will show once they are
    /// committed on top of each other and of `base`. `keys` are given highest first.
    ///
    /// Whoever unpacks all layers at once looks up here what a layer inherits from those below it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) without [`Capabilities::rebase`], or for more than
    /// [`Capabilities::stacked`]; and as [`mounts`](Self::mounts).
    fn stacked(&self, keys: &[&str], base: Option<&str>) -> Result<Vec<Mount>>;

    /// The file into which the layer of an active snapshot without a parent may be written as an EROFS image, given its mounts.
    /// It is not there before; if it is there at commit, it is the layer, and what was written through the mounts is not.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) without [`Capabilities::images`], which most drivers do not have, and if the
    /// mounts are not such a snapshot's.
    fn layer_file(&self, mounts: &[Mount]) -> Result<LayerFile> {
        let _ = mounts;
        Err(crate::Error::Unsupported {
            driver: "folder",
            op: "keep an image",
            reason: format!("{} keeps layers as folders: write through the mounts", self.name()),
        })
    }

    /// Makes active snapshots permanent under their names, in the given order, all or none.
    ///
    /// With [`Durability::Safe`] everything in them is on the disk before any of the names is visible: one sync, however
    /// many there are. A name that exists already is no error: the active snapshot is discarded.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if a key or a parent is missing,
    /// [`Error::NotActive`](crate::Error::NotActive) if the key is a view or committed,
    /// [`Error::Unsupported`](crate::Error::Unsupported) if a parent is given that the key was not prepared on, without
    /// [`Capabilities::rebase`], and [`Error::LinkBelow`](crate::Error::LinkBelow) where [`Commit::supposed`] says so.
    fn commit(&self, commits: &[Commit<'_>]) -> Result<()>;

    /// Writes to the disk what a commit would write first, so that the commit waits less: nothing with [`Durability::Fast`], and nothing
    /// unless a driver says otherwise. May be called beside anything else, and need not be called at all.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io).
    fn write_back(&self) -> Result<()> {
        Ok(())
    }

    /// Removes a snapshot, active or committed. Its name is gone at once; its files go after it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound), [`Error::HasChildren`](crate::Error::HasChildren).
    fn remove(&self, name: &str) -> Result<()>;

    /// As [`remove`](Self::remove), but leaves the files to [`cleanup`](Self::cleanup): it takes no longer for a large snapshot.
    fn forget(&self, name: &str) -> Result<()>;

    /// Calls `visit` for every snapshot, parents before children, until it breaks.
    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()>;

    /// Removes files that no snapshot owns: what a crash left. Returns how many bytes it freed.
    fn cleanup(&self) -> Result<u64>;

    /// Ends the use of the root: all is written that was not, and every call after it but this one fails with
    /// [`Error::Closed`](crate::Error::Closed). Closing twice is fine. Mounts stay; whoever only drops it loses nothing either.
    fn close(&self) -> Result<()>;
}

/// What a snapshot takes on the disk together with all its parents.
///
/// # Errors
///
/// [`Error::NotFound`](crate::Error::NotFound).
pub fn usage_with_parents(snapshotter: &dyn Snapshotter, name: &str) -> Result<Usage> {
    let mut total = snapshotter.usage(name)?;
    let mut parent = snapshotter.stat(name)?.and_then(|info| info.parent);
    while let Some(name) = parent {
        total += snapshotter.usage(&name)?;
        parent = snapshotter.stat(&name)?.and_then(|info| info.parent);
    }
    Ok(total)
}

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// A snapshot that was prepared without a parent can be given one at commit. Layers can then be
    /// unpacked all at once, each into an empty tree, if whoever unpacks writes `whiteouts` as said.
    pub rebase: bool,
    /// How a layer says, in the tree that `mounts` gives, that something below it is gone.
    pub whiteouts: Whiteouts,
    /// Layers are kept as EROFS images: [`Snapshotter::layer_file`] says where one is to be written.
    pub images: bool,
    /// How many active snapshots [`Snapshotter::stacked`] takes at once. An image of more layers is committed in parts.
    pub stacked: usize,
}

impl Capabilities {
    /// Says both, that any number of snapshots can be stacked, and that layers are folders.
    pub fn new(rebase: bool, whiteouts: Whiteouts) -> Self {
        Self { rebase, whiteouts, images: false, stacked: usize::MAX }
    }

    /// Says that layers are kept as images.
    #[must_use]
    pub fn images(self) -> Self {
        Self { images: true, ..self }
    }

    /// Limits the snapshots that can be stacked at once.
    #[must_use]
    pub fn stacked(self, stacked: usize) -> Self {
        Self { stacked, ..self }
    }
}

/// How a layer hides what is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteouts {
    /// The tree shows the parent's files: remove them.
    Remove,
    /// The tree holds this layer alone, and is an overlayfs layer: a character device 0/0 hides a name, the
    /// attribute `trusted.overlay.opaque` = `y` hides all that is below a folder.
    Overlay,
    /// As [`Overlay`](Self::Overlay), with the attribute `user.overlay.opaque`: for mounts with the option `userxattr`, as in a
    /// user namespace, where nobody may set trusted attributes.
    UserOverlay,
}

impl Whiteouts {
    /// The attribute that makes a folder opaque; `None` where nothing is written.
    pub fn opaque(self) -> Option<&'static str> {
        match self {
            Self::Remove => None,
            Self::Overlay => Some("trusted.overlay.opaque"),
            Self::UserOverlay => Some("user.overlay.opaque"),
        }
    }
}

/// Where a layer is written that becomes an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFile {
    /// The image, to be created.
    pub image: PathBuf,
    /// Where the plain tar goes, byte for byte, if the image is to be an index of it.
    pub tar: Option<PathBuf>,
}

/// One step of [`Snapshotter::commit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit<'a> {
    /// The active snapshot.
    pub key: &'a str,
    /// Its name from now on.
    pub name: &'a str,
    /// The committed snapshot (or one committed earlier in the same call) below it. `None` keeps the one
    /// that it was prepared on.
    pub parent: Option<&'a str>,
    /// What its image, if it is one, supposes of the snapshots below. `None` if it does not depend on them.
    pub supposed: Option<&'a Supposed>,
}

impl<'a> Commit<'a> {
    /// A snapshot that supposes nothing of those below.
    pub fn new(key: &'a str, name: &'a str, parent: Option<&'a str>) -> Self {
        Self { key, name, parent, supposed: None }
    }

    /// Sets what its image supposes of the snapshots below.
    #[must_use]
    pub fn supposing(self, supposed: &'a Supposed) -> Self {
        Self { supposed: Some(supposed), ..self }
    }
}

/// What a layer was taken to mean when it became an image, without those below it at hand. A commit looks whether it is so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supposed {
    /// Paths that are no symbolic links below. Where one is, the commit answers [`Error::LinkBelow`](crate::Error::LinkBelow).
    pub folders: Vec<PathBuf>,
    /// Paths of hard links, each with its target, which is below, and no folder. Else the commit fails.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// The first entry that cannot be if `folders` are none, and why: then the commit fails. Nothing after it is in the image.
    pub refused: Option<(PathBuf, String)>,
}

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is visible: it survives a power cut.
    #[default]
    Safe,
    /// When the kernel gets to it. A power cut may leave committed snapshots with empty files.
    Fast,
}

/// A snapshot, as [`Snapshotter::stat`] shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The name of a committed snapshot, the key of an active one.
    pub name: String,
    /// The committed snapshot that it is on top of.
    pub parent: Option<String>,
    /// What can be done with it.
    pub kind: Kind,
    /// When it was prepared.
    pub created: SystemTime,
    /// When it was committed, or its labels changed.
    pub updated: SystemTime,
    /// What its owner wrote on it.
    pub labels: BTreeMap<String, String>,
}

/// What can be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Written through its mounts.
    Active,
    /// Read through its mounts.
    View,
    /// Used as a parent.
    Committed,
}

/// What a snapshot takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Inodes: a file with two names counts once.
    pub inodes: u64,
    /// Disk space, in bytes, as the file system counts it.
    pub bytes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.inodes += other.inodes;
        self.bytes += other.bytes;
    }
}
