use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use windlass_snapshot::{
    Mount,
    mount::{mount_all, unmount},
};

use crate::{Error, Result};

/// A folder that an OCI runtime runs: `config.json` and the mounted `rootfs` (runtime-spec, bundle.md).
///
/// As long as the process that made it lives, no other one takes it for abandoned. Dropping it unmounts the root file system and removes the folder; [`remove`](Self::remove) does the same and says whether it worked.
#[derive(Debug)]
pub struct Bundle {
    path: PathBuf,
    /// The folder, locked. The kernel releases it when the process dies.
    _lock: OwnedFd,
    is_removed: bool,
}

impl Bundle {
    /// Makes the folder and mounts the root file system in it. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folder is there already or cannot be made, [`Error::Snapshot`] if the mount fails. Nothing is left then.
    pub fn mount(path: impl Into<PathBuf>, mounts: &[Mount]) -> Result<Self> {
        let path = path.into();
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|source| Error::Io {
                op: "create",
                path: above.into(),
                source,
            })?;
        }
        let make = |path: &Path, mode| fs::DirBuilder::new().mode(mode).create(path);
        // For its owner alone: an image's set-user-ID programs are not for the host's other users.
        make(&path, 0o700).map_err(|source| Error::Io {
            op: "create the bundle",
            path: path.clone(),
            source,
        })?;
        let lock =
            open(&path).and_then(|folder| flock(&folder, FlockOperation::LockExclusive).map(|()| folder));
        let lock = lock.map_err(|errno| {
            // Nothing else is in it yet.
            let _ = fs::remove_dir(&path);
            failed("lock the bundle", &path)(errno)
        })?;
        // From here on, dropping it cleans up.
        let bundle = Self { path, _lock: lock, is_removed: false };
        let rootfs = bundle.rootfs();
        make(&rootfs, 0o755).map_err(|source| Error::Io { op: "create", path: rootfs.clone(), source })?;
        mount_all(mounts, &rootfs)?;
        Ok(bundle)
    }

    /// Takes over a bundle whose process has died, to remove it. `None` if a process has it. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there is none.
    pub fn adopt(path: impl Into<PathBuf>) -> Result<Option<Self>> {
        let path = path.into();
        let folder = open(&path).map_err(failed("open the bundle", &path))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path, _lock: folder, is_removed: false })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed("lock the bundle", &path)(errno)),
        }
    }

    /// Whether the process that made a bundle still has it. `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn is_in_use(path: &Path) -> Result<Option<bool>> {
        let folder = match open(path) {
            Err(Errno::NOENT) => return Ok(None),
            answer => answer.map_err(failed("open the bundle", path))?,
        };
        match flock(&folder, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(false)),
            Err(Errno::WOULDBLOCK) => Ok(Some(true)),
            Err(errno) => Err(failed("lock the bundle", path)(errno)),
        }
    }

    /// Writes `config.json`. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write_spec(&self, spec: &Spec) -> Result<()> {
        let json = serde_json::to_vec_pretty(spec).expect("a spec can always be serialised");
        let path = self.path.join("config.json");
        fs::write(&path, json).map_err(|source| Error::Io { op: "write", path, source })
    }

    /// The folder: what a runtime takes as `--bundle`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// Unmounts the root file system and removes the folder. Blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] and [`Error::Io`].
    pub fn remove(mut self) -> Result<()> {
        self.is_removed = true;
        self.clean_up()
    }

    fn clean_up(&self) -> Result<()> {
        unmount(&self.rootfs())?;
        // Not recursively: should the unmount not have worked, nothing of the image may be deleted.
        for (op, path) in [
            ("remove", self.path.join("config.json")),
            ("remove", self.rootfs()),
            ("remove", self.path.clone()),
        ] {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Io { op, path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Io { op, path: path.to_owned(), source: errno.into() }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if self.is_removed {
            return;
        }
        if let Err(error) = self.clean_up() {
            tracing::warn!(path = %self.path.display(), %error, "a bundle is left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn bind(source: &Path) -> Mount {
        Mount { fstype: "bind".into(), source: source.into(), options: vec!["rbind".into()] }
    }

    fn mounted_below(folder: &Path) -> bool {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts can be read");
        mounts.contains(folder.to_str().expect("it is UTF-8"))
    }

    #[test]
    fn a_bundle_shows_the_tree_to_its_owner_and_leaves_it_whole() {
        let (tree, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs::write(tree.path().join("file"), "content").expect("it can be written");
        let path = folder.path().join("bundles/mine");

        let bundle = Bundle::mount(&path, &[bind(tree.path())]).expect("it can be mounted");
        bundle.write_spec(&Spec::default()).expect("it can be written");
        let shown = fs::read(bundle.rootfs().join("file")).expect("it is shown");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
        let spec = Spec::load(path.join("config.json")).expect("it is a spec");
        bundle.remove().expect("nobody uses it");

        assert_eq!((shown, mode, spec), (b"content".to_vec(), 0o700, Spec::default()));
        assert!(!path.exists() && !mounted_below(&path));
        assert!(tree.path().join("file").exists(), "what it showed is not its own");
    }

    #[test]
    fn a_bundle_that_cannot_be_made_leaves_nothing() {
        let (tree, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("mine");
        let mounts = [bind(tree.path()), bind(&tree.path().join("missing"))];

        let err = Bundle::mount(&path, &mounts).expect_err("the second mount fails");

        assert!(matches!(err, Error::Snapshot(_)), "{err:?}");
        assert!(!path.exists() && !mounted_below(&path));
    }

    #[test]
    fn a_bundle_that_is_there_is_not_touched() {
        let (tree, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("mine");
        let first = Bundle::mount(&path, &[bind(tree.path())]).expect("it can be mounted");

        let err = Bundle::mount(&path, &[]).expect_err("it is taken");

        assert!(matches!(err, Error::Io { op: "create the bundle", .. }), "{err:?}");
        assert!(mounted_below(&path));
        drop(first);
        assert!(!path.exists(), "dropping it removes it");
    }
}
