//! Trees on top of trees, their layers, and what applying these gives.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use tempfile::TempDir;
use windlass_rootfs::{
    apply,
    compression::Compression,
    diff::{self, Diffed, Options},
};
use windlass_snapshot::{Mount, Whiteouts, mount::open_tree};
use windlass_testkit::Tree;

/// A folder with a lower tree, and an upper one on top of it.
pub(crate) struct Stack {
    pub(crate) folder: TempDir,
    pub(crate) whiteouts: Whiteouts,
}

impl Stack {
    /// The lower tree is made by `fill`; the upper one shows the same, for now.
    pub(crate) fn new(whiteouts: Whiteouts, fill: impl FnOnce(&Path)) -> Self {
        Self::within(tempfile::tempdir().expect("a temporary folder can be made"), whiteouts, fill)
    }

    /// The same in memory, where thousands of files cost little.
    pub(crate) fn in_memory(whiteouts: Whiteouts, fill: impl FnOnce(&Path)) -> Self {
        Self::within(in_memory(), whiteouts, fill)
    }

    fn within(folder: TempDir, whiteouts: Whiteouts, fill: impl FnOnce(&Path)) -> Self {
        for name in ["lower", "upper", "work"] {
            fs::create_dir(folder.path().join(name)).expect("it is new");
        }
        let stack = Self { folder, whiteouts };
        fill(&stack.lower());
        match whiteouts {
            Whiteouts::Remove => copy(&stack.lower(), &stack.upper()),
            _ => like(&stack.lower(), &stack.upper()),
        }
        stack
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.folder.path().join("lower")
    }

    /// The upper tree, or the upper folder of the overlay.
    pub(crate) fn upper(&self) -> PathBuf {
        self.folder.path().join("upper")
    }

    /// Changes the upper tree, through a mount if it is an overlay, and gives what it is then. Sockets are not shown.
    pub(crate) fn change(&self, change: impl FnOnce(&Path)) -> Tree {
        // Nothing needs to be on the disk.
        let options: &[&str] = match self.whiteouts {
            Whiteouts::Remove => {
                change(&self.upper());
                return shown(&self.upper());
            }
            Whiteouts::Overlay => &["volatile"],
            Whiteouts::UserOverlay => &["volatile", "userxattr"],
        };
        change(&place(&self.mount(options)));
        // As the next mount shows it: this one may remember a file's number from before it had a second name.
        shown(&place(&overlay(&[self.upper(), self.lower()], None, &options[1..])))
    }

    /// Mounts the overlay, with further options.
    pub(crate) fn mount(&self, options: &[&str]) -> OwnedFd {
        overlay(&[self.lower()], Some((&self.upper(), &self.folder.path().join("work"))), options)
    }

    pub(crate) fn options(&self) -> Options {
        Options::default().whiteouts(self.whiteouts)
    }

    /// The layer that the changes are, plain.
    pub(crate) fn layer(&self) -> Vec<u8> {
        self.diff(&self.options().compression(Compression::None)).expect("it can be written").0
    }

    pub(crate) fn diff(&self, options: &Options) -> Result<(Vec<u8>, Diffed), windlass_rootfs::Error> {
        let mut out = Vec::new();
        let diffed = diff::diff(&open(&self.upper()), Some(&open(&self.lower())), &mut out, options)?;
        Ok((out, diffed))
    }

    /// What the lower tree is with a layer applied: to a copy of it.
    pub(crate) fn applied(&self, layer: &[u8]) -> Tree {
        let copied = tempfile::tempdir_in(self.folder.path()).expect("a temporary folder can be made");
        copy(&self.lower(), copied.path());
        apply::apply(layer, &open(copied.path()), &apply::Options::default()).expect("it can be applied");
        shown(copied.path())
    }

    /// The same with the layer in a folder of its own, on top of the lower tree.
    pub(crate) fn stacked(&self, layer: &[u8]) -> Tree {
        let own = tempfile::tempdir_in(self.folder.path()).expect("a temporary folder can be made");
        let options = apply::Options::default().whiteouts(Whiteouts::Overlay);
        let applied = apply::apply(layer, &open(own.path()), &options).expect("it can be applied");
        let settled = apply::settle(&applied.pending, &open(own.path()), Some(&open(&self.lower())));
        assert_eq!(settled.expect("it settles"), apply::Settled::Done, "it goes through no link");
        let mounted = overlay(&[own.path().to_owned(), self.lower()], None, &[]);
        shown(&place(&mounted))
    }
}

/// A folder in memory.
pub(crate) fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs: mount -t tmpfs tmpfs /dev/shm")
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    File::open(path).expect("it can be opened").into()
}

/// Makes a copy of a tree, by a layer of all of it. Sockets are not copied.
pub(crate) fn copy(from: &Path, to: &Path) {
    let mut layer = Vec::new();
    let options = Options::default().compression(Compression::None);
    diff::diff(&open(from), None, &mut layer, &options).expect("it can be written");
    apply::apply(&layer[..], &open(to), &apply::Options::default()).expect("it can be applied");
}

/// Makes one folder look like another, as the overlay driver does with the root of each snapshot.
fn like(from: &Path, to: &Path) {
    let metadata = fs::metadata(from).expect("it is there");
    chown(to, Some(metadata.uid()), Some(metadata.gid())).expect("we are root");
    fs::set_permissions(to, PermissionsExt::from_mode(metadata.mode())).expect("we are root");
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, to, &times, AtFlags::empty()).expect("we are root");
}

fn overlay(lower: &[PathBuf], upper: Option<(&Path, &Path)>, more: &[&str]) -> OwnedFd {
    let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let mut options: Vec<_> = more.iter().map(ToString::to_string).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    match upper {
        Some((upper, work)) => {
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("workdir={}", work.display()));
        }
        None => options.push("ro".to_owned()),
    }
    let one = Mount { fstype: "overlay".into(), source: "overlay".into(), options };
    open_tree(&[one]).expect("root may mount overlays")
}

pub(crate) fn place(tree: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/.", tree.as_raw_fd()).into()
}

/// The paths of a plain layer's entries, in their order; links with where they point.
pub(crate) fn entries(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    let entries = archive.entries().expect("it is an archive").map(|entry| {
        let entry = entry.expect("it is whole");
        let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
        match entry.link_name_bytes() {
            Some(link) => format!("{} -> {}", text(&entry.path_bytes()), text(&link)),
            None => text(&entry.path_bytes()),
        }
    });
    entries.collect()
}

pub(crate) fn shown(root: &Path) -> Tree {
    let mut tree = Tree::read(root).ignore_overlay_xattrs();
    tree.nodes.retain(|_, node| node.kind != windlass_testkit::NodeType::Socket);
    tree
}
