//! OCI image layouts (image-spec, image-layout.md).

use oci_spec::image::{Descriptor, MediaType};
use serde::Deserialize;
use windlass_content::hash::sha256;

use super::Named;
use crate::{Result, media_type, view::Index};

/// The name of the file that says that it is a layout.
pub const MARKER: &str = "oci-layout";
/// The name of the file that lists the images.
pub const INDEX: &str = "index.json";
/// The version of the layout, of which there is one so far.
pub const VERSION: &str = "1.0.0";
/// Where a layout has an image's whole name: containerd's annotation.
pub const NAME: &str = "io.containerd.image.name";
/// Where it has a tag, or, from some tools, a whole name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What is in `oci-layout`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Marker {
    /// [`VERSION`].
    pub image_layout_version: String,
}

/// Where a layout has a blob. The type of a digest lets no slash through, so the name has three parts.
pub fn blob_name(descriptor: &Descriptor) -> String {
    format!("blobs/{}/{}", descriptor.digest().algorithm(), descriptor.digest().digest())
}

/// The descriptors in the bytes of `index.json`.
///
/// # Errors
///
/// [`Error::Malformed`](crate::Error::Malformed).
pub fn parse_index(bytes: &[u8]) -> Result<Vec<Descriptor>> {
    let descriptor = Descriptor::new(MediaType::ImageIndex, bytes.len() as u64, sha256(bytes));
    Ok(Index::parse(&descriptor, bytes)?.manifests)
}

/// The images among the descriptors of `index.json`: what is none, such as a signature's blob, is not what anybody means.
pub fn roots(listed: Vec<Descriptor>) -> Vec<Descriptor> {
    let is_root =
        |it: &Descriptor| media_type::is_index(it.media_type()) || media_type::is_manifest(it.media_type());
    listed.into_iter().filter(is_root).collect()
}

/// The names of roots. An image is listed once for each of its names.
pub fn names(roots: &[Descriptor]) -> Vec<Named> {
    let mut first = std::collections::HashMap::new();
    let named = |(position, root): (usize, &Descriptor)| {
        let image = *first.entry(root.digest().clone()).or_insert(position);
        let annotation = |name| root.annotations().as_ref()?.get(name).map(String::as_str);
        Named::new(image, root.digest().to_string(), &[annotation(NAME), annotation(REF_NAME)])
    };
    roots.iter().enumerate().map(named).collect()
}

/// A descriptor without what is said beside it, as registries give it.
pub fn bare(descriptor: &Descriptor) -> Descriptor {
    Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone())
}
