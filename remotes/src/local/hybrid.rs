//! Archives of newer Docker versions, which are OCI image layouts as well.

use oci_spec::image::{Descriptor, Digest};
use windlass_images::{
    archive::layout::bare,
    media_type,
    view::{Index, Manifest},
};

use super::{
    files::Files,
    oci::{malformed, read_index},
};
use crate::{Error, Result};

/// The most manifests and indexes that are read to find one.
const MAX_READ: usize = 64;

/// The manifest in a hybrid archive whose config has this digest, if it and all of its layers are there.
///
/// It is the manifest that the image was pulled with, if Docker keeps its images in containerd. None if the archive is
/// no hybrid. For an image of several platforms its index lists more than there is in the archive.
pub(super) fn manifest_of(files: &dyn Files, config: &Digest) -> Result<Option<Descriptor>> {
    if files.open("index.json")?.is_none() {
        return Ok(None);
    }
    let mut listed = read_index(files)?;
    // The first one comes first, although taken from the end.
    listed.reverse();
    for _ in 0..MAX_READ {
        let Some(node) = listed.pop() else { break };
        let is_index = media_type::is_index(node.media_type());
        if !is_index && !media_type::is_manifest(node.media_type()) {
            continue;
        }
        let bytes = match files.read_blob(&node) {
            Err(Error::NotFound { .. }) => continue,
            read => read?,
        };
        let name = node.digest().as_ref();
        if is_index {
            let index = Index::parse(&node, &bytes).map_err(|error| malformed(files, name, error))?;
            listed.extend(index.manifests.into_iter().rev());
            continue;
        }
        let manifest = Manifest::parse(&node, &bytes).map_err(|error| malformed(files, name, error))?;
        let is_whole =
            || [&manifest.config].into_iter().chain(&manifest.layers).all(|it| files.open_blob(it).is_ok());
        if manifest.config.digest() == config && is_whole() {
            return Ok(Some(bare(&node)));
        }
    }
    Ok(None)
}
