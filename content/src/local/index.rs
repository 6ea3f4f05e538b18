//! `index.json`: the names under which other tools find images in the folder.

use std::{collections::BTreeMap, fs, fs::File};

use oci_spec::image::Descriptor;
use serde_json::{Value, json};

use super::{LocalStore, disk};
use crate::Error;

/// The annotation that holds an image's name (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl LocalStore {
    /// Replaces `index.json`, so that other tools find images in the folder by name: `skopeo inspect
    /// oci:<folder>:<name>`.
    ///
    /// `images` gives names and roots. It is called on a blocking thread while no other process writes the
    /// index, so of several calls at the same time the last one to look wins. The result does not depend on the order
    /// that they are given in. Readers see the index before or after, and whole.
    ///
    /// # Errors
    ///
    /// What `images` answers, and [`Error::Io`]; the index is then as it was.
    pub async fn write_index<F, E>(&self, images: F) -> Result<(), E>
    where
        F: FnOnce() -> Result<Vec<(String, Descriptor)>, E> + Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let inner = self.inner.clone();
        let write = move || {
            let _lock = disk::lock_folder(&inner.root, File::lock)?;
            let text = index(images()?);
            let path = inner.root.join("index.json");
            if fs::read(&path).is_ok_and(|there| there == text) {
                return Ok(());
            }
            Ok(disk::replace(&path, &inner.root.join("index.json.new"), &text, inner.durability)?)
        };
        tokio::task::spawn_blocking(write).await.expect("disk work neither panics nor is aborted")
    }
}

/// The index of some images, the same bytes for the same images.
fn index(mut images: Vec<(String, Descriptor)>) -> Vec<u8> {
    images.sort_by(|(a, x), (b, y)| (a, x.digest().as_ref()).cmp(&(b, y.digest().as_ref())));
    images.dedup_by(|(a, _), (b, _)| a == b);
    let manifests: Vec<Value> = images
        .into_iter()
        .map(|(name, root)| {
            let mut annotations: BTreeMap<_, _> =
                root.annotations().clone().unwrap_or_default().into_iter().collect();
            annotations.insert(REF_NAME.to_owned(), name);
            let mut entry = serde_json::to_value(&root).expect("a descriptor can always be serialised");
            entry["annotations"] = json!(annotations);
            entry
        })
        .collect();
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    serde_json::to_vec(&index).expect("JSON can always be serialised")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use oci_spec::image::MediaType;

    use super::*;
    use crate::hash::sha256;

    #[test]
    fn the_same_images_give_the_same_index() {
        let mut root = Descriptor::new(MediaType::ImageManifest, 1, sha256(b"x"));
        let annotations = (0..20).map(|at| (format!("key {at}"), "value".to_owned()));
        root.set_annotations(Some(annotations.chain([(REF_NAME.to_owned(), "old".to_owned())]).collect()));
        let named = |name: &str| {
            let mut root = root.clone();
            // A map of its own has an order of its own.
            root.set_annotations(
                root.annotations().clone().map(|it| it.into_iter().collect::<HashMap<_, _>>()),
            );
            (name.to_owned(), root)
        };

        let texts = [["a", "b", "c"], ["c", "a", "b"]].map(|names| index(names.map(named).to_vec()));

        assert_eq!(texts[0], texts[1]);
        let index: Value = serde_json::from_slice(&texts[0]).expect("it is JSON");
        let names: Vec<_> = index["manifests"].as_array().expect("a list").iter().collect();
        assert_eq!(names.len(), 3);
        assert_eq!(names[1]["annotations"][REF_NAME], "b");
        assert_eq!(names[1]["annotations"]["key 7"], "value");
    }
}
