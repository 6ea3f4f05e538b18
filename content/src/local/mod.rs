//! Blobs in a folder that is a valid OCI image layout, shared between processes.

mod arrival;
mod disk;
mod lock;
mod writer;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
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
    disk::{IngestFolder, io_error},
    lock::Locks,
    writer::LocalWriter,
};
use crate::{Blob, Error, Info, Ingest, Ingester, Provider, Result, Status, Store, hash::Hasher};

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Before it is visible: it survives a power cut.
    #[default]
    Safe,
    /// When the kernel gets to it. A power cut may leave committed blobs damaged.
    Fast,
}

/// Settings of a [`LocalStore`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {
    /// When a commit is on the disk. [`Durability::Safe`] by default.
    pub durability: Durability,
}

impl Options {
    /// Sets when a commit is on the disk.
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability }
    }
}

/// A content store in a folder. Cheap to clone; clones are the same store.
///
/// ```text
/// <path>/oci-layout, index.json           the folder is an OCI image layout
/// <path>/blobs/<algorithm>/<hex>          committed, read-only
/// <path>/ingest/<sha256 of the key>/      in progress: data, key, expected (a descriptor)
/// ```
#[derive(Clone, Debug)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    durability: Durability,
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
            locks: Locks::default(),
            arrivals: Arrivals::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        disk::blob_path(&self.inner.root, digest)
    }

    /// The same blobs, and those that this store is just taking in.
    pub fn following(&self) -> Following {
        Following { store: self.clone() }
    }

    /// Opens a committed blob; `None` if it is not there, or damaged in its size.
    fn open_committed(&self, descriptor: &Descriptor) -> Result<Option<Blob>> {
        let path = self.path(descriptor.digest());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("open", &path)(source)),
        };
        let size = file.metadata().map_err(io_error("read the size of", &path))?.len();
        Ok((size == descriptor.size()).then(|| Blob::new(Arc::new(file), size)))
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
            this.open_committed(&descriptor)?
                .ok_or_else(|| Error::NotFound { digest: descriptor.digest().clone() })
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
        let lock = self.inner.locks.take(&disk::ingest_path(&self.inner.root, key)).await?;
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
        let wanted = descriptor.clone();
        let present = self.blocking(move |this| Ok(this.open_committed(&wanted)?.is_some())).await?;
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
            let path = this.path(&digest);
            match fs::metadata(&path) {
                Ok(metadata) => disk::info(digest, &metadata, &path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound { digest }),
                Err(source) => Err(io_error("read", &path)(source)),
            }
        })
        .await
    }

    fn walk(&self) -> BoxStream<'_, Result<Info>> {
        let list = self.blocking(|this| disk::list(&this.inner.root));
        stream::once(list).map_ok(|infos| stream::iter(infos.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        Hasher::new(digest)?;
        let digest = digest.clone();
        self.blocking(move |this| {
            let path = this.path(&digest);
            match fs::remove_file(&path) {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NotFound { digest }),
                Err(source) => Err(io_error("delete", &path)(source)),
            }
        })
        .await
    }

    async fn active(&self) -> Result<Vec<Status>> {
        self.blocking(|this| disk::active(&this.inner.root)).await
    }

    async fn abort(&self, key: &str) -> Result<()> {
        let folder = disk::ingest_path(&self.inner.root, key);
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
/// wait for the bytes. The end of the blob is only reported once the blob is verified and committed; if its writer gives up,
/// reads fail with [`Error::Abandoned`] inside an [`io::Error`].
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
                Err(Error::NotFound { .. }) => change.await,
                answer => return answer,
            }
        }
    }
}
