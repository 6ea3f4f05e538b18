//! Blobs in a folder that is a valid OCI image layout, shared between processes.

mod arrival;
mod committed;
mod disk;
mod expire;
mod index;
mod ingests;
mod intake;
mod lock;
mod names;
mod sidecar;
mod verify;
mod write_back;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use oci_spec::image::{Descriptor, Digest};
use tokio::task::spawn_blocking;

use self::{
    arrival::Arrivals,
    committed::{Blobs, Found},
    ingests::IngestFolder,
    lock::Locks,
    writer::LocalWriter,
};
pub use self::{
    expire::Expired,
    verify::{Condition, Verified, Verify},
};
use crate::{
    Blob, Error, Filter, Info, Ingest, Ingester, Labels, Provider, Result, Status, Store, hash::Hasher,
    labels,
};

/// How many blobs a walk looks at in one go.
const WALK: usize = 128;

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is visible: it survives a power cut.
    #[default]
    Safe,
    /// When the kernel gets to it. A power cut may leave committed blobs damaged, and without their labels.
    Fast,
}

/// Settings of a [`LocalStore`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// When a commit is on the disk. [`Durability::Safe`] by default.
    pub durability: Durability,
    /// How long an ingest is kept that gets no bytes and has no writer. 24 h by default.
    pub ingest_expiry: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::default(), ingest_expiry: Duration::from_secs(24 * 60 * 60) }
    }
}

impl Options {
    /// Sets when a commit is on the disk.
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Sets how long an ingest is kept that gets no bytes and has no writer.
    pub fn ingest_expiry(self, ingest_expiry: Duration) -> Self {
        Self { ingest_expiry, ..self }
    }
}

/// A content store in a folder. Cheap to clone; clones are the same store.
///
/// ```text
/// <path>/oci-layout, index.json           the folder is an OCI image layout
/// <path>/blobs/<algorithm>/<hex>          committed, read-only
/// <path>/ingest/<sha256 of the key>/      in progress: data, key, expected (a descriptor)
/// <path>/labels/<algorithm>/<hex>         the labels of a blob, as a JSON object; only of those that have some
/// <path>/quarantine/<algorithm>-<hex>     what was damaged
/// ```
///
/// A blob that is damaged on its face (its size is not the descriptor's, it cannot be opened, it is a folder or a symbolic
/// link) is not trusted: [`ingest`](Ingester::ingest) takes it for missing, and the commit replaces it.
/// [`open`](Provider::open) says [`Error::NotFound`] if only the size is wrong, since the descriptor may be the one that
/// errs, and [`Error::Damaged`] otherwise. Wrong bytes of the right size are found by [`verify`](Self::verify).
#[derive(Clone, Debug)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    durability: Durability,
    ingest_expiry: Duration,
    locks: Locks,
    arrivals: Arrivals,
}

impl LocalStore {
    /// Opens a folder, and creates it if it is missing. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the folder cannot be made or written.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        let root = path.as_ref().to_owned();
        disk::make_layout(&root, options.durability)?;
        let inner = Inner {
            root,
            durability: options.durability,
            ingest_expiry: options.ingest_expiry,
            locks: Locks::default(),
            arrivals: Arrivals::default(),
        };
        let inner = Arc::new(inner);
        expire::in_background(&inner);
        Ok(Self { inner })
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        disk::blob_path(&self.inner.root, digest)
    }

    /// The same blobs, and those that this store is just taking in.
    pub fn following(&self) -> Following {
        Following { store: self.clone() }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        spawn_blocking(move || work(&this)).await.expect("disk work neither panics nor is aborted")
    }
}

#[async_trait]
impl Provider for LocalStore {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        Hasher::new(descriptor.digest())?;
        let descriptor = descriptor.clone();
        self.blocking(move |this| {
            let digest = || descriptor.digest().clone();
            match committed::look(&this.path(descriptor.digest()))? {
                Found::File(file, seen) if seen.len() == descriptor.size() => {
                    Ok(Blob::new(Arc::new(file), seen.len()))
                }
                Found::File(..) | Found::Nothing => Err(Error::NotFound { digest: digest() }),
                Found::Damaged(reason) => Err(Error::Damaged { digest: digest(), reason }),
            }
        })
        .await
    }
}

