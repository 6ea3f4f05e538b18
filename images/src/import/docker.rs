use std::sync::Arc;

use oci_spec::image::{Descriptor, MediaType};
use windlass_content::{Blob, Ingester, Provider, hash::sha256};

use super::{found::Found, ingest, scan::Scanned};
use crate::{
    Error, Result,
    archive::{
        MAX_HOPS, MAX_JSON, TooManyHops,
        docker::{MANIFEST, Saved, layer_type, make_manifest},
    },
    view::Config,
};

/// Takes an image of `manifest.json` into the store, with a manifest that is made for it. Gives the manifest.
pub(super) async fn make<S: Provider + Ingester>(
    store: &S,
    saved: &Saved,
    scanned: &Scanned,
) -> Result<Descriptor> {
    let found = find(scanned, &saved.config)?;
    if found.size() > MAX_JSON {
        return Err(refused(&saved.config, format!("it has more than {MAX_JSON} bytes")));
    }
    let bytes = found.open(store).await?.bytes(found.digest(), MAX_JSON).await?;
    let config = Descriptor::new(MediaType::ImageConfig, found.size(), found.digest().clone());
    let view = Config::parse(&config, &bytes).map_err(|error| refused(&saved.config, error.to_string()))?;
    let (names, diff_ids) = (saved.layers(), view.diff_ids());
    if names.len() != diff_ids.len() {
        let (has, lists) = (diff_ids.len(), names.len());
        let reason = format!("it has {has} DiffIDs, and {MANIFEST} has {lists} layers");
        return Err(refused(&saved.config, reason));
    }
    ingest::whole(store, &config, &found.open(store).await?).await?;

    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let found = find(scanned, name)?;
        let media_type = layer_type(&found.start(store).await?);
        let digest = found.digest();
        // What is compressed has another digest than its content.
        let is_comparable = media_type == MediaType::ImageLayer && digest.algorithm() == diff_id.algorithm();
        if is_comparable && digest != diff_id {
            return Err(refused(name, format!("its digest is {digest}, but its image says {diff_id}")));
        }
        let layer = Descriptor::new(media_type, found.size(), digest.clone());
        ingest::whole(store, &layer, &found.open(store).await?).await?;
        layers.push(layer);
    }

    let manifest = make_manifest(&config, &layers);
    let node = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, sha256(&manifest));
    ingest::whole(store, &node, &Blob::new(Arc::new(manifest), node.size())).await?;
    Ok(node)
}

fn find<'a>(scanned: &'a Scanned, name: &str) -> Result<&'a Found> {
    match scanned.files.find(name) {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(refused(name, format!("{MANIFEST} names it, but it is missing"))),
        Err(TooManyHops) => {
            Err(refused(name, format!("more than {MAX_HOPS} links lead from it to each other")))
        }
    }
}

fn refused(name: &str, reason: String) -> Error {
    Error::Archive { reason: format!("{name}: {reason}") }
}
