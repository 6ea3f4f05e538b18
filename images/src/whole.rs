use std::collections::HashSet;

use oci_spec::image::Descriptor;
use windlass_content::{Error as ContentError, Provider, ProviderExt};

use crate::{
    Error, Platform, Result,
    children::{MAX_MANIFEST, choose},
    image::MAX_DEPTH,
    media_type,
    view::{Index, Manifest},
};

/// What an image consists of, as far as it is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Whole {
    /// Everything, each digest once, the root first.
    pub(crate) nodes: Vec<Descriptor>,
    /// The manifests among it, in the order of their indexes. All that they name is there.
    pub(crate) manifests: Vec<Descriptor>,
}

/// Finds all content of an image, which is called `name` in errors.
///
/// With `skip_missing`, an index may list manifests that are not there, but one must be; a manifest that is there must be
/// whole.
///
/// # Errors
///
/// [`Error::Incomplete`] with the first content that is missing, [`Error::Malformed`].
pub(crate) async fn whole(
    provider: &dyn Provider,
    name: &str,
    target: &Descriptor,
    skip_missing: bool,
) -> Result<Whole> {
    let mut whole = Whole::default();
    let mut seen = HashSet::new();
    // What is left out, and what is wrong with it.
    let mut missing = None;
    let mut open = vec![(target.clone(), 0)];
    while let Some((node, depth)) = open.pop() {
        if !seen.insert(node.digest().clone()) {
            continue;
        }
        let kind = node.media_type();
        let (is_index, is_manifest) = (media_type::is_index(kind), media_type::is_manifest(kind));
        if !is_index && !is_manifest {
            // Whatever an index lists beside manifests.
            match present(provider, name, &node).await {
                Err(Error::Incomplete { .. }) if skip_missing && depth > 0 => {}
                present => {
                    present?;
                    whole.nodes.push(node);
                }
            }
            continue;
        }
        let bytes = match provider.read(&node, MAX_MANIFEST).await {
            Err(ContentError::NotFound { .. }) => {
                let error = incomplete(name, &node);
                if !skip_missing || depth == 0 {
                    return Err(error);
                }
                missing.get_or_insert(error);
                continue;
            }
            read => read?,
        };
        if is_index {
            if depth == MAX_DEPTH {
                return Err(too_deep(target));
            }
            let index = Index::parse(&node, &bytes)?;
            open.extend(index.manifests.into_iter().rev().map(|child| (child, depth + 1)));
            whole.nodes.push(node);
            continue;
        }
        let Manifest { config, layers } = Manifest::parse(&node, &bytes)?;
        whole.nodes.push(node.clone());
        for part in std::iter::once(config).chain(layers) {
            if seen.insert(part.digest().clone()) {
                present(provider, name, &part).await?;
                whole.nodes.push(part);
            }
        }
        whole.manifests.push(node);
    }
    match missing {
        Some(error) if whole.manifests.is_empty() => Err(error),
        _ => Ok(whole),
    }
}

/// Goes from an image to its manifest for a platform; a manifest is for any.
///
/// # Errors
///
/// [`Error::Incomplete`], [`Error::NoPlatform`], [`Error::Malformed`].
pub(crate) async fn manifest_for(
    provider: &dyn Provider,
    name: &str,
    target: &Descriptor,
    platform: &Platform,
) -> Result<Descriptor> {
    let mut node = target.clone();
    for _ in 0..MAX_DEPTH {
        if !media_type::is_index(node.media_type()) {
            return Ok(node);
        }
        let bytes = match provider.read(&node, MAX_MANIFEST).await {
            Err(ContentError::NotFound { .. }) => return Err(incomplete(name, &node)),
            read => read?,
        };
        node = choose(&node, &Index::parse(&node, &bytes)?, platform)?;
    }
    Err(too_deep(target))
}

fn too_deep(target: &Descriptor) -> Error {
    let reason = format!("indexes are nested more than {MAX_DEPTH} deep");
    Error::Malformed { what: "image", digest: target.digest().clone(), reason }
}

/// Opens a blob, which tells whether it is there in its size.
async fn present(provider: &dyn Provider, name: &str, node: &Descriptor) -> Result<()> {
    match provider.open(node).await {
        Err(ContentError::NotFound { .. }) => Err(incomplete(name, node)),
        Err(other) => Err(other.into()),
        Ok(blob) if blob.size() != node.size() => Err(ContentError::SizeMismatch {
            digest: node.digest().clone(),
            expected: node.size(),
            actual: blob.size(),
        }
        .into()),
        Ok(_) => Ok(()),
    }
}

fn incomplete(name: &str, node: &Descriptor) -> Error {
    Error::Incomplete {
        image: name.to_owned(),
        digest: node.digest().clone(),
        media_type: node.media_type().to_string(),
    }
}
