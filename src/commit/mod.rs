//! An image out of a container: what it has changed becomes a layer on top of its image's.

mod document;
mod manifest;

use std::{fs::File, io::Write, path::PathBuf, sync::Arc, time::SystemTime};

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Blob, Ingest, Ingester, Labels, ProviderExt, hash::sha256};
use windlass_images::{Image, Lease, LeaseOptions, Resource};
use windlass_reference::Reference;
use windlass_rootfs::{
    UNPACK_PREFIX,
    compression::Compression,
    diff::{self, Diffed},
};
use windlass_snapshot::Error as SnapshotError;

use self::manifest::{Change, Kind};
use crate::{
    Error, Platforms, Result, Retain, Windlass,
    labels::{IMAGE, MANIFEST, SOURCE, UNPACKED},
    windlass::blocking,
};

/// The most bytes of a manifest or config.
const MAX_DOCUMENT: u64 = 4 << 20;

/// What a commit does beyond the defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommitOptions {
    /// Who made the image. The base image's author stays by default.
    pub author: Option<String>,
    /// The image that the snapshot is on top of, by name. By default the one that [`Windlass::bundle`] made it of.
    pub base: Option<String>,
    /// What to say of the change in the image's history. Nothing by default.
    pub comment: Option<String>,
    /// How the layer is compressed. [`Compression::Gzip`] by default. With [`Compression::Zstd`] an image in Docker's format
    /// becomes one in OCI's, since Docker's has no name for such layers.
    pub compression: Compression,
    /// When the image was made, and after which nothing in the layer was changed, as far as it says (`SOURCE_DATE_EPOCH`): the
    /// same changes are the same image then. The current time by default, and times in the layer as they are.
    pub created: Option<SystemTime>,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self { author: None, base: None, comment: None, compression: Compression::Gzip, created: None }
    }
}

impl CommitOptions {
    /// Sets who made the image.
    pub fn author(self, author: impl Into<String>) -> Self {
        Self { author: Some(author.into()), ..self }
    }

    /// Sets the image that the snapshot is on top of.
    pub fn base(self, base: impl Into<String>) -> Self {
        Self { base: Some(base.into()), ..self }
    }

    /// Sets what to say of the change.
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self { comment: Some(comment.into()), ..self }
    }

    /// Sets how the layer is compressed.
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Sets when the image was made.
    pub fn created(self, created: SystemTime) -> Self {
        Self { created: Some(created), ..self }
    }
}

/// An image that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The name that it is listed under.
    pub name: String,
    /// Its manifest.
    pub target: Descriptor,
    /// Its new layer.
    pub layer: Descriptor,
    /// How many entries the layer has. None if nothing was changed.
    pub entries: u64,
    /// The sockets, which a layer cannot hold. They are left out.
    pub skipped: Vec<PathBuf>,
}

