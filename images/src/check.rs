//! What of an image is there.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Error as ContentError, Provider, ProviderExt};

use crate::{
    Error, Platform, Result,
    children::{MAX_MANIFEST, choose},
    image::MAX_DEPTH,
    media_type,
    view::{Index, Manifest},
};

/// One platform's image below a target, and what of it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Its manifest. If an index was not there, that index.
    pub descriptor: Descriptor,
    /// What the index says it is for.
    pub platform: Option<Platform>,
    /// Blobs that are not there or visibly damaged, each once: nothing else is known of what is below them.
    pub missing: Vec<Descriptor>,
    /// What its blobs take, those that are missing included, in bytes, as far as they are known.
    pub size: u64,
}

impl Checked {
    /// Whether all of it is there.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    fn new(descriptor: Descriptor) -> Self {
        let platform = Platform::of(&descriptor);
        Self { descriptor, platform, missing: Vec::new(), size: 0 }
    }

    /// Looks whether a blob is there, with its size. Whether its bytes are its own is another question.
    async fn look(&mut self, provider: &dyn Provider, blob: &Descriptor) -> Result<()> {
        self.size += blob.size();
        match provider.open(blob).await {
            Err(error) if is_missing(&error) => self.missing.push(blob.clone()),
            opened => drop(opened?),
        }
        Ok(())
    }

    /// Looks whether a manifest is there, and if it is, at all that it names.
    async fn look_into(&mut self, provider: &dyn Provider, manifest: &Descriptor) -> Result<()> {
        self.size += manifest.size();
        let bytes = match provider.read(manifest, MAX_MANIFEST).await {
            Err(error) if is_missing(&error) => {
                self.missing.push(manifest.clone());
                return Ok(());
            }
            read => read?,
        };
        let Manifest { config, layers, .. } = Manifest::parse(manifest, &bytes)?;
        let mut seen: HashSet<Digest> = HashSet::new();
        for blob in [vec![config], layers].concat() {
            if seen.insert(blob.digest().clone()) {
                self.look(provider, &blob).await?;
            }
        }
        Ok(())
    }
}

/// Looks what is there of the image that runs best on `platform`, or of the images for all platforms. No layer is read.
///
/// # Errors
///
/// [`Error::NoPlatform`], [`Error::Malformed`], and [`Error::Content`] if something is there and cannot be read.
pub async fn check(
    provider: &dyn Provider,
    target: &Descriptor,
    platform: Option<&Platform>,
) -> Result<Vec<Checked>> {
    let mut checked = Vec::new();
    for manifest in below(provider, target, platform).await? {
        let mut it = Checked::new(manifest.clone());
        match media_type::is_manifest(manifest.media_type()) {
            true => it.look_into(provider, &manifest).await?,
            false => it.look(provider, &manifest).await?,
        }
        checked.push(it);
    }
    Ok(checked)
}

/// The manifests of the images below a target, in the order of its index, those of nested indexes in the place of these. A
/// target that is a manifest stands for itself, and so does an index that is not there.
///
/// # Errors
///
/// [`Error::Malformed`], and [`Error::Content`] if an index is there and cannot be read.
pub async fn manifests(provider: &dyn Provider, target: &Descriptor) -> Result<Vec<Descriptor>> {
    below(provider, target, None).await
}

async fn below(
    provider: &dyn Provider,
    target: &Descriptor,
    platform: Option<&Platform>,
) -> Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    let mut open = vec![(0, target.clone())];
    // Indexes that name each other many times over would be many more than there are.
    let mut seen: HashSet<Digest> = HashSet::new();
    while let Some((depth, node)) = open.pop() {
        if !media_type::is_index(node.media_type()) {
            found.push(node);
            continue;
        }
        if !seen.insert(node.digest().clone()) {
            continue;
        }
        if depth == MAX_DEPTH {
            let reason = format!("indexes are nested more than {MAX_DEPTH} deep");
            return Err(Error::Malformed { what: "image", digest: target.digest().clone(), reason });
        }
        let index = match provider.read(&node, MAX_MANIFEST).await {
            Ok(bytes) => Index::parse(&node, &bytes)?,
            Err(error) if is_missing(&error) => {
                found.push(node);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let below = match platform {
            Some(platform) => vec![choose(&node, &index, platform)?],
            None => index.manifests,
        };
        open.extend(below.into_iter().rev().map(|it| (depth + 1, it)));
    }
    Ok(found)
}

/// Whether a blob might as well not be there: the next pull fetches it.
fn is_missing(error: &ContentError) -> bool {
    use ContentError::{Damaged, DigestMismatch, NotFound, SizeMismatch};
    matches!(error, NotFound { .. } | Damaged { .. } | SizeMismatch { .. } | DigestMismatch { .. })
}
