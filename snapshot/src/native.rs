//! Snapshots as plain copies: slower and larger than overlays, and at home on every file system.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, Mount, Result, Snapshotter, Usage, Whiteouts, copy,
    folders::{Folders, mkdir},
    metadata::Row,
};

/// Makes every snapshot a full copy of its parent's tree. Where the file system can share blocks, it does.
#[derive(Debug)]
pub struct Native {
    folders: Folders,
}

impl Native {
    /// Opens or creates the snapshots under `root`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Database`] if the root cannot be used.
    pub fn open(root: &Path, durability: Durability) -> Result<Self> {
        Ok(Self { folders: Folders::open(root, durability)? })
    }

    fn begin(&self, key: &str, kind: Kind, parent: Option<&str>) -> Result<Vec<Mount>> {
        let row = self.folders.create(key, kind, parent, |folder, below| {
            let tree = folder.join("fs");
            mkdir(&tree, 0o755)?;
            match below {
                Some(below) => copy::tree(&below.join("fs"), &tree),
                None => Ok(()),
            }
        })?;
        Ok(self.show(&row))
    }

    fn show(&self, row: &Row) -> Vec<Mount> {
        let access = if row.info.kind == Kind::View { "ro" } else { "rw" };
        let options = vec![access.to_owned(), "rbind".to_owned()];
        vec![Mount { fstype: "bind".to_owned(), source: self.folders.tree(row.id), options }]
    }
}

impl Snapshotter for Native {
    fn name(&self) -> &str {
        "native"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(false, Whiteouts::Remove)
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
        let row = self.folders.metadata.get(key)?;
        if row.info.kind == Kind::Committed {
            return Err(Error::NotActive { name: key.to_owned() });
        }
        Ok(self.show(&row))
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.begin(key, Kind::Active, parent)
    }

    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.begin(key, Kind::View, parent)
    }

    fn stacked(&self, _keys: &[&str], _base: Option<&str>) -> Result<Vec<Mount>> {
        let reason = "its snapshots are full copies; prepare each on top of its parent".to_owned();
        Err(Error::Unsupported { driver: "native", op: "stack snapshots", reason })
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        self.folders.commit(commits, |row, parent| {
            if row.info.parent.as_deref() == Some(parent) {
                return Ok(());
            }
            let reason = format!("{:?} was not prepared on {parent:?}, and is a full copy", row.info.name);
            Err(Error::Unsupported { driver: "native", op: "change the parent", reason })
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