#[async_trait]
impl Ingester for LocalStore {
    async fn ingest(&self, key: &str, descriptor: &Descriptor) -> Result<Ingest> {
        Hasher::new(descriptor.digest())?;
        if self.present(descriptor).await? {
            return Ok(Ingest::Present);
        }
        let lock = self.inner.locks.take(&ingests::ingest_path(&self.inner.root, key)).await?;
        // Whoever had the lock before may have committed it.
        if self.present(descriptor).await? {
            self.blocking(move |_| lock.discard()).await?;
            return Ok(Ingest::Present);
        }
        let (key, descriptor) = (key.to_owned(), descriptor.clone());
        let writer =
            self.blocking(move |this| LocalWriter::open(this.inner.clone(), lock, &key, descriptor)).await?;
        Ok(Ingest::Open(Box::new(writer)))
    }
}

impl LocalStore {
    async fn present(&self, descriptor: &Descriptor) -> Result<bool> {
        let present = match self.open(descriptor).await {
            Ok(_) => true,
            Err(Error::NotFound { .. } | Error::Damaged { .. }) => false,
            Err(error) => return Err(error),
        };
        if present {
            // Somebody in this process may be waiting for it to arrive, while another process brought it.
            self.inner.arrivals.announce();
        }
        Ok(present)
    }
}

#[async_trait]
impl Store for LocalStore {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        Hasher::new(digest)?;
        let digest = digest.clone();
        self.blocking(move |this| {
            committed::info(&this.inner.root, &digest)?.ok_or(Error::NotFound { digest })
        })
        .await
    }

    async fn update(&self, digest: &Digest, labels: Labels) -> Result<Info> {
        Hasher::new(digest)?;
        labels::check(&labels)?;
        let digest = digest.clone();
        self.blocking(move |this| names::update(&this.inner, &digest, &labels)).await
    }

    fn walk(&self, filter: Filter) -> BoxStream<'_, Result<Info>> {
        let blobs = Blobs::in_store(&self.inner.root);
        let infos = stream::try_unfold((blobs, filter), |(mut blobs, filter)| async {
            let look = move |_: &Self| Ok((blobs.next_infos(&filter, WALK)?, (blobs, filter)));
            let (infos, rest) = self.blocking(look).await?;
            Ok((!infos.is_empty()).then_some((infos, rest)))
        });
        infos.map_ok(|infos| stream::iter(infos.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        Hasher::new(digest)?;
        let digest = digest.clone();
        self.blocking(move |this| names::remove(&this.inner, &digest)).await
    }

    async fn status(&self, key: &str) -> Result<Status> {
        let key = key.to_owned();
        self.blocking(move |this| {
            let folder = ingests::ingest_path(&this.inner.root, &key);
            ingests::status(IngestFolder::new(&folder)).ok_or(Error::NoIngest { key })
        })
        .await
    }

    async fn active(&self) -> Result<Vec<Status>> {
        self.blocking(|this| ingests::active(&this.inner.root)).await
    }

    async fn abort(&self, key: &str) -> Result<()> {
        let folder = ingests::ingest_path(&self.inner.root, key);
        let no_ingest = || Error::NoIngest { key: key.to_owned() };
        let there = folder.clone();
        if !self.blocking(move |_| Ok(there.exists())).await? {
            return Err(no_ingest());
        }
        let lock = self.inner.locks.take(&folder).await?;
        let had_data = self
            .blocking(move |_| {
                let had_data = IngestFolder::new(lock.folder()).data().exists();
                lock.discard().map(|()| had_data)
            })
            .await?;
        // Its writer may have committed it while we waited.
        if had_data { Ok(()) } else { Err(no_ingest()) }
    }
}

/// A [`Provider`] of what is committed and of what is just arriving. From [`LocalStore::following`].
///
/// [`open`](Provider::open) waits until the blob is there or the store (or a clone of it) begins to take it in. Reads then
/// wait for the bytes. A damaged blob is waited for as if it were missing. The end of the blob is only reported once the blob is verified and committed; if its writer gives up,
/// reads fail with [`Error::Abandoned`] inside an [`io::Error`](std::io::Error).
#[derive(Clone, Debug)]
pub struct Following {
    store: LocalStore,
}

#[async_trait]
impl Provider for Following {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        let arrivals = &self.store.inner.arrivals;
        loop {
            // The order matters: who listens first misses nothing that happens between the two looks.
            let mut change = std::pin::pin!(arrivals.changed());
            change.as_mut().enable();
            if let Some(arrival) = arrivals.find(descriptor.digest()) {
                return Ok(Blob::new(arrival, descriptor.size()));
            }
            match self.store.open(descriptor).await {
                Err(Error::NotFound { .. } | Error::Damaged { .. }) => change.await,
                answer => return answer,
            }
        }
    }
}
