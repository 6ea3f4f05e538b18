use std::{
    io::{self, Read},
    sync::Arc,
};

use async_trait::async_trait;
use oci_spec::image::{Descriptor, MediaType};
use windlass_content::{Blob, Error as ContentError, Ingest, Ingester, LocalStore, Provider};
use windlass_images::{
    Image, Lease, LeaseOptions, Resource,
    import::{self, Imported},
    progress::Progress,
};
use windlass_remotes::local::Source;
use windlass_rootfs::{apply::Limits, compression::decompress};

use crate::{Platforms, PullOptions, Pulled, Result, Retain, Windlass, attempt::Extent};

/// What an import does beyond the defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ImportOptions {
    /// Which platforms must be whole. With [`Platforms::All`], the default, all that are there, and at least one.
    pub platforms: Platforms,
    /// Where events go. Nowhere by default. Only [`import_from`](Windlass::import_from) sends any.
    pub progress: Progress,
    /// Whether layers are unpacked into snapshots. False by default: the images may be for elsewhere.
    pub unpack: bool,
    /// The names, tags or digests of the images that are wanted. All by default.
    pub names: Vec<String>,
    /// What images that have only a tag, or nothing, are called: `localhost/BASE:TAG`. For a file this is its name. By
    /// default a tag is one of `localhost/import`, and what has none is recorded by its digest.
    pub base: Option<String>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            platforms: Platforms::All,
            progress: Progress::default(),
            unpack: false,
            names: Vec::new(),
            base: None,
        }
    }
}

impl ImportOptions {
    /// Sets which platforms must be whole.
    pub fn platforms(self, platforms: Platforms) -> Self {
        Self { platforms, ..self }
    }

    /// Sets where events go.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Sets whether layers are unpacked.
    pub fn unpack(self, unpack: bool) -> Self {
        Self { unpack, ..self }
    }

    /// Sets which images are wanted.
    pub fn names(self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets what images without a whole name are called after.
    pub fn base(self, base: impl Into<String>) -> Self {
        Self { base: Some(base.into()), ..self }
    }
}

impl Windlass {
    /// Takes in the images of an archive while it comes, and records their names last.
    ///
    /// The archive may be a tar of an OCI image layout, or of `docker save`, or both, and may be compressed with gzip or
    /// zstd. It is read to its end, on a thread of its own. See [`import`](windlass_images::import::import()).
    ///
    /// ```no_run
    /// use std::fs::File;
    ///
    /// use windlass::ImportOptions;
    ///
    /// # async fn example(windlass: windlass::Windlass) -> Result<(), Box<dyn std::error::Error>> {
    /// let archive = File::open("saved.tar.gz")?;
    /// for image in windlass.import(archive, ImportOptions::default().unpack(true)).await? {
    ///     println!("{} {}", image.name, image.target.digest());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Images`](crate::Error::Images) if the archive or an image in it cannot be used, and those of unpacking.
    /// Nothing is listed then.
    pub async fn import(
        &self,
        archive: impl Read + Send + 'static,
        options: ImportOptions,
    ) -> Result<Vec<Pulled>> {
        let ImportOptions { platforms, unpack, names, base, .. } = options;
        let mut archive_options = import::ImportOptions::default().names(names).temporary(self.root());
        archive_options.base = base;
        archive_options.platform = match &platforms {
            Platforms::All => None,
            one => Some(one.to_run()),
        };
        let archive = Decompressed::Closed(Some(archive));
        let lease = self.images().lease(LeaseOptions::default().label("import", "an archive")).await?;
        let held = Held { store: self.content().clone(), lease: lease.clone() };
        let imported = import::import(&held, archive, &archive_options).await?;

        let mut pulled = Vec::new();
        for Imported { name, target, .. } in imported {
            let chain_id = match unpack {
                true => {
                    let image = Image::open(self.content(), &target, &platforms.to_run()).await?;
                    self.unpack_held(Arc::new(self.content().clone()), image.descriptor(), &lease).await?
                }
                false => None,
            };
            let name = name.unwrap_or_else(|| format!("localhost/import@{}", target.digest()));
            pulled.push(Pulled { name, target, chain_id });
        }
        for image in &pulled {
            self.record(&image.name, &image.target, None, Retain::Everything).await?;
        }
        lease.release().await?;
        Ok(pulled)
    }

    /// Takes in all images of a local file or folder, or the one that `source` names, each as
    /// [`pull_resolved`](Self::pull_resolved) does.
    ///
    /// Only what is wanted is read. Of the options, `base` is the name of the file.
    ///
    /// # Errors
    ///
    /// As [`pull`](Self::pull). Images that came before are listed.
    pub async fn import_from(&self, source: &Source, options: ImportOptions) -> Result<Vec<Pulled>> {
        let ImportOptions { platforms, progress, unpack, names, .. } = options;
        let extent = match platforms {
            Platforms::All => Extent::WhatIsThere,
            _ => Extent::Platforms,
        };
        let pull = PullOptions::default().platforms(platforms).progress(progress).unpack(unpack);
        let mut pulled = Vec::new();
        for resolved in source.resolve_all(self.resolver().as_ref(), &names).await? {
            pulled.push(self.pull_from(resolved, pull.clone(), None, extent).await?);
        }
        Ok(pulled)
    }
}

/// A store that holds what is taken in, before it looks whether it is there.
#[derive(Debug)]
struct Held {
    store: LocalStore,
    lease: Lease,
}

#[async_trait]
impl Provider for Held {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob, ContentError> {
        self.store.open(descriptor).await
    }
}

#[async_trait]
impl Ingester for Held {
    async fn ingest(&self, key: &str, descriptor: &Descriptor) -> Result<Ingest, ContentError> {
        let hold = self.lease.hold(&Resource::Blob(descriptor.digest().clone())).await;
        hold.map_err(|error| ContentError::Source {
            digest: descriptor.digest().clone(),
            source: io::Error::other(error),
        })?;
        self.store.ingest(key, descriptor).await
    }
}

/// A reader that finds out when it is first read how its bytes are compressed: that blocks.
enum Decompressed<R> {
    Closed(Option<R>),
    Open(Box<dyn Read + Send>),
}

impl<R: Read + Send + 'static> Read for Decompressed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self {
                Self::Open(plain) => return plain.read(buf),
                Self::Closed(compressed) => {
                    let compressed = compressed.take().ok_or(io::ErrorKind::BrokenPipe)?;
                    // A file has no media type: its first bytes say what it is.
                    let unnamed = MediaType::Other(String::new());
                    *self = Self::Open(decompress(compressed, &unnamed, &Limits::default())?);
                }
            }
        }
    }
}
