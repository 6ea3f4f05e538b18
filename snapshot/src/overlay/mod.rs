//! Snapshots as overlayfs layers.

mod deep;
mod options;
mod probe;

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use self::options::Style;
use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, Mount, Result, Snapshotter, Usage,
    folders::{Files, Folders, io, mkdir},
    metadata::Row,
    root::Root,
};

/// Keeps each snapshot's own files in a folder, and shows it on top of its parents with overlayfs.
///
/// ```text
/// <root>/metadata.db
/// <root>/snapshots/<id>/fs      the layer
/// <root>/snapshots/<id>/work    overlayfs's own
/// ```
///
/// Any number of layers can be on top of each other. The kernel takes 500 at once: so each 240th snapshot in a row is committed
/// with a second tree that holds a copy of all that it shows, and counts as one layer.
///
/// What an upper layer holds must mean the same below another one, and on every machine: so `index`, `metacopy` and
/// `redirect_dir` are off, whatever the kernel's defaults. Renaming a folder of a lower layer gives `EXDEV`, upon which `mv` copies.
///
/// In a user namespace, where trusted attributes cannot be set, layers are written and mounted with `userxattr`. Which of both it
/// is, is decided when a root is made, and kept.
#[derive(Debug)]
pub struct Overlay {
    folders: Folders,
    style: Style,
}

/// How an [`Overlay`] is to work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverlayOptions {
    /// Mounts what is prepared with `volatile`: nothing that a container writes waits for the disk. Such a snapshot can be mounted
    /// once, and then committed or removed. Off if not set.
    pub volatile: bool,
}

impl Overlay {
    /// Opens or creates the snapshots under `root`, and tries whether overlayfs works there.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where overlayfs cannot be mounted, with the reason, in which case nothing but a lock was created;
    /// [`Error::Io`] and [`Error::Database`] if the root cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self> {
        Self::open_with(root, durability, OverlayOptions::default())
    }

    /// As [`open`](Self::open), with options.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(root: &Path, durability: Durability, options: OverlayOptions) -> Result<Self> {
        let root = Root::open(root)?;
        root.can_be_mounted().map_err(|reason| unsupported("use this root", reason))?;
        let possible = probe::run(&root)?;
        let place = root.path().to_owned();
        let folders = Folders::open(root, durability, Files::default())?;
        let noted = folders.metadata.setting("xattrs", possible.word())?;
        let attributes = probe::choose(possible, &noted, &place)?;
        Ok(Self { folders, style: Style { attributes, volatile: options.volatile } })
    }

    fn begin(&self, keys: &[&str], kind: Kind, parent: Option<&str>) -> Result<Vec<Vec<Mount>>> {
        let rows = self.folders.create_all(keys, kind, parent, |folder, below| {
            let tree = folder.join("fs");
            mkdir(&tree, 0o755)?;
            mkdir(&folder.join("work"), 0o711)?;
            match below {
                Some(below) => inherit(&below.join("fs"), &tree),
                None => Ok(()),
            }
        })?;
        rows.iter().map(|row| self.show(row)).collect()
    }

    fn show(&self, row: &Row) -> Result<Vec<Mount>> {
        let lower = self.folders.metadata.chain(row.id)?.split_off(1);
        if row.info.kind == Kind::View {
            return Ok(match lower.is_empty() {
                true => self.read_only(&[row.id]),
                false => self.read_only(&lower),
            });
        }
        if lower.is_empty() {
            return Ok(vec![options::bind(self.path(row.id), "rw")]);
        }
        let work = self.folders.folder(row.id).join("work").display().to_string();
        Ok(vec![self.style.writable(&self.paths(&lower), &self.path(row.id), &work)])
    }

    fn read_only(&self, ids: &[i64]) -> Vec<Mount> {
        vec![match ids {
            [one] => options::bind(self.path(*one), "ro"),
            many => self.style.read_only(&self.paths(many)),
        }]
    }

    fn paths(&self, ids: &[i64]) -> Vec<String> {
        ids.iter().map(|id| self.path(*id)).collect()
    }

    fn path(&self, id: i64) -> String {
        self.folders.tree(id).display().to_string()
    }
}

impl Snapshotter for Overlay {
    fn name(&self) -> &str {
        "overlay"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(true, self.style.attributes.whiteouts()).stacked(deep::AT_ONCE)
    }

    fn lock_file(&self) -> &Path {
        self.folders.lock_file()
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
        self.show(&self.folders.metadata.active(key)?)
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
        if keys.len() > deep::AT_ONCE {
            let reason = format!(
                "{} layers are more than the {} that the kernel mounts at once: commit those below first",
                keys.len(),
                deep::AT_ONCE
            );
            return Err(unsupported("stack", reason));
        }
        let mut ids = Vec::new();
        for key in keys {
            let row = self.folders.metadata.get(key)?;
            if row.info.kind != Kind::Active || row.parent.is_some() {
                return Err(Error::NotActive { name: (*key).to_owned() });
            }
            ids.push(row.id);
        }
        if let Some(base) = base {
            let row = self.folders.metadata.get(base)?;
            if row.info.kind != Kind::Committed {
                return Err(Error::NotCommitted { name: base.to_owned() });
            }
            ids.extend(self.folders.metadata.chain(row.id)?);
        }
        if ids.is_empty() {
            return Err(unsupported("stack", "no snapshot was given".to_owned()));
        }
        Ok(self.read_only(&ids))
    }

    fn write_back(&self) -> Result<()> {
        self.folders.sync()
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        let flat = self.flatten(commits)?;
        let committed = self.folders.commit(commits, &flat.trees, |row, parent| {
            if row.parent.is_some() && row.info.parent.as_deref() != Some(parent) {
                let reason =
                    format!("{:?} was prepared on {:?}, not on {parent:?}", row.info.name, row.info.parent);
                return Err(unsupported("change the parent", reason));
            }
            Ok(())
        });
        if committed.is_err() {
            flat.trees.iter().for_each(|tree| self.folders.discard(tree.id));
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

/// The upper folder is what a mount shows as its root: without this, the root of every container would lose
/// the mode, the owner and the time that its image gives it.
fn inherit(from: &Path, to: &Path) -> Result<()> {
    rustix::fs::stat(from)
        .and_then(|stat| {
            let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
            rustix::fs::chown(to, Some(uid), Some(gid))?;
            rustix::fs::chmod(to, rustix::fs::Mode::from_raw_mode(stat.st_mode))?;
            let nanos = i64::try_from(stat.st_mtime_nsec).expect("less than a second");
            let time = rustix::fs::Timespec { tv_sec: stat.st_mtime, tv_nsec: nanos };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, to, &times, rustix::fs::AtFlags::empty())
        })
        .map_err(|err| io("copy the mode, owner and time to", to, err.into()))
}

fn unsupported(op: &'static str, reason: String) -> Error {
    Error::Unsupported { driver: "overlay", op, reason }
}
