//! Finding what is needed: everything below the roots that is there.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::{Info, ProviderExt, Store};

use crate::{
    Resource, Result, chain_ids,
    children::MAX_MANIFEST,
    media_type,
    view::{Config, Links},
};

/// How many manifests are read at once.
const AT_ONCE: usize = 8;

/// What was found to be needed.
#[derive(Debug)]
pub(super) struct Marked {
    content: Arc<dyn Store>,
    /// Whether configs are read for their ChainIDs.
    chains: bool,
    digests: HashSet<Key>,
    /// Manifests and indexes that were looked into, in this round of marking.
    visited: HashSet<Key>,
    /// Unmarked manifests, by what they are about.
    referrers: HashMap<Key, Vec<Digest>>,
    snapshots: HashSet<Resource>,
    chain_ids: HashSet<String>,
    ingests: HashSet<String>,
}

/// Something to mark with all that is below it. As small as can be: there may be many to look into.
#[derive(Debug)]
pub(super) struct Node {
    digest: Digest,
    /// In bytes; `None` if one has to look.
    size: Option<u64>,
    /// Whether something may be below it.
    deep: bool,
}

impl Node {
    /// Of this, one has to look what it is.
    fn unknown(digest: Digest) -> Self {
        Self { digest, size: None, deep: true }
    }
}

impl From<&Descriptor> for Node {
    fn from(descriptor: &Descriptor) -> Self {
        let (digest, deep) = (descriptor.digest().clone(), is_deep(descriptor.media_type()));
        Self { digest, size: Some(descriptor.size()), deep }
    }
}

/// What a node led to.
#[derive(Default)]
struct Below {
    nodes: Vec<Node>,
    chain_ids: Vec<String>,
}

impl Marked {
    pub(super) fn new(content: Arc<dyn Store>, chains: bool) -> Self {
        Self {
            content,
            chains,
            digests: HashSet::new(),
            visited: HashSet::new(),
            referrers: HashMap::new(),
            snapshots: HashSet::new(),
            chain_ids: HashSet::new(),
            ingests: HashSet::new(),
        }
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.digests.contains(&Key::of(digest))
    }

    /// All that was marked, whether it is there or not.
    pub(super) fn into_digests(self) -> impl Iterator<Item = Digest> {
        self.digests.into_iter().map(|key| key.digest())
    }

    /// Whether a lease holds the snapshot, or it is a layer of an image.
    pub(super) fn has_snapshot(&self, driver: &str, name: &str) -> bool {
        self.chain_ids.contains(name)
            || self.snapshots.contains(&Resource::Snapshot { driver: driver.into(), name: name.into() })
    }

    pub(super) fn has_ingest(&self, key: &str) -> bool {
        self.ingests.contains(key)
    }

    /// Marks what a lease holds.
    pub(super) async fn hold(&mut self, resources: &[Resource]) -> Result<()> {
        let trees = self.note(resources);
        self.mark(trees).await
    }

    /// Marks what of `resources` can be marked without reading; gives the rest.
    pub(super) fn note(&mut self, resources: &[Resource]) -> Vec<Node> {
        let mut trees = Vec::new();
        for resource in resources {
            match resource {
                Resource::Blob(digest) => {
                    let key = Key::of(digest);
                    let referrers = self.referrers.get_mut(&key).map(mem::take).unwrap_or_default();
                    trees.extend(referrers.into_iter().map(Node::unknown));
                    self.digests.insert(key);
                }
                Resource::Tree(digest) => trees.push(Node::unknown(digest.clone())),
                Resource::Snapshot { .. } => drop(self.snapshots.insert(resource.clone())),
                Resource::Ingest(key) => drop(self.ingests.insert(key.clone())),
            }
        }
        trees
    }

    /// Marks what is recorded or held since the last round, and looks into it again even if it did so before: then,
    /// not all may have been there.
    pub(super) async fn mark_again(&mut self, roots: Vec<Node>) -> Result<()> {
        self.visited.clear();
        self.mark(roots).await
    }

    /// Marks these roots and all that is below them, and the referrers that are known of all of it.
    pub(super) async fn mark(&mut self, roots: impl IntoIterator<Item = Node>) -> Result<()> {
        self.walk(roots.into_iter().collect()).await?;
        loop {
            let of_marked = |(subject, _): &(&Key, &mut Vec<Digest>)| self.digests.contains(*subject);
            let referrers: Vec<_> = self
                .referrers
                .iter_mut()
                .filter(of_marked)
                .flat_map(|(_, referrers)| mem::take(referrers))
                .map(Node::unknown)
                .collect();
            if referrers.is_empty() {
                return Ok(());
            }
            self.walk(referrers).await?;
        }
    }