impl Windlass {
    /// Makes an image of a container, or of any active snapshot: its base image's layers, and one with what was changed. The name
    /// is recorded last; an image of that name is replaced.
    ///
    /// The base image's config is kept, with all that is in it, but for what a further layer changes. The container should not
    /// run meanwhile: a file that changes while it is read is an error.
    ///
    /// ```no_run
    /// # async fn example(windlass: windlass::Windlass) -> Result<(), Box<dyn std::error::Error>> {
    /// use windlass::CommitOptions;
    ///
    /// let options = CommitOptions::default().comment("install curl");
    /// let made = windlass.commit("my-container", &"registry.example/app:2".parse()?, options).await?;
    /// println!("{} has {} bytes more", made.name, made.layer.size());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Commit`] if nobody knows the base image, or it is another than the snapshot's, or `name` has a digest; as [`image`](Self::image) if it is
    /// not here any more; [`Error::Snapshot`] if there is no such active snapshot; [`Error::Rootfs`] if it cannot be read, or
    /// changes meanwhile. Nothing is listed then.
    pub async fn commit(&self, key: &str, name: &Reference, options: CommitOptions) -> Result<Committed> {
        if name.digest().is_some() {
            let reason = format!("{name} has a digest, which the new image cannot have; name it without");
            return Err(Error::Commit { key: key.to_owned(), reason });
        }
        let lease = self.images().lease(LeaseOptions::default().label("commit", key)).await?;
        let (base, labels) = self.base(key, &options, &lease).await?;
        let (layer, diffed, file) = self.changes(key, &base, &options, &lease).await?;
        self.take_in(&layer, Blob::new(Arc::new(file), diffed.size), &lease).await?;

        let config = base.manifest().config.clone();
        let old = self.content().read(&config, MAX_DOCUMENT).await?;
        let change = Change {
            diff_id: &diffed.diff_id,
            layers: base.layers().len(),
            created: options.created.unwrap_or_else(SystemTime::now),
            author: options.author.as_deref(),
            comment: options.comment.as_deref(),
        };
        let malformed = |reason: serde_json::Error| Error::Commit {
            key: key.to_owned(),
            reason: format!("its base image cannot be changed: {reason}"),
        };
        let new_config = manifest::config(&old, &change).map_err(malformed)?;
        let kind = Kind::of(base.descriptor(), options.compression);
        let config = descriptor(kind.config(config.media_type()), &new_config);
        self.take_in_bytes(&config, new_config, &lease).await?;

        let old = self.content().read(base.descriptor(), MAX_DOCUMENT).await?;
        let bytes = kind.manifest(&old, &config, &layer).map_err(malformed)?;
        let target = descriptor(kind.media_type(), &bytes);
        self.take_in_bytes(&target, bytes, &lease).await?;

        let name = name.to_string();
        // What is missing of the base's layers is missing here, too, and is where it was.
        let (source, retain) = match labels.contains_key(UNPACKED) {
            true => (labels.get(SOURCE).and_then(|source| source.parse().ok()), Retain::Unpacked),
            false => (None, Retain::Everything),
        };
        self.record(&name, &target, source.as_ref(), retain).await?;
        lease.release().await?;
        Ok(Committed { name, target, layer, entries: diffed.entries, skipped: diffed.skipped })
    }

    /// The image that a snapshot is on top of, held by the lease, and the labels of its name in the list.
    async fn base(
        &self,
        key: &str,
        options: &CommitOptions,
        lease: &Lease,
    ) -> Result<(Image, std::collections::BTreeMap<String, String>)> {
        let (this, looked_up) = (self.clone(), key.to_owned());
        let info = blocking(move || Ok(this.snapshotter()?.stat(&looked_up)?)).await?;
        let info = info.ok_or_else(|| SnapshotError::NotFound { name: key.to_owned() })?;
        let refused = |reason: String| Error::Commit { key: key.to_owned(), reason };

        let name = options.base.as_ref().or(info.labels.get(IMAGE)).cloned();
        let (this, looked_up) = (self.clone(), name.clone());
        let labels = blocking(move || {
            let record = looked_up.map(|name| this.images().get(&name)).transpose()?.flatten();
            Ok(record.map(|record| record.labels).unwrap_or_default())
        })
        .await?;
        let image = match (&options.base, info.labels.get(MANIFEST)) {
            (Some(name), _) => {
                let image = self.image(name, &Platforms::Host).await?;
                lease.hold(&Resource::Tree(image.descriptor().digest().clone())).await?;
                image
            }
            (None, Some(manifest)) => {
                let manifest: Descriptor = serde_json::from_str(manifest)
                    .map_err(|error| refused(format!("its label {MANIFEST} is malformed: {error}")))?;
                lease.hold(&Resource::Tree(manifest.digest().clone())).await?;
                Image::read(self.content(), &manifest).await.map_err(|error| match error {
                    windlass_images::Error::Content(source) => Error::NotWhole {
                        name: name.unwrap_or_else(|| manifest.digest().to_string()),
                        source,
                    },
                    error => error.into(),
                })?
            }
            (None, None) => {
                let reason = "it does not say which image it was made of; name it (`base`, --base)";
                return Err(refused(reason.to_owned()));
            }
        };
        let top = image.chain_id().map(|it| it.to_string());
        if top != info.parent {
            let shown = |it: &Option<String>| it.as_ref().map_or("nothing".to_owned(), Clone::clone);
            return Err(refused(format!(
                "it is on top of {}, and image {} ends with {}",
                shown(&info.parent),
                image.descriptor().digest(),
                shown(&top)
            )));
        }
        Ok((image, labels))
    }

