//! The JSON documents of an archive. Their bytes depend on nothing but what is in them.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use oci_spec::image::{Descriptor, MediaType};
use serde::Serialize;
use windlass_reference::Reference;

use crate::archive::layout::{NAME, REF_NAME, VERSION};

/// An image as `docker load` wants to be told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    pub(super) repo_tags: Vec<String>,
    pub(super) layers: Vec<String>,
}

/// `oci-layout`.
pub(super) fn marker() -> Bytes {
    format!(r#"{{"imageLayoutVersion":"{VERSION}"}}"#).into()
}

/// `manifest.json`.
pub(super) fn manifest(saved: &[Saved]) -> Bytes {
    json(&saved)
}

/// `index.json`.
pub(super) fn index(roots: &[(String, Descriptor)]) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'a> {
        schema_version: u8,
        media_type: &'a str,
        manifests: Vec<Root<'a>>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Root<'a> {
        media_type: &'a str,
        digest: &'a str,
        size: u64,
        annotations: BTreeMap<&'a str, &'a str>,
    }
    let tags: Vec<_> = roots.iter().map(|(name, _)| tag(name)).collect();
    let mut count = HashMap::new();
    tags.iter().flatten().for_each(|tag| *count.entry(tag.clone()).or_insert(0) += 1);
    let manifests = roots.iter().zip(&tags).map(|((name, root), tag)| {
        let short = tag.as_deref().filter(|tag| count[*tag] == 1).unwrap_or(name);
        Root {
            media_type: root.media_type().as_ref(),
            digest: root.digest().as_ref(),
            size: root.size(),
            annotations: BTreeMap::from([(NAME, &**name), (REF_NAME, short)]),
        }
    });
    let media_type = MediaType::ImageIndex;
    json(&Index { schema_version: 2, media_type: media_type.as_ref(), manifests: manifests.collect() })
}

/// The tag of a name, unless a digest counts instead.
fn tag(name: &str) -> Option<String> {
    let reference = Reference::parse(name).ok()?;
    reference.tag().filter(|_| reference.digest().is_none()).map(str::to_owned)
}

fn json(document: &impl Serialize) -> Bytes {
    serde_json::to_vec(document).expect("strings, numbers and lists of them are JSON").into()
}