    /// Reads which unmarked blobs are about others, and marks those that are about what is marked.
    pub(super) async fn find_referrers(&mut self, unmarked: &[Info]) -> Result<()> {
        let mut small = unmarked.iter().filter(|it| it.size <= MAX_MANIFEST);
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(info) = small.next()
            {
                running.push(subject(self.content.clone(), info.digest.clone(), info.size));
            }
            let Some(found) = running.next().await else { break };
            if let Some((subject, referrer)) = found? {
                self.referrers.entry(Key::of(&subject)).or_default().push(referrer);
            }
        }
        self.mark([]).await
    }

    async fn walk(&mut self, mut open: Vec<Node>) -> Result<()> {
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < AT_ONCE
                && let Some(node) = open.pop()
            {
                if self.enter(&node) {
                    running.push(look(self.content.clone(), node, self.chains));
                }
            }
            let Some(below) = running.next().await else { return Ok(()) };
            let Below { nodes, chain_ids } = below?;
            self.chain_ids.extend(chain_ids);
            open.extend(nodes);
        }
    }

    /// Marks a node. Returns whether to look into it.
    fn enter(&mut self, node: &Node) -> bool {
        let key = Key::of(&node.digest);
        self.digests.insert(key.clone());
        node.deep && self.visited.insert(key)
    }
}

/// Whether something may be below a node of this type.
fn is_deep(media_type: &MediaType) -> bool {
    media_type::is_index(media_type)
        || media_type::is_manifest(media_type)
        || media_type.as_ref() == "application/vnd.oci.artifact.manifest.v1+json"
}

/// What is below a node.
async fn look(content: Arc<dyn Store>, node: Node, chains: bool) -> Result<Below> {
    let Node { digest, size, .. } = node;
    let size = match size {
        Some(size) => Some(size),
        None => found(&digest, content.info(&digest).await)?.map(|it| it.size),
    };
    let Some(size) = size.filter(|size| *size <= MAX_MANIFEST) else { return Ok(Below::default()) };
    let Some(links) = links(&*content, &described(&digest, size)).await? else {
        return Ok(Below::default());
    };
    let mut nodes: Vec<_> = links.below.iter().map(Node::from).collect();
    let mut chain_ids_found = Vec::new();
    if let Some(config) = links.config {
        nodes.push(Node::from(&config));
        if chains
            && media_type::is_config(config.media_type())
            && let Some(bytes) = read(&*content, &config).await?
            && let Ok(config) = Config::parse(&config, &bytes)
        {
            chain_ids_found = chain_ids(config.diff_ids()).iter().map(ToString::to_string).collect();
        }
    }
    Ok(Below { nodes, chain_ids: chain_ids_found })
}

/// What a blob is about, if it is a referrer; and the blob.
async fn subject(content: Arc<dyn Store>, referrer: Digest, size: u64) -> Result<Option<(Digest, Digest)>> {
    let links = links(&*content, &described(&referrer, size)).await?;
    Ok(links.and_then(|it| it.subject).map(|subject| (subject, referrer)))
}

async fn links(content: &dyn Store, descriptor: &Descriptor) -> Result<Option<Links>> {
    Ok(read(content, descriptor).await?.and_then(|bytes| Links::parse(&bytes)))
}

/// The bytes of a manifest or config; `None` if it is not there, or not itself.
async fn read(content: &dyn Store, descriptor: &Descriptor) -> Result<Option<Bytes>> {
    found(descriptor.digest(), content.read(descriptor, MAX_MANIFEST).await)
}

/// What is not there is no error, and neither is what nobody will ever read: it has nothing below it. But what could not be
/// read *now* may well have.
fn found<T>(digest: &Digest, answer: windlass_content::Result<T>) -> Result<Option<T>> {
    use windlass_content::Error;
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(
            error @ (Error::DigestMismatch { .. }
            | Error::SizeMismatch { .. }
            | Error::TooLarge { .. }
            | Error::UnsupportedDigest { .. }),
        ) => {
            tracing::warn!(%digest, %error, "nothing below this is kept");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A descriptor of something of which the type is not known.
pub(super) fn described(digest: &Digest, size: u64) -> Descriptor {
    Descriptor::new(MediaType::Other(String::new()), size, digest.clone())
}

/// A digest in little space: there may be millions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Sha256([u8; 32]),
    Other(Box<str>),
}

impl Key {
    fn of(digest: &Digest) -> Self {
        let sha256 = || {
            let hex = digest.as_ref().strip_prefix("sha256:")?;
            let mut bytes = [0; 32];
            for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
                *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
            }
            (hex.len() == 64).then_some(bytes)
        };
        sha256().map_or_else(|| Self::Other(digest.as_ref().into()), Self::Sha256)
    }
    fn digest(&self) -> Digest {
        let text = match self {
            Self::Other(text) => text.to_string(),
            Self::Sha256(bytes) => {
                bytes.iter().fold("sha256:".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
            }
        };
        text.parse().expect("it was a digest")
    }
}
