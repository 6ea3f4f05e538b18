//! Finding what is needed: everything below the roots that is there.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::{Filter, ProviderExt, Store};

use super::{
    key::Key,
    marks::{Candidate, Marks, Node, PAGE},
};
use crate::{
    Resource, Result, chain_ids,
    children::MAX_MANIFEST,
    media_type,
    view::{Config, Links},
};

/// How many manifests are read at once.
pub(super) const AT_ONCE: usize = 8;

/// What was found to be needed.
#[derive(Debug)]
pub(super) struct Marked {
    content: Arc<dyn Store>,
    /// Whether configs are read for their ChainIDs.
    chains: bool,
    marks: Marks,
    /// In a new round, what was looked into before is looked into again.
    round: u32,
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
    chains: Vec<Key>,
}

impl Marked {
    /// Nothing yet. `marks` is empty.
    pub(super) fn new(content: Arc<dyn Store>, chains: bool, marks: Marks) -> Self {
        Self { content, chains, marks, round: 1 }
    }

    pub(super) async fn has(&self, digest: &Digest) -> Result<bool> {
        self.has_key(Key::blob(digest)).await
    }

    pub(super) async fn has_ingest(&self, key: &str) -> Result<bool> {
        self.has_key(Key::ingest(key)).await
    }

    async fn has_key(&self, key: Key) -> Result<bool> {
        Ok(self.marks.are_marked(vec![key]).await? == [true])
    }

    /// Those of these snapshots that a lease holds, or that are layers of an image.
    pub(super) async fn snapshots(&self, driver: &str, names: Vec<String>) -> Result<HashSet<String>> {
        let keys = names.iter().flat_map(|it| [Key::chain(it), Key::snapshot(driver, it)]).collect();
        let marked = self.marks.are_marked(keys).await?;
        let named = names.into_iter().zip(marked.chunks(2));
        Ok(named.filter(|(_, marked)| marked.contains(&true)).map(|(name, _)| name).collect())
    }

    /// Marks what a lease holds.
    pub(super) async fn hold(&mut self, resources: &[Resource]) -> Result<()> {
        self.note(resources, Vec::new()).await?;
        self.walk().await
    }

    /// Marks these roots and all that is below them, and the referrers that are known of all of it.
    pub(super) async fn mark(&mut self, roots: impl IntoIterator<Item = Node>) -> Result<()> {
        self.note(&[], roots.into_iter().collect()).await?;
        self.walk().await
    }

    /// Marks what is recorded or held since the last round, but not yet what is below it. That is looked into again even if it was
    /// before: then, not all may have been there. Returns whether there is something to [walk](Self::walk).
    pub(super) async fn again(&mut self, resources: &[Resource], roots: Vec<Node>) -> Result<bool> {
        if resources.is_empty() && roots.is_empty() {
            return Ok(false);
        }
        self.round += 1;
        self.note(resources, roots).await?;
        self.marks.is_open().await
    }

    async fn note(&self, resources: &[Resource], mut nodes: Vec<Node>) -> Result<()> {
        let mut keys = Vec::new();
        for resource in resources {
            match resource {
                Resource::Blob(digest) => {
                    nodes.push(Node { digest: digest.clone(), size: None, deep: false });
                }
                Resource::Tree(digest) => nodes.push(Node::unknown(digest.clone())),
                Resource::Snapshot { driver, name } => keys.push(Key::snapshot(driver, name)),
                Resource::Ingest(key) => keys.push(Key::ingest(key)),
            }
        }
        self.marks.mark_keys(keys).await?;
        self.marks.mark(nodes, self.round).await
    }

    /// Marks all that is below what was noted.
    pub(super) async fn walk(&mut self) -> Result<()> {
        loop {
            let open = self.marks.take_open(self.round).await?;
            if open.is_empty() {
                return Ok(());
            }
            let look = |node| look(self.content.clone(), node, self.chains);
            let mut looking = stream::iter(open).map(look).buffer_unordered(AT_ONCE);
            let mut found = Below::default();
            while let Some(Below { nodes, chains }) = looking.try_next().await? {
                found.nodes.extend(nodes);
                found.chains.extend(chains);
                if found.nodes.len() + found.chains.len() >= PAGE {
                    self.keep(mem::take(&mut found)).await?;
                }
            }
            drop(looking);
            self.keep(found).await?;
        }
    }

    async fn keep(&self, found: Below) -> Result<()> {
        self.marks.mark_keys(found.chains).await?;
        self.marks.mark(found.nodes, self.round).await
    }

    /// Finds what is there and not marked. All is marked then that is known to be needed, but for
    /// [referrers](Self::find_referrers).
    pub(super) async fn find_candidates(&mut self) -> Result<()> {
        let blobs = self.content.walk(Filter::default()).map_ok(|it| (it.digest, it.size));
        let mut pages = blobs.try_chunks(PAGE);
        while let Some(page) = pages.try_next().await.map_err(|it| it.1)? {
            self.marks.add_candidates(page).await?;
        }
        Ok(())
    }

    /// Reads which candidates are about other blobs, and marks those that are about what is marked.
    pub(super) async fn find_referrers(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.marks.candidates(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.row;
            let small = page.into_iter().filter(|it| it.size <= MAX_MANIFEST);
            let referrers = stream::iter(small)
                .map(|it| subject(self.content.clone(), it.digest, it.size))
                .buffer_unordered(AT_ONCE)
                .try_filter_map(|found| async { Ok(found) })
                .try_collect()
                .await?;
            self.marks.add_referrers(referrers, self.round).await?;
        }
        self.walk().await
    }

    /// The first `most` candidates behind the row `after` that are still unmarked.
    pub(super) async fn candidates(&self, after: i64, most: usize) -> Result<Vec<Candidate>> {
        self.marks.candidates(after, most).await
    }
}

/// All that is below a target, and the target, whether it is there or not.
pub(super) async fn below(content: Arc<dyn Store>, target: Descriptor) -> Result<Vec<Digest>> {
    let mut open = vec![Node::from(&target)];
    // With whether it was looked into: a blob can be below another in two roles.
    let mut found: HashMap<Digest, bool> = HashMap::new();
    while let Some(node) = open.pop() {
        let looked = found.entry(node.digest.clone()).or_default();
        if node.deep && !mem::replace(looked, true) {
            open.extend(look(content.clone(), node, false).await?.nodes);
        }
    }
    Ok(found.into_keys().collect())
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
    let mut chains_found = Vec::new();
    if let Some(config) = links.config {
        nodes.push(Node::from(&config));
        if chains
            && media_type::is_config(config.media_type())
            && let Some(bytes) = read(&*content, &config).await?
            && let Ok(config) = Config::parse(&config, &bytes)
        {
            chains_found = chain_ids(config.diff_ids()).iter().map(|it| Key::chain(it.as_ref())).collect();
        }
    }
    Ok(Below { nodes, chains: chains_found })
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
