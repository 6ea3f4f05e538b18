use std::{collections::BTreeMap, fs, ops::ControlFlow, path::PathBuf, time::SystemTime};

use windlass_rootfs::{Bundle, UNPACK_PREFIX};
use windlass_snapshot::{Error as SnapshotError, Kind};

use crate::{Error, Result, Windlass, labels::IMAGE, windlass::blocking};

/// A container, or what is left of one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Container {
    /// Its name, which is its snapshot's key.
    pub id: String,
    /// The image that it was made of, if that was noted.
    pub image: Option<String>,
    /// When its snapshot was made. `None` if it has none any more.
    pub created: Option<SystemTime>,
    /// What there is of it.
    pub state: ContainerState,
}

/// What there is of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContainerState {
    /// A process has it mounted.
    InUse,
    /// It is mounted, and the process that did it has died.
    Abandoned,
    /// What it wrote is kept; nothing is mounted.
    Kept,
}

impl Windlass {
    /// The containers, in the order of their names: all active snapshots, and bundles that were left behind.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if there are snapshots and the driver cannot work here, [`Error::Rootfs`] and [`Error::Io`] if the bundles
    /// cannot be looked at.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        let this = self.clone();
        blocking(move || {
            let mut found = BTreeMap::new();
            if this.has_snapshots() {
                this.snapshotter()?.walk(&mut |info| {
                    if info.kind == Kind::Active && !info.name.starts_with(UNPACK_PREFIX) {
                        let image = info.labels.get(IMAGE).cloned();
                        let (created, state) = (Some(info.created), ContainerState::Kept);
                        let container = Container { id: info.name.clone(), image, created, state };
                        found.insert(info.name, container);
                    }
                    ControlFlow::Continue(())
                })?;
            }
            for id in this.bundles()? {
                let state = match Bundle::is_in_use(&this.bundle_path(&id))? {
                    None => continue,
                    Some(true) => ContainerState::InUse,
                    Some(false) => ContainerState::Abandoned,
                };
                let left = || Container { id: id.clone(), image: None, created: None, state };
                found.entry(id.clone()).or_insert_with(left).state = state;
            }
            Ok(found.into_values().collect())
        })
        .await
    }

    /// Removes a container's bundle, and with `snapshot` also what it wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Rootfs`] if it cannot be unmounted, [`Error::Snapshot`].
    pub async fn remove_container(&self, id: &str, bundle: Bundle, snapshot: bool) -> Result<()> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || {
            bundle.remove()?;
            if snapshot {
                this.snapshotter()?.remove(&id)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes what is left of a container that nobody uses: its bundle, and what it wrote.
    ///
    /// Should its process have died, and left the container running, end that first: its root file system goes.
    ///
    /// # Errors
    ///
    /// [`Error::NoContainer`], [`Error::ContainerInUse`], [`Error::Rootfs`] if it cannot be unmounted, [`Error::Snapshot`].
    pub async fn discard_container(&self, id: &str) -> Result<()> {
        let (this, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let has_bundle = this.bundles()?.contains(&id);
            let snapshotter = if this.has_snapshots() { Some(this.snapshotter()?) } else { None };
            let info = snapshotter.as_ref().map(|it| it.stat(&id)).transpose()?.flatten();
            let is_container =
                info.is_some_and(|it| it.kind == Kind::Active && !it.name.starts_with(UNPACK_PREFIX));
            if !has_bundle && !is_container {
                return Err(Error::NoContainer { id });
            }
            if has_bundle {
                match Bundle::adopt(this.bundle_path(&id))? {
                    Some(bundle) => bundle.remove()?,
                    None => return Err(Error::ContainerInUse { id }),
                }
            }
            match snapshotter.filter(|_| is_container).map(|it| it.remove(&id)) {
                // Its own process removed it meanwhile.
                None | Some(Ok(()) | Err(SnapshotError::NotFound { .. })) => Ok(()),
                Some(Err(error)) => Err(error.into()),
            }
        })
        .await
    }

    pub(crate) fn bundle_path(&self, id: &str) -> PathBuf {
        self.root().join("bundles").join(id)
    }

    /// The names of the folders of bundles.
    fn bundles(&self) -> Result<Vec<String>> {
        let folder = self.root().join("bundles");
        let failed = |source| Error::Io { op: "list", path: folder.clone(), source };
        match fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
            Ok(entries) => {
                let mut names = Vec::new();
                for entry in entries {
                    names.extend(entry.map_err(failed)?.file_name().into_string());
                }
                Ok(names)
            }
        }
    }
}
