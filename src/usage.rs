use std::{
    collections::{HashMap, HashSet},
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use futures::TryStreamExt;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Filter as Blobs, Store};
use windlass_images::{BoxError, ChildrenHandler, Filter, Handler, Image, Next, Platform, gc::Options, walk};

use crate::{Result, Windlass, windlass::blocking};

/// What takes the space in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// The images that are listed, by name.
    pub images: Vec<ImageUsage>,
    /// All blobs.
    pub blobs: Total,
    /// Ingests that are not complete.
    pub ingests: Total,
    /// All snapshots, those of containers included.
    pub snapshots: Total,
    /// What of all that a [garbage collection](Windlass::gc) would remove now.
    pub reclaimable: Total,
}

/// What one image takes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageUsage {
    /// Its name.
    pub name: String,
    /// Its blobs that are here, in bytes.
    pub blobs: u64,
    /// Those of them that another name with another target needs, too, in bytes.
    pub shared: u64,
    /// Its snapshots for this host that are here, in bytes.
    pub unpacked: u64,
}

/// So many things, and what they take together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// How many.
    pub count: u64,
    /// In bytes.
    pub bytes: u64,
}

impl Total {
    fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

impl Windlass {
    /// Finds out what takes the space. Reads manifests and configs, but no layers. Waits while garbage is collected.
    ///
    /// Of the snapshots those of this value's [`snapshotter`](Self::snapshotter) are counted.
    ///
    /// ```no_run
    /// # async fn example(windlass: windlass::Windlass) -> windlass::Result<()> {
    /// let usage = windlass.usage().await?;
    /// for image in &usage.images {
    ///     println!("{}: {} bytes, {} of them its own", image.name, image.blobs, image.blobs - image.shared);
    /// }
    /// println!("{} bytes could be freed", usage.reclaimable.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Content`](crate::Error::Content), [`Error::Images`](crate::Error::Images), and
    /// [`Error::Snapshot`](crate::Error::Snapshot) if there are snapshots and the driver cannot work here.
    pub async fn usage(&self) -> Result<Usage> {
        let mut usage = Usage::default();
        let infos = self.content().walk(Blobs::default()).map_ok(|it| (it.digest, it.size));
        let blobs: HashMap<Digest, u64> = infos.try_collect().await?;
        blobs.values().for_each(|size| usage.blobs.add(*size));
        self.content().active().await?.iter().for_each(|ingest| usage.ingests.add(ingest.offset));
        let snapshots = self.snapshot_sizes().await?;
        snapshots.values().for_each(|size| usage.snapshots.add(*size));

        let this = self.clone();
        let records = blocking(move || Ok(this.images().list(&Filter::all())?)).await?;
        let mut needed: HashMap<Digest, HashSet<Digest>> = HashMap::new();
        for record in &records {
            if !needed.contains_key(record.target.digest()) {
                let below = self.below(&record.target, &blobs).await?;
                needed.insert(record.target.digest().clone(), below);
            }
        }
        let mut users: HashMap<&Digest, usize> = HashMap::new();
        needed.values().flatten().for_each(|blob| *users.entry(blob).or_default() += 1);
        for record in &records {
            let of_image = &needed[record.target.digest()];
            let size = |blob: &Digest| blobs[blob];
            usage.images.push(ImageUsage {
                name: record.name.clone(),
                blobs: of_image.iter().map(size).sum(),
                shared: of_image.iter().filter(|blob| users[blob] > 1).map(size).sum(),
                unpacked: self.unpacked(&record.target, &snapshots).await,
            });
        }
        let garbage = self.gc(&Options::default().dry_run(true)).await?;
        let count = garbage.blobs.len() + garbage.snapshots.len() + garbage.ingests.len();
        usage.reclaimable = Total { count: count as u64, bytes: garbage.bytes };
        Ok(usage)
    }

    /// The blobs below a target that are here.
    async fn below(&self, target: &Descriptor, blobs: &HashMap<Digest, u64>) -> Result<HashSet<Digest>> {
        let children = ChildrenHandler::new(Arc::new(self.content().clone()));
        let found = Arc::new(Mutex::new(HashSet::new()));
        let (all, here) = (found.clone(), blobs.keys().cloned().collect::<HashSet<_>>());
        let look = move |node: Descriptor| {
            let is_here = here.contains(node.digest());
            if is_here {
                all.lock().unwrap_or_else(PoisonError::into_inner).insert(node.digest().clone());
            }
            let children = children.clone();
            async move {
                match is_here {
                    // What cannot be read has nothing below it.
                    true => Ok::<_, BoxError>(children.handle(&node).await.unwrap_or(Next::Skip)),
                    false => Ok(Next::Skip),
                }
            }
        };
        walk(&look, target.clone()).await?;
        Ok(std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// What an image's snapshots take that are here. None of one that is not for this host.
    async fn unpacked(&self, target: &Descriptor, snapshots: &HashMap<String, u64>) -> u64 {
        match Image::open(self.content(), target, &Platform::host()).await {
            Ok(image) => image.chain_ids().iter().filter_map(|it| snapshots.get(it.as_ref())).sum(),
            Err(_) => 0,
        }
    }

    async fn snapshot_sizes(&self) -> Result<HashMap<String, u64>> {
        if !self.has_snapshots() {
            return Ok(HashMap::new());
        }
        let snapshotter = self.open_snapshotter().await?;
        blocking(move || {
            let mut names = Vec::new();
            snapshotter.walk(&mut |info| {
                names.push(info.name);
                ControlFlow::Continue(())
            })?;
            // One that is removed meanwhile takes nothing.
            let size = |name: String| Some((snapshotter.usage(&name).ok()?.bytes, name));
            Ok(names.into_iter().filter_map(size).map(|(bytes, name)| (name, bytes)).collect())
        })
        .await
    }
}
