//! A driver that does not say that its layers can be unpacked at once.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use windlass_snapshot::{Capabilities, Commit, Info, Mount, Overlay, Result, Snapshotter, Usage, Whiteouts};

/// Overlayfs, with each layer applied through a mount on top of those below it.
#[derive(Debug)]
pub(crate) struct OneByOne(pub(crate) Overlay);

impl Snapshotter for OneByOne {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(false, Whiteouts::Remove)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn lock_file(&self) -> &Path {
        self.0.lock_file()
    }

    fn stat(&self, name: &str) -> Result<Option<Info>> {
        self.0.stat(name)
    }

    fn update(&self, name: &str, labels: BTreeMap<String, String>) -> Result<Info> {
        self.0.update(name, labels)
    }

    fn usage(&self, name: &str) -> Result<Usage> {
        self.0.usage(name)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        self.0.mounts(key)
    }

    fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.0.prepare(key, parent)
    }

    fn view(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>> {
        self.0.view(key, parent)
    }

    fn stacked(&self, keys: &[&str], base: Option<&str>) -> Result<Vec<Mount>> {
        self.0.stacked(keys, base)
    }

    fn write_back(&self) -> Result<()> {
        self.0.write_back()
    }

    fn commit(&self, commits: &[Commit<'_>]) -> Result<()> {
        self.0.commit(commits)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    fn forget(&self, name: &str) -> Result<()> {
        self.0.forget(name)
    }

    fn walk(&self, visit: &mut dyn FnMut(Info) -> ControlFlow<()>) -> Result<()> {
        self.0.walk(visit)
    }

    fn cleanup(&self) -> Result<u64> {
        self.0.cleanup()
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}
