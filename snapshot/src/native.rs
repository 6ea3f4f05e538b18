//! Snapshots as plain copies: slower and larger than overlays, and at home on every file system.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use crate::{
    Capabilities, Commit, Durability, Error, Info, Kind, Mount, Result, Snapshotter, Usage, Whiteouts,
    folders::{Files, Folders, mkdir},
    root::Root,
    tree,
};

/// Makes every snapshot a full copy of its parent's tree, with holes, hard links and all attributes. Where the file system can
/// share blocks, it does.
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
        let folders = Folders::open(Root::open(root)?, durability, Files::default())?;
        Ok(Self { folders })
    }

    fn begin(&self, key: &str, kind: Kind, parent: Option<&str>) -> Result<Vec<Mount>> {
        let row = self.folders.create(key, kind, parent, |folder, below| {
            let top = folder.join("fs");
            mkdir(&top, 0o755)?;
            match below {
                Some(below) => tree::copy_folder(&below.join("fs"), &top),
                None => Ok(()),
            }
        })?;
        Ok(self.folders.bind(&row))
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
        Ok(self.folders.bind(&self.folders.metadata.active(key)?))
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

    fn write_back(&self) -> Result<()> {
        self.folders.sync()
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        self.folders.commit(commits, &[], |row, parent| row.keeps(parent, "native"))
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
