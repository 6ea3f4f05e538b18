use std::{
    collections::{HashMap, hash_map::Entry},
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::{
    Blob, ByteStream,
    hash::{Hasher, sha256},
};
use windlass_images::{
    archive::{
        Named,
        docker::{MANIFEST, MAX_IMAGES, Saved, layer_type, make_manifest},
    },
    view::Config,
};
use windlass_reference::Reference;

use super::{
    archive::Archive,
    blocking,
    choose::{Wanted, choose, choose_all, recorded_all},
    files::{BlobFetcher, Files, Span, not_found, wrong_size},
    hybrid,
    oci::{malformed, parse_json},
};
use crate::{Fetcher, Resolved, Resolver, Result};

/// How much of a compressed layer is hashed at once, in bytes.
const CHUNK: usize = 256 << 10;

/// The images in an archive of `docker save`, which is not compressed.
///
/// Such an archive names files, but no manifest, so one is made: an OCI manifest, because only OCI has media types for
/// layers that are not compressed, or are with zstd. The same archive always gives the same manifest. An archive that is
/// an OCI image layout as well (Docker 25 and later) keeps the manifest it has.
///
/// As a [`Resolver`] it takes a [`Reference`] to mean the image that has it among its tags. A digest means the image of
/// that ID, which is the digest of its config. Cheap to clone. The archive must not be changed while it is open.
#[derive(Clone, Debug)]
pub struct DockerArchive {
    files: Arc<dyn Files>,
    images: Arc<[Saved]>,
}

impl DockerArchive {
    /// Opens an archive, and reads its headers once. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io), and [`Error::File`](crate::Error::File) if it has no `manifest.json`, is
    /// compressed, or has sparse entries.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let files: Arc<dyn Files> = Arc::new(Archive::open(path.as_ref())?);
        let images: Vec<Saved> = parse_json(&*files, MANIFEST, &files.read(MANIFEST)?)?;
        if images.len() > MAX_IMAGES {
            return Err(files.refused(MANIFEST, format!("it lists more than {MAX_IMAGES} images")));
        }
        Ok(Self { files, images: images.into() })
    }

    /// Finds the image of a name such as `redis:7`, of a tag, or of an ID (`sha256:…`); without one the only image.
    ///
    /// It is recorded under its first name, or as `localhost/FILE:latest` if it has none. A layer that is compressed in
    /// the archive is read once, for its digest.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) and [`Error::Ambiguous`](crate::Error::Ambiguous), both of which say
    /// what there is. [`Error::File`](crate::Error::File) if the image names files that are not there, or has not as
    /// many layers as its config says.
    pub async fn resolve_tag(&self, tag: Option<&str>) -> Result<Resolved> {
        self.resolve_wanted(Wanted::text(tag)).await
    }

    /// Finds all images, under all of their names; those of `wanted` names, tags or IDs if there are any.
    ///
    /// An image without a name is recorded as `localhost/FILE`, or by its digest if there are several.
    ///
    /// # Errors
    ///
    /// As [`resolve_tag`](Self::resolve_tag), but several images are no error.
    pub async fn resolve_all(&self, wanted: &[String]) -> Result<Vec<Resolved>> {
        let (this, wanted) = (self.clone(), wanted.to_vec());
        blocking(move || {
            let names: Vec<_> =
                this.images.iter().enumerate().flat_map(|(image, saved)| saved.names(image)).collect();
            let chosen = choose_all(this.files.path(), &names, &wanted)?;
            let mut opened = HashMap::new();
            for name in &chosen {
                if let Entry::Vacant(entry) = opened.entry(name.image) {
                    entry.insert(open(&this.images[name.image], &this.files)?);
                }
            }
            let chosen: Vec<_> =
                chosen.into_iter().map(|name| (name, opened[&name.image].0.digest())).collect();
            let resolved = |(name, (named, _)): (String, &(&Named, &Digest))| {
                let (descriptor, fetcher) = opened[&named.image].clone();
                Resolved { name, descriptor, fetcher }
            };
            Ok(recorded_all(this.files.path(), &chosen).into_iter().zip(&chosen).map(resolved).collect())
        })
        .await
    }

    async fn resolve_wanted(&self, wanted: Wanted) -> Result<Resolved> {
        let this = self.clone();
        blocking(move || {
            let names: Vec<_> =
                this.images.iter().enumerate().flat_map(|(image, saved)| saved.names(image)).collect();
            let (chosen, name) = choose(this.files.path(), &names, &wanted)?;
            let (descriptor, fetcher) = open(&this.images[chosen.image], &this.files)?;
            Ok(Resolved { name, descriptor, fetcher })
        })
        .await
    }
}

