use std::{
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::UNIX_EPOCH,
};

use rustix::{fs::Mode, mount::UnmountFlags};

/// A folder of our own to mount on. When it is dropped, it is gone, and what was mounted on it is unmounted.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    mounts: usize,
}

impl Place {
    /// Makes a folder for temporary files that only we may enter.
    pub(super) fn new() -> io::Result<Self> {
        Self::at(unique())
    }

    /// Makes a folder in this one. Whoever has it drops it first.
    pub(super) fn inner(&self, name: &str) -> io::Result<Self> {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        rustix::fs::mkdir(&path, Mode::RWXU)?;
        Ok(Self { path, mounts: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Says that so many mounts are on it.
    pub(super) fn mounted(&mut self, mounts: usize) {
        self.mounts = mounts;
    }
}

/// A path for temporary files that nobody else has.
pub(super) fn unique() -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("windlass-mount-{}-{count}-{now}", std::process::id()))
}

impl Drop for Place {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        let unmounted = (0..self.mounts).try_for_each(|_| rustix::mount::unmount(&self.path, flags));
        // Not recursively: what may still be mounted is not ours to delete.
        if let Err(err) = unmounted.and_then(|()| rustix::fs::rmdir(&self.path)) {
            let error = io::Error::from(err);
            tracing::warn!(path = %self.path.display(), %error, "a place for mounts is left behind");
        }
    }
}
