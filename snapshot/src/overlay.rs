//! Snapshots as overlayfs layers.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, Mount, Result, Snapshotter, Usage, Whiteouts,
    folders::{Folders, io, mkdir},
    metadata::Row,
    mount,
};

/// Keeps each snapshot's own files in a folder, and shows it on top of its parents with overlayfs.
///
/// ```text
/// <root>/metadata.db
/// <root>/snapshots/<id>/fs      the layer
/// <root>/snapshots/<id>/work    overlayfs's own
/// ```
#[derive(Debug)]
pub struct Overlay {
    folders: Folders,
}

impl Overlay {
    /// Opens or creates the snapshots under `root`, and tries whether overlayfs works there.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where overlayfs cannot be mounted, with the reason; [`Error::Io`] and
    /// [`Error::Database`] if the root cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self> {
        let folders = Folders::open(root, durability)?;
        if !names_well(folders.root()) {
            let root = folders.root().display();
            let reason = format!(
                "{root} holds `:`, `,`, `\\\\` or bytes that are not UTF-8, which mount options cannot say: choose another root"
            );
            return Err(unsupported("use this root", reason));
        }
        probe(&folders)?;
        Ok(Self { folders })
    }

    fn begin(&self, key: &str, kind: Kind, parent: Option<&str>) -> Result<Vec<Mount>> {
        let row = self.folders.create(key, kind, parent, |folder, below| {
            let tree = folder.join("fs");
            mkdir(&tree, 0o755)?;
            mkdir(&folder.join("work"), 0o711)?;
            match below {
                Some(below) => inherit(&below.join("fs"), &tree),
                None => Ok(()),
            }
        })?;
        self.show(&row)
    }

    fn show(&self, row: &Row) -> Result<Vec<Mount>> {
        let path = |id| self.folders.tree(id).display().to_string();
        let chain = self.folders.metadata.chain(row.id)?;
        let lower: Vec<String> = chain[1..].iter().map(|id| path(*id)).collect();
        if row.info.kind == Kind::View {
            return Ok(read_only(if lower.is_empty() { vec![path(row.id)] } else { lower }));
        }
        if lower.is_empty() {
            return Ok(vec![bind(path(row.id), "rw")]);
        }
        let work = self.folders.folder(row.id).join("work");
        Ok(vec![overlay(vec![
            "rw".to_owned(),
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", path(row.id)),
            format!("workdir={}", work.display()),
        ])])
    }
}

impl Snapshotter for Overlay {
    fn name(&self) -> &str {
        "overlay"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(true, Whiteouts::Overlay)
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
        self.begin(key, Kind::Active, parent)
    }

    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.begin(key, Kind::View, parent)
    }

    fn stacked(&self, keys: &[&str], base: Option<&str>) -> Result<Vec<Mount>> {
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
        Ok(read_only(ids.into_iter().map(|id| self.folders.tree(id).display().to_string()).collect()))
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        self.folders.commit(commits, |row, parent| {
            if row.parent.is_some() && row.info.parent.as_deref() != Some(parent) {
                let reason =
                    format!("{:?} was prepared on {:?}, not on {parent:?}", row.info.name, row.info.parent);
                return Err(unsupported("change the parent", reason));
            }
            Ok(())
        })
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
}

/// Whether a path can stand in overlayfs's options as it is.
fn names_well(path: &Path) -> bool {
    path.to_str().is_some_and(|path| !path.contains([':', ',', '\\']))
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

/// Mounts two tiny layers as every snapshot will be.
fn probe(folders: &Folders) -> Result<()> {
    let tried = folders.attempt(|folder| {
        for name in ["lower", "upper", "work"] {
            mkdir(&folder.join(name), 0o755)?;
        }
        let option = |key: &str, name: &str| format!("{key}={}", folder.join(name).display());
        let options =
            vec![option("lowerdir", "lower"), option("upperdir", "upper"), option("workdir", "work")];
        mount::open_tree(&[overlay(options)]).map(drop)
    });
    tried.map_err(|err| {
        // A full disk says enough.
        if matches!(err, Error::Io { .. }) {
            return err;
        }
        let cause = std::error::Error::source(&err).map(ToString::to_string).unwrap_or_default();
        let reason = format!(
            "{err} below {}: {cause}; overlayfs needs root or a user namespace, the kernel's overlay module, and a root \
             that is not on overlayfs itself; the native snapshotter works anywhere",
            folders.root().display()
        );
        unsupported("work here", reason)
    })
}

fn read_only(mut layers: Vec<String>) -> Vec<Mount> {
    if layers.len() == 1 {
        return vec![bind(layers.remove(0), "ro")];
    }
    vec![overlay(vec!["ro".to_owned(), format!("lowerdir={}", layers.join(":"))])]
}

fn bind(source: String, access: &str) -> Mount {
    Mount {
        fstype: "bind".to_owned(),
        source: source.into(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}

fn overlay(options: Vec<String>) -> Mount {
    Mount { fstype: "overlay".to_owned(), source: "overlay".into(), options }
}

fn unsupported(op: &'static str, reason: String) -> Error {
    Error::Unsupported { driver: "overlay", op, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_that_mount_options_cannot_say_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["a:b", "a,b", "a\\b"] {
            let err = Overlay::open(&dir.path().join(name), Durability::Fast).expect_err(name);
            assert!(matches!(err, Error::Unsupported { .. }), "{name}: {err:?}");
            assert!(err.to_string().contains("choose another root"), "{err}");
        }
    }

    #[test]
    fn opening_leaves_no_probe_behind() {
        let dir = tempfile::tempdir().expect("a folder");

        Overlay::open(dir.path(), Durability::Safe).expect("root may mount overlays");

        let left = std::fs::read_dir(dir.path()).expect("the root");
        let probes = left.filter(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().starts_with("probe")
        });
        assert_eq!(probes.count(), 0);
    }
}
