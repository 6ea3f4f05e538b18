use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{Provider, ProviderExt};
use windlass_reference::Reference;

use super::{
    ExportOptions,
    documents::{self, Saved},
};
use crate::{
    Error, Platform, Result,
    archive::{
        docker,
        layout::{self, bare, blob_name},
    },
    children::MAX_MANIFEST,
    media_type,
    view::Manifest,
    whole::{manifest_for, whole},
};

/// What is exported: all of it is there.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Each name, and what it stands for.
    roots: Vec<(String, Descriptor)>,
    /// The images that Docker can load, in the order of their first names.
    saved: Vec<Saved>,
    /// By their names in a layout.
    blobs: BTreeMap<String, Descriptor>,
}

/// One entry of what is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Folder(String),
    Blob(String, Descriptor),
    Document(String, Bytes),
}

impl Plan {
    /// Reads the manifests of all images.
    pub(super) async fn of(
        provider: &dyn Provider,
        images: &[(String, Descriptor)],
        options: &ExportOptions,
    ) -> Result<Self> {
        let mut plan = Self::default();
        // The order of the arguments is no matter.
        let images: BTreeMap<_, _> = images.iter().map(|(name, target)| (name, target)).collect();
        let mut done: HashMap<&Digest, (Descriptor, Option<usize>)> = HashMap::new();
        for (name, target) in images {
            if !done.contains_key(target.digest()) {
                let added = plan.add(provider, name, target, options).await?;
                done.insert(target.digest(), added);
            }
            let (root, saved) = &done[target.digest()];
            plan.roots.push((name.clone(), root.clone()));
            if let (Some(saved), Some(tag)) = (saved, repo_tag(name)) {
                plan.saved[*saved].repo_tags.push(tag);
            }
        }
        Ok(plan)
    }

    /// Adds an image: gives what its name will stand for, and which of [`saved`](Self::saved) it is.
    async fn add(
        &mut self,
        provider: &dyn Provider,
        name: &str,
        target: &Descriptor,
        options: &ExportOptions,
    ) -> Result<(Descriptor, Option<usize>)> {
        let root = match &options.platform {
            None => target.clone(),
            Some(platform) => manifest_for(provider, name, target, platform).await?,
        };
        let whole = whole(provider, name, &root, options.skip_missing).await?;
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        let manifest = match manifest_for(provider, name, &root, &platform).await {
            Ok(manifest) => whole.manifests.into_iter().find(|it| it.digest() == manifest.digest()),
            Err(Error::NoPlatform { .. } | Error::Incomplete { .. }) => None,
            Err(other) => return Err(other),
        };
        let saved = match manifest {
            Some(manifest) => self.save(provider, &manifest).await?,
            None => None,
        };
        self.blobs.extend(whole.nodes.into_iter().map(|node| (blob_name(&node), node)));
        Ok((bare(&root), saved))
    }

    /// Adds what Docker has to know of an image, unless it is none.
    async fn save(&mut self, provider: &dyn Provider, node: &Descriptor) -> Result<Option<usize>> {
        let Manifest { config, layers } = Manifest::parse(node, &provider.read(node, MAX_MANIFEST).await?)?;
        let is_image = media_type::is_config(config.media_type())
            && layers.iter().all(|layer| media_type::is_layer(layer.media_type()));
        if !is_image {
            return Ok(None);
        }
        let saved = Saved {
            config: blob_name(&config),
            repo_tags: Vec::new(),
            layers: layers.iter().map(blob_name).collect(),
        };
        // Two indexes may share a manifest.
        let same = self.saved.iter().position(|it| it.config == saved.config && it.layers == saved.layers);
        Ok(Some(same.unwrap_or_else(|| {
            self.saved.push(saved);
            self.saved.len() - 1
        })))
    }

    /// All entries of an archive, by name.
    pub(super) fn archive_entries(self) -> Vec<Entry> {
        let mut entries = vec![
            Entry::Document(layout::INDEX.into(), documents::index(&self.roots)),
            Entry::Document(layout::MARKER.into(), documents::marker()),
        ];
        if !self.saved.is_empty() {
            entries.push(Entry::Document(docker::MANIFEST.into(), documents::manifest(&self.saved)));
        }
        entries.extend(self.blob_entries());
        entries.sort_by(|a, b| a.name().cmp(b.name()));
        entries
    }

    /// All entries of a layout, in the order that makes it one at the end.
    pub(super) fn layout_entries(self) -> Vec<Entry> {
        let mut entries = vec![Entry::Document(layout::MARKER.into(), documents::marker())];
        entries.extend(self.blob_entries());
        entries.push(Entry::Document(layout::INDEX.into(), documents::index(&self.roots)));
        entries
    }

    /// The blobs, each folder before what is in it.
    fn blob_entries(&self) -> Vec<Entry> {
        let mut entries = vec![Entry::Folder("blobs".into())];
        let mut last = "";
        for (name, node) in &self.blobs {
            let (folder, _) = name.rsplit_once('/').expect("a blob is in a folder");
            if folder != last {
                entries.push(Entry::Folder(folder.to_owned()));
                last = folder;
            }
            entries.push(Entry::Blob(name.clone(), node.clone()));
        }
        entries
    }
}

impl Entry {
    fn name(&self) -> &str {
        match self {
            Self::Folder(name) | Self::Blob(name, _) | Self::Document(name, _) => name,
        }
    }
}

/// A name as `docker load` takes it: whole, with a tag, without a digest.
fn repo_tag(name: &str) -> Option<String> {
    let reference = Reference::parse(name).ok()?;
    reference.digest().is_none().then(|| reference.to_string())
}
