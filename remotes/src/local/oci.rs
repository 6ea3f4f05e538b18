use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::{Descriptor, MediaType};
use serde::Deserialize;
use windlass_content::hash::sha256;
use windlass_images::{media_type, view::Index};
use windlass_reference::Reference;

use super::{
    archive::Archive,
    blocking,
    files::{BlobFetcher, Files},
    folder::Folder,
    names::{Named, Wanted, choose},
};
use crate::{Error, Resolved, Resolver, Result};

/// The version of the image layout, of which there is one so far (image-spec, image-layout.md).
const VERSION: &str = "1.0.0";
const INDEX: &str = "index.json";
/// Where a layout has an image's name: containerd writes whole ones in the first, and most others tags in the second.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// The images in a folder that is an OCI image layout.
///
/// As a [`Resolver`] it takes a [`Reference`] to mean the image of that whole name, or, where images have only tags,
/// the image of its tag. A digest means what `index.json` lists under it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct OciLayout {
    layout: Layout,
}

impl OciLayout {
    /// Opens a folder. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::File`] if it is no image layout of version 1.0.0.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { layout: Layout::open(Arc::new(Folder::open(path.as_ref())?))? })
    }

    /// Finds the image of a tag, of a whole name, or of a digest, as the layout writes it; without one the only image.
    ///
    /// It is recorded under its own name, or as `localhost/FOLDER:TAG` if it has only a tag.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] and [`Error::Ambiguous`], both of which say what there is. [`Error::File`],
    /// [`Error::TooLarge`] and [`Error::DigestMismatch`] if the layout or the image's root cannot be used.
    pub async fn resolve_tag(&self, tag: Option<&str>) -> Result<Resolved> {
        self.layout.resolve(Wanted::text(tag)).await
    }
}

#[async_trait]
impl Resolver for OciLayout {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        self.layout.resolve(Wanted::Reference(reference.clone())).await
    }
}

/// The images in a tar archive of an OCI image layout, which is not compressed.
///
/// As [`OciLayout`] in all else. The archive must not be changed while it is open.
#[derive(Clone, Debug)]
pub struct OciArchive {
    layout: Layout,
}

impl OciArchive {
    /// Opens an archive, and reads its headers once. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::File`] if it is no archive of an image layout, is compressed, or has sparse entries.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self { layout: Layout::open(Arc::new(Archive::open(path.as_ref())?))? })
    }

    /// As [`OciLayout::resolve_tag`]. An image that has only a tag is recorded as `localhost/FILE:TAG`.
    ///
    /// # Errors
    ///
    /// As [`OciLayout::resolve_tag`].
    pub async fn resolve_tag(&self, tag: Option<&str>) -> Result<Resolved> {
        self.layout.resolve(Wanted::text(tag)).await
    }
}

#[async_trait]
impl Resolver for OciArchive {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        self.layout.resolve(Wanted::Reference(reference.clone())).await
    }
}

/// An image layout, wherever its files are.
#[derive(Clone, Debug)]
struct Layout {
    files: Arc<dyn Files>,
}

impl Layout {
    fn open(files: Arc<dyn Files>) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let name = "oci-layout";
        let marker: Marker = parse_json(&*files, name, &files.read(name)?)?;
        match marker.image_layout_version == VERSION {
            true => Ok(Self { files }),
            false => {
                let version = marker.image_layout_version;
                Err(files
                    .refused(name, format!("the layout has version {version:?}; {VERSION} is supported")))
            }
        }
    }

    async fn resolve(&self, wanted: Wanted) -> Result<Resolved> {
        let files = self.files.clone();
        blocking(move || {
            // What is no image, such as a signature, is not what anybody means by the only one.
            let roots: Vec<_> =
                read_index(&*files)?.into_iter().filter(|root| is_root(root.media_type())).collect();
            let names: Vec<_> = roots.iter().map(|root| named(root, &roots)).collect();
            let (chosen, name) = choose(files.path(), &names, &wanted)?;
            let root = &roots[chosen.image];
            // A name stands for content that is there and right.
            files.read_blob(root)?;
            Ok(Resolved { name, descriptor: bare(root), fetcher: Arc::new(BlobFetcher(files)) })
        })
        .await
    }
}

/// The descriptors in `index.json`.
pub(super) fn read_index(files: &dyn Files) -> Result<Vec<Descriptor>> {
    let bytes = files.read(INDEX)?;
    let descriptor = Descriptor::new(MediaType::ImageIndex, bytes.len() as u64, sha256(&bytes));
    match Index::parse(&descriptor, &bytes) {
        Ok(index) => Ok(index.manifests),
        Err(error) => Err(malformed(files, INDEX, error)),
    }
}

/// A descriptor without what `index.json` says beside it, as registries give it.
pub(super) fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}

/// Parses a JSON document of a local file.
pub(super) fn parse_json<'a, T: Deserialize<'a>>(
    files: &dyn Files,
    name: &str,
    bytes: &'a [u8],
) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::File {
        path: files.path().join(name),
        line: Some(error.line()),
        reason: error.to_string(),
    })
}

/// What a view says of a document, as an error that names the file.
pub(super) fn malformed(files: &dyn Files, name: &str, error: windlass_images::Error) -> Error {
    match error {
        windlass_images::Error::Malformed { reason, .. } => files.refused(name, reason),
        other => files.refused(name, other.to_string()),
    }
}

fn is_root(media_type: &MediaType) -> bool {
    media_type::is_index(media_type) || media_type::is_manifest(media_type)
}

fn named(root: &Descriptor, roots: &[Descriptor]) -> Named {
    // An image is listed once for each of its names.
    let image = roots.iter().position(|it| it.digest() == root.digest()).expect("it is one of them");
    let annotation = |name: &str| root.annotations().as_ref()?.get(name).map(String::as_str);
    Named::new(image, root.digest().to_string(), &NAMES.map(annotation))
}