#[async_trait]
impl Resolver for DockerArchive {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        self.resolve_wanted(Wanted::Reference(reference.clone())).await
    }
}

/// The image's manifest, and where it and all that it names can be fetched.
fn open(saved: &Saved, files: &Arc<dyn Files>) -> Result<(Descriptor, Arc<dyn Fetcher>)> {
    let config_span =
        files.open(&saved.config)?.ok_or_else(|| files.refused(&saved.config, "it is missing"))?;
    let config = config_span.read()?;
    let config_node = Descriptor::new(MediaType::ImageConfig, config.len() as u64, sha256(&config));
    if let Some(manifest) = hybrid::manifest_of(&**files, config_node.digest())? {
        return Ok((manifest, Arc::new(BlobFetcher(files.clone()))));
    }

    let mut blobs = HashMap::new();
    let layers = layers(saved, files, &config_node, &config, &mut blobs)?;
    let manifest = make_manifest(&config_node, &layers);
    let node = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, sha256(&manifest));
    blobs.insert(config_node.digest().clone(), config_span.blob());
    blobs.insert(node.digest().clone(), Blob::new(Arc::new(manifest), node.size()));
    Ok((node, Arc::new(SavedFetcher { path: files.path().into(), blobs })))
}

/// The layers, lowest first, whose files go to `blobs`.
fn layers(
    saved: &Saved,
    files: &Arc<dyn Files>,
    config_node: &Descriptor,
    config: &[u8],
    blobs: &mut HashMap<Digest, Blob>,
) -> Result<Vec<Descriptor>> {
    let config = Config::parse(config_node, config);
    let config = config.map_err(|error| malformed(&**files, &saved.config, error))?;
    let (names, diff_ids) = (saved.layers(), config.diff_ids());
    if names.len() != diff_ids.len() {
        let reason = format!("it has {} DiffIDs, and {MANIFEST} has {} layers", diff_ids.len(), names.len());
        return Err(files.refused(&saved.config, reason));
    }
    // Images share layers, and a hostile one may name a large one a thousand times.
    let mut hashed = HashMap::new();
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let missing = || files.refused(name, format!("{MANIFEST} names it, but it is missing"));
        let span = files.open(name)?.ok_or_else(missing)?;
        let media_type = layer_type(&span.head::<4>()?);
        let digest = match (&media_type, hashed.get(&span.start)) {
            // The store compares it, as it does for all that is fetched.
            (MediaType::ImageLayer, _) => diff_id.clone(),
            (_, Some(digest)) => Digest::clone(digest),
            (_, None) => hash(&span)?,
        };
        hashed.insert(span.start, digest.clone());
        layers.push(Descriptor::new(media_type, span.size, digest.clone()));
        blobs.insert(digest, span.blob());
    }
    Ok(layers)
}

fn hash(layer: &Span) -> Result<Digest> {
    let mut hasher = Hasher::sha256();
    let mut reader = layer.clone().blob().reader(0);
    let mut buffer = vec![0; CHUNK];
    loop {
        match reader.read(&mut buffer).map_err(|source| layer.unreadable(source))? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Fetches the files of one saved image, and the manifest that was made for it.
#[derive(Debug)]
struct SavedFetcher {
    path: PathBuf,
    blobs: HashMap<Digest, Blob>,
}

#[async_trait]
impl Fetcher for SavedFetcher {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        match self.blobs.get(descriptor.digest()) {
            None => Err(not_found(&self.path, descriptor)),
            Some(blob) if blob.size() != descriptor.size() => {
                Err(wrong_size(&self.path, descriptor, blob.size()))
            }
            Some(blob) => Ok(blob.stream(from)),
        }
    }
}
