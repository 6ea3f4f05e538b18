use std::{sync::Arc, time::Duration};

use windlass_images::{
    BoxError,
    gc::{Collector, Gc, Options, Report, Snapshot},
};
use windlass_rootfs::UNPACK_PREFIX;
use windlass_snapshot::{Error as SnapshotError, Info, Kind, Snapshotter};

use crate::{Result, Windlass};

impl Windlass {
    /// Removes what neither an image nor a lease nor a container needs: blobs, snapshots, ingests that were left behind.
    ///
    /// Pulls, in this and other processes, go on meanwhile, and lose nothing. `options` may drop images first. Of the snapshots
    /// those of this value's [`snapshotter`](Self::snapshotter) are collected.
    ///
    /// ```no_run
    /// use windlass::images::gc::{Options, Policy};
    ///
    /// # async fn example(windlass: windlass::Windlass) -> windlass::Result<()> {
    /// // Of each repository the three names that were pulled last stay.
    /// let options = Options::default().policy(Policy::default().keep_newest(3));
    /// let would = windlass.gc(&options.clone().dry_run(true)).await?;
    /// println!("{} bytes, of {} blobs", would.bytes, would.blobs.len());
    /// windlass.gc(&options).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Images`](crate::Error::Images), and [`Error::Snapshot`](crate::Error::Snapshot) if there are snapshots and
    /// the driver cannot work here. What was removed until then stays removed.
    pub async fn gc(&self, options: &Options) -> Result<Report> {
        let mut gc = Gc::new(self.images().clone(), Arc::new(self.content().clone()));
        if self.has_snapshots() {
            gc = gc.collector(Snapshots(self.open_snapshotter().await?));
        }
        let report = gc.run(options).await?;
        if !options.dry_run {
            self.content().expire_idle(Duration::MAX).await?;
            // Also what another process took off the list, and did not live to take off the index.
            self.write_index().await?;
        }
        Ok(report)
    }
}

/// The snapshots of one driver, for a garbage collection.
#[derive(Debug)]
struct Snapshots(Arc<dyn Snapshotter>);

impl Collector for Snapshots {
    fn driver(&self) -> &str {
        self.0.name()
    }

    fn list(&self) -> Result<Vec<Snapshot>, BoxError> {
        let mut infos = Vec::new();
        self.0.walk(&mut |info| {
            infos.push(info);
            std::ops::ControlFlow::Continue(())
        })?;
        infos.into_iter().filter_map(|info| self.described(info).transpose()).collect()
    }

    fn remove(&self, name: &str) -> Result<bool, BoxError> {
        match self.0.forget(name) {
            Ok(()) | Err(SnapshotError::NotFound { .. }) => Ok(true),
            Err(SnapshotError::HasChildren { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn cleanup(&self) -> Result<(), BoxError> {
        self.0.cleanup()?;
        Ok(())
    }
}

impl Snapshots {
    /// `None` if it was removed since it was listed.
    fn described(&self, info: Info) -> Result<Option<Snapshot>, BoxError> {
        let size = match self.0.usage(&info.name) {
            Ok(usage) => usage.bytes,
            Err(SnapshotError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // A container's is its user's to remove. One into which a layer is being unpacked is held by whoever does that.
        let pinned = info.kind != Kind::Committed && !info.name.starts_with(UNPACK_PREFIX);
        Ok(Some(Snapshot { name: info.name, parent: info.parent, pinned, size }))
    }
}
