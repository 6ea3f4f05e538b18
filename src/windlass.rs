use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use windlass_content::{Error as ContentError, LocalStore};
use windlass_images::Image;
use windlass_remotes::{Registry, Resolver};
use windlass_snapshot::{Durability, Snapshotter};

use crate::{Driver, Error, Platforms, Result};

/// One folder with content, images and snapshots, and the way to the registries.
///
/// Cheap to clone. Several processes may open the same folder at once.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let windlass = windlass::Windlass::open("/var/lib/windlass")?;
///
/// let pulled = windlass.pull(&"redis:7".parse()?).await?;
/// let image = windlass.image(&pulled.name, &windlass::Platforms::Host).await?;
/// println!("{} takes {} bytes", pulled.name, image.size());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Windlass {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    store: LocalStore,
    images: windlass_images::Store,
    durability: Durability,
    driver: Driver,
    /// Opened when it is first needed: listing content needs no right to mount.
    snapshotter: OnceLock<Arc<dyn Snapshotter>>,
    resolver: Arc<dyn Resolver>,
    concurrency: NonZeroUsize,
}

impl Windlass {
    /// Opens a folder with the default settings, and creates it if it is missing. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// As [`Builder::open`].
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(root)
    }

    /// Settings to choose before a folder is opened.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The blobs.
    pub fn content(&self) -> &LocalStore {
        &self.inner.store
    }

    /// The names. Its calls block on the disk for a moment.
    pub fn images(&self) -> &windlass_images::Store {
        &self.inner.images
    }

    /// Where names are resolved.
    pub fn resolver(&self) -> &Arc<dyn Resolver> {
        &self.inner.resolver
    }

    /// The unpacked layers. Opens the driver on the first call, which blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if the driver cannot work here; it says why, and what to do.
    pub fn snapshotter(&self) -> Result<Arc<dyn Snapshotter>> {
        if let Some(open) = self.inner.snapshotter.get() {
            return Ok(open.clone());
        }
        let opened = self.inner.driver.open(&self.snapshots(), self.inner.durability)?;
        Ok(self.inner.snapshotter.get_or_init(|| opened).clone())
    }

    /// The image of that name for a platform: its manifest, config and ChainID.
    ///
    /// # Errors
    ///
    /// [`Error::NoImage`] if it was not pulled, [`Error::Images`] if it has nothing for the platform, [`Error::NotWhole`]
    /// if its manifest for the platform was not fetched, or is damaged.
    pub async fn image(&self, name: &str, platforms: &Platforms) -> Result<Image> {
        let (this, looked_up) = (self.clone(), name.to_owned());
        let record = blocking(move || Ok(this.inner.images.get(&looked_up)?)).await?;
        let record = record.ok_or_else(|| Error::NoImage { name: name.into() })?;
        let opened = Image::open(&self.inner.store, &record.target, &platforms.to_run()).await;
        opened.map_err(|error| match error {
            windlass_images::Error::Content(
                source @ (ContentError::NotFound { .. }
                | ContentError::Damaged { .. }
                | ContentError::DigestMismatch { .. }
                | ContentError::SizeMismatch { .. }),
            ) => Error::NotWhole { name: name.into(), source },
            error => error.into(),
        })
    }

    /// Whether there may be snapshots: whoever only fetches has none, and no right to mount.
    pub(crate) fn has_snapshots(&self) -> bool {
        self.inner.snapshotter.get().is_some() || self.inner.driver.has_been_used(&self.snapshots())
    }

    fn snapshots(&self) -> PathBuf {
        self.inner.root.join("snapshots")
    }

    pub(crate) fn concurrency(&self) -> NonZeroUsize {
        self.inner.concurrency
    }
}

/// Settings of a [`Windlass`].
#[derive(Clone, Debug)]
pub struct Builder {
    durability: Durability,
    driver: Driver,
    resolver: Option<Arc<dyn Resolver>>,
    snapshotter: Option<Arc<dyn Snapshotter>>,
    concurrency: NonZeroUsize,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            driver: Driver::default(),
            resolver: None,
            snapshotter: None,
            concurrency: NonZeroUsize::new(6).expect("six is not zero"),
        }
    }
}

impl Builder {
    /// Whether what is listed survives a power cut. [`Durability::Safe`] if not set.
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Where names are resolved. A [`Registry`] with its default settings if not set.
    pub fn resolver(self, resolver: impl Resolver + 'static) -> Self {
        Self { resolver: Some(Arc::new(resolver)), ..self }
    }

    /// Which driver unpacks layers below `<root>/snapshots`. [`Driver::Auto`] if not set.
    pub fn driver(self, driver: Driver) -> Self {
        Self { driver, ..self }
    }

    /// Where layers are unpacked, whatever [`driver`](Self::driver) says. Below `<root>/snapshots` if not set.
    pub fn snapshotter(self, snapshotter: impl Snapshotter + 'static) -> Self {
        Self { snapshotter: Some(Arc::new(snapshotter)), ..self }
    }

    /// How many blobs are fetched, and how many layers unpacked, at once. 6 if not set.
    pub fn concurrency(self, concurrency: NonZeroUsize) -> Self {
        Self { concurrency, ..self }
    }

    /// Opens the folder, and creates it if it is missing. Blocks on the disk; connects to nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Content`] and [`Error::Images`] if the folder cannot be made or read.
    pub fn open(self, root: impl AsRef<Path>) -> Result<Windlass> {
        #[cfg(feature = "rustls-ring")]
        install_tls_provider();
        let root = root.as_ref();
        fs::create_dir_all(root).map_err(|source| Error::Io { op: "create", path: root.into(), source })?;
        let root =
            root.canonicalize().map_err(|source| Error::Io { op: "open", path: root.into(), source })?;
        let durability = match self.durability {
            Durability::Safe => windlass_content::Durability::Safe,
            Durability::Fast => windlass_content::Durability::Fast,
        };
        let store = LocalStore::open(
            root.join("content"),
            windlass_content::Options::default().durability(durability),
        )?;
        let images = windlass_images::Store::open(root.join("images.db"))?;
        let resolver = match self.resolver {
            Some(resolver) => resolver,
            None => Arc::new(Registry::builder().build()?),
        };
        let snapshotter = self.snapshotter.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Windlass {
            inner: Arc::new(Inner {
                root,
                store,
                images,
                durability: self.durability,
                driver: self.driver,
                snapshotter,
                resolver,
                concurrency: self.concurrency,
            }),
        })
    }
}

/// Makes ring the process's TLS provider, unless the program chose one.
#[cfg(feature = "rustls-ring")]
fn install_tls_provider() {
    // An error says that there is one already, which is what we want.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Runs disk work off the runtime's workers.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.expect("the work neither panics nor is aborted")
}