    /// Writes what a container, or any active snapshot, has changed on top of its parent as a layer. See
    /// [`diff::snapshot`](windlass_rootfs::diff::snapshot()).
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`] if there is no such active snapshot; [`Error::Rootfs`] if it cannot be read, or changes meanwhile, or
    /// `out` refuses.
    pub async fn diff(
        &self,
        key: &str,
        out: impl Write + Send + 'static,
        options: diff::Options,
    ) -> Result<Diffed> {
        let lease = self.images().lease(LeaseOptions::default().label("diff", key)).await?;
        let diffed = self.diff_held(key, out, options, &lease).await?;
        lease.release().await?;
        Ok(diffed)
    }

    async fn diff_held(
        &self,
        key: &str,
        out: impl Write + Send + 'static,
        options: diff::Options,
        lease: &Lease,
    ) -> Result<Diffed> {
        let snapshotter = self.open_snapshotter().await?;
        let (view, key) = (unique(), key.to_owned());
        let held = Resource::Snapshot { driver: snapshotter.name().to_owned(), name: view.clone() };
        lease.hold(&held).await?;
        blocking(move || Ok(diff::snapshot(&*snapshotter, &key, &view, out, &options)?)).await
    }

    /// Writes the layer into a file without a name: its digest is known only at its end.
    async fn changes(
        &self,
        key: &str,
        base: &Image,
        options: &CommitOptions,
        lease: &Lease,
    ) -> Result<(Descriptor, Diffed, File)> {
        let root = self.root().to_owned();
        let (file, out) = blocking(move || {
            let made = tempfile::tempfile_in(&root).and_then(|file| Ok((file.try_clone()?, file)));
            made.map_err(|source| Error::Io { op: "make a temporary file in", path: root, source })
        })
        .await?;
        let mut settings = diff::Options::default().compression(options.compression);
        settings.latest = options.created;
        let diffed = self.diff_held(key, out, settings, lease).await?;
        let kind = Kind::of(base.descriptor(), options.compression);
        let layer = Descriptor::new(kind.layer(options.compression), diffed.size, diffed.digest.clone());
        Ok((layer, diffed, file))
    }

    /// Stores a blob, unless it is there, and holds it.
    async fn take_in(&self, descriptor: &Descriptor, blob: Blob, lease: &Lease) -> Result<()> {
        lease.hold(&Resource::Blob(descriptor.digest().clone())).await?;
        let key = format!("commit-{}", descriptor.digest());
        if let Ingest::Open(mut writer) = self.content().ingest(&key, descriptor).await? {
            writer.append(blob.stream(writer.offset())).await?;
            writer.commit(Labels::new()).await?;
        }
        Ok(())
    }

    async fn take_in_bytes(&self, descriptor: &Descriptor, bytes: Vec<u8>, lease: &Lease) -> Result<()> {
        let bytes = Bytes::from(bytes);
        self.take_in(descriptor, Blob::new(Arc::new(bytes), descriptor.size()), lease).await
    }
}

/// A name for a view that nobody else has. If we die, it goes with the next garbage collection.
fn unique() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("{UNPACK_PREFIX}diff-{}-{now}", std::process::id())
}

fn descriptor(media_type: oci_spec::image::MediaType, bytes: &[u8]) -> Descriptor {
    let digest: Digest = sha256(bytes);
    Descriptor::new(media_type, bytes.len() as u64, digest)
}
