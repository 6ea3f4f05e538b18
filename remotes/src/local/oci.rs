use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use serde::Deserialize;
use windlass_images::archive::layout::{INDEX, MARKER, Marker, VERSION, bare, names, parse_index, roots};
use windlass_reference::Reference;

use super::{
    archive::Archive,
    blocking,
    choose::{Wanted, choose, choose_all, recorded_all},
    files::{BlobFetcher, Files},
    folder::Folder,
};
use crate::{Error, Resolved, Resolver, Result};

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

    /// Finds all images, under all of their names; those of `wanted` tags, names or digests if there are any.
    ///
    /// An image without a name is recorded as `localhost/FOLDER`, or by its digest if there are several.
    ///
    /// # Errors
    ///
    /// As [`resolve_tag`](Self::resolve_tag), but several images are no error.
    pub async fn resolve_all(&self, wanted: &[String]) -> Result<Vec<Resolved>> {
        self.layout.resolve_all(wanted.to_vec()).await
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

    /// Finds all images, under all of their names; those of `wanted` tags, names or digests if there are any.
    ///
    /// An image without a name is recorded as `localhost/FILE`, or by its digest if there are several.
    ///
    /// # Errors
    ///
    /// As [`resolve_tag`](Self::resolve_tag), but several images are no error.
    pub async fn resolve_all(&self, wanted: &[String]) -> Result<Vec<Resolved>> {
        self.layout.resolve_all(wanted.to_vec()).await
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
        let marker: Marker = parse_json(&*files, MARKER, &files.read(MARKER)?)?;
        match marker.image_layout_version == VERSION {
            true => Ok(Self { files }),
            false => {
                let version = marker.image_layout_version;
                Err(files
                    .refused(MARKER, format!("the layout has version {version:?}; {VERSION} is supported")))
            }
        }
    }

    async fn resolve(&self, wanted: Wanted) -> Result<Resolved> {
        let files = self.files.clone();
        blocking(move || {
            let roots = roots(read_index(&*files)?);
            let names = names(&roots);
            let (chosen, name) = choose(files.path(), &names, &wanted)?;
            let root = &roots[chosen.image];
            // A name stands for content that is there and right.
            files.read_blob(root)?;
            Ok(Resolved { name, descriptor: bare(root), fetcher: Arc::new(BlobFetcher(files)) })
        })
        .await
    }

    async fn resolve_all(&self, wanted: Vec<String>) -> Result<Vec<Resolved>> {
        let files = self.files.clone();
        blocking(move || {
            let roots = roots(read_index(&*files)?);
            let names = names(&roots);
            let chosen = choose_all(files.path(), &names, &wanted)?;
            for name in &chosen {
                files.read_blob(&roots[name.image])?;
            }
            let chosen: Vec<_> = chosen.into_iter().map(|name| (name, roots[name.image].digest())).collect();
            let resolved = |(name, root): (String, usize)| Resolved {
                name,
                descriptor: bare(&roots[root]),
                fetcher: Arc::new(BlobFetcher(files.clone())),
            };
            let images = chosen.iter().map(|(name, _)| name.image);
            Ok(recorded_all(files.path(), &chosen).into_iter().zip(images).map(resolved).collect())
        })
        .await
    }
}

/// The descriptors in `index.json`.
pub(super) fn read_index(files: &dyn Files) -> Result<Vec<Descriptor>> {
    let bytes = files.read(INDEX)?;
    parse_index(&bytes).map_err(|error| malformed(files, INDEX, error))
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
