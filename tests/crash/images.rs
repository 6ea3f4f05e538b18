//! Two images that share layers, in a registry, and what their root file systems must be.

use std::{collections::BTreeMap, time::Duration};

use windlass_testkit::{Fault, Image, ImageBuilder, Layer, Registry, Tree};

use crate::{random::Random, support::Dist, whole};

/// How many bytes a file has that is worth being interrupted at.
const SIZE: usize = 100 << 10;

/// A registry with some images, and the tree of each by its name.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) registry: Registry,
    /// What `dist pull` takes.
    pub(crate) names: Vec<String>,
    pub(crate) images: Vec<Image>,
    pub(crate) trees: BTreeMap<String, Tree>,
    /// How long an undisturbed pull takes.
    pub(crate) pull: Duration,
}

impl Served {
    /// Serves `count` images that have their two lowest layers in common.
    pub(crate) async fn start(count: u8) -> Self {
        let registry = Registry::start().await;
        let images: Vec<_> = (0..count).map(image).collect();
        let (mut names, mut trees) = (Vec::new(), BTreeMap::new());
        for (number, image) in images.iter().enumerate() {
            let repository = format!("app{number}");
            registry.push(image, &repository, "latest");
            names.push(format!("{}/{repository}:latest", registry.host()));
        }
        // Slow enough that most of the time is spent where something can be interrupted.
        registry.fault(Fault::slow("/blobs/", 4 << 20));
        let mut pull = Duration::ZERO;
        for (number, name) in (0..).zip(&names) {
            let undisturbed = Dist::new();
            let begun = std::time::Instant::now();
            undisturbed.ok(&["pull", name]);
            pull = pull.max(begun.elapsed());
            let tree = whole::tree(undisturbed.root(), name).await;
            is_what_was_built(number, &tree);
            trees.insert(name.clone(), tree);
        }
        Self { registry, names, images, trees, pull }
    }
}

/// Layers that take from those below them: a hard link, a file that is replaced, one that is hidden, a folder's mode.
fn image(number: u8) -> Image {
    ImageBuilder::new()
        .layer(
            Layer::new()
                // With all folders declared, their times are known as well.
                .dir(".", 0o755)
                .dir("usr", 0o751)
                .file("usr/first", 0o644, &noise(1))
                .file("usr/replaced", 0o644, &noise(2))
                .file("usr/hidden", 0o644, &noise(3)),
        )
        .layer(
            Layer::new()
                .hardlink("usr/same", "usr/first")
                .whiteout("usr/hidden")
                .file("usr/replaced", 0o4755, &noise(4))
                .zstd(),
        )
        .layer(Layer::new().dir("own", 0o700).file("own/large", 0o600, &noise(10 + number)))
        .layer((0..40).fold(Layer::new().symlink("own/link", "large").dir("many", 0o755), |layer, at| {
            layer.file(format!("many/{at}"), 0o644, &noise(100 + number)[..2000 + at])
        }))
        .build()
}

/// The tree that others are compared with was unpacked as well. This is how we know that it is right.
fn is_what_was_built(number: u8, tree: &Tree) {
    let content = |path: &str| tree.nodes[std::path::Path::new(path)].content.clone();
    for (path, of) in [("usr/first", 1), ("usr/same", 1), ("usr/replaced", 4), ("own/large", 10 + number)] {
        let want = windlass::content::hash::sha256(&noise(of)).to_string();
        assert_eq!(content(path).as_deref(), Some(&*want), "{path}");
    }
    assert!(!tree.nodes.contains_key(std::path::Path::new("usr/hidden")));
    assert_eq!(tree.nodes[std::path::Path::new("usr")].mode, 0o751);
    assert_eq!(tree.nodes.len(), 1 + 4 + 3 + 41, "the root, usr, own, and many");
}

/// Bytes that do not compress.
fn noise(number: u8) -> Vec<u8> {
    let mut random = Random::new(number.into());
    (0..SIZE).map(|_| random.below(256) as u8).collect()
}
