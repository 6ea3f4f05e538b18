use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    io,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{ByteStream, hash::Hasher};
use windlass_images::{
    BoxError, Next, dispatch,
    media_type::{is_index, is_manifest},
    progress::{Event, Progress},
    view::{Index, Manifest},
};

use crate::{Error, Fetcher, Pushed, Pusher, Result};

/// The most a manifest or index may have, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;
/// The most that an image or index may consist of: blobs, manifests and indexes.
const MAX_NODES: usize = 50_000;
/// How many bytes of manifests and indexes are kept, so that they are not fetched twice. Registries count how often they are.
const KEPT: u64 = 32 << 20;
/// How often the push of one node is begun.
const BEGINNINGS: u32 = 3;
/// How many bytes lie between two counts that are reported.
const REPORT: u64 = 256 << 10;

/// Pushes an image, or an index with all that it lists, from `source` to `pusher`.
///
/// `source` may be a store ([`from_provider`](crate::from_provider)) or another registry's fetcher: then nothing is stored
/// on the way. `limit` blobs move at once. Whatever is listed is put before what lists it, so that the registry never
/// shows an image that is not whole. Layers that may not be distributed are left out, as the image spec wants it. A blob
/// whose upload the registry loses is sent again from its start, twice at most. What a manifest's `subject` names is not
/// pushed: it need not exist.
///
/// Dropping the future stops all of it.
///
/// # Errors
///
/// [`Error::NotFound`] if `source` lacks something, [`Error::DigestMismatch`] if it gives another manifest than the one that
/// was named, [`Error::TooLarge`] if that has more than 4 MiB, [`Error::BadResponse`] if it is malformed, or if there are more
/// than 50,000 blobs and manifests, and what [`Fetcher::fetch`] and [`Pusher::push`] may answer. What was put before stays
/// there; pushing again goes on after it.
///
/// # Examples
///
/// A copy from one registry to another:
///
/// ```no_run
/// # use std::{num::NonZeroUsize, sync::Arc};
/// # use windlass_images::progress::Progress;
/// # use windlass_remotes::{Registry, Resolver, push};
/// # async fn copy(four: NonZeroUsize) -> Result<(), Box<dyn std::error::Error>> {
/// let registry = Registry::new()?;
/// let image = registry.resolve(&"docker.io/library/redis:7".parse()?).await?;
/// let copy = "registry.example/mirror/redis:7".parse()?;
/// let pusher = registry.pusher(&copy, image.descriptor.digest()).await?;
/// push(image.fetcher, Arc::new(pusher), &image.descriptor, four, &Progress::default()).await?;
/// # Ok(())
/// # }
/// ```
pub async fn push(
    source: Arc<dyn Fetcher>,
    pusher: Arc<dyn Pusher>,
    root: &Descriptor,
    limit: NonZeroUsize,
    progress: &Progress,
) -> Result<()> {
    let push = Push { source, pusher, progress: progress.clone() };
    let graph = push.graph(root, limit).await?;
    let put_all = async |nodes: Vec<Node>| {
        let puts = stream::iter(nodes).map(|node| push.put(node)).buffer_unordered(limit.get());
        puts.try_for_each(|()| async { Ok(()) }).await
    };
    put_all(graph.blobs).await?;
    for level in graph.documents {
        put_all(level).await?;
    }
    Ok(())
}

#[derive(Clone)]
struct Push {
    source: Arc<dyn Fetcher>,
    pusher: Arc<dyn Pusher>,
    progress: Progress,
}

/// Something to be put.
#[derive(Clone)]
struct Node {
    descriptor: Descriptor,
    /// What it lists.
    children: Vec<Descriptor>,
    /// All of its bytes, if it is a manifest or an index and they were kept.
    bytes: Option<Bytes>,
}

/// All nodes, and how many of their bytes are kept.
#[derive(Default)]
struct Found {
    nodes: HashMap<Digest, Node>,
    kept: u64,
}

/// What is to be put, in this order.
struct Graph {
    blobs: Vec<Node>,
    /// Manifests, then indexes that list only these, and so on.
    documents: Vec<Vec<Node>>,
}

impl Push {
    /// Reads all manifests and indexes from `root` on.
    async fn graph(&self, root: &Descriptor, limit: NonZeroUsize) -> Result<Graph> {
        let found = Arc::new(Mutex::new(Found::default()));
        let (this, all) = (self.clone(), found.clone());
        let read = move |descriptor: Descriptor| {
            let (this, all) = (this.clone(), all.clone());
            async move {
                this.progress.send(Event::Waiting { descriptor: descriptor.clone() });
                let node = this.node(descriptor).await?;
                let children = node.children.clone();
                all.lock().unwrap_or_else(PoisonError::into_inner).add(node)?;
                Ok::<_, BoxError>(Next::Visit(children))
            }
        };
        dispatch(read, root.clone(), limit).await.map_err(Error::from_walk)?;
        let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(in_order(found.nodes))
    }

    /// Reads what a node lists, without what may not be distributed.
    async fn node(&self, descriptor: Descriptor) -> Result<Node> {
        if !is_document(&descriptor) {
            return Ok(Node { descriptor, children: vec![], bytes: None });
        }
        let bytes = self.read(&descriptor).await?;
        let malformed = |error: windlass_images::Error| Error::BadResponse {
            url: descriptor.digest().to_string(),
            reason: error.to_string(),
        };
        let mut children = match is_index(descriptor.media_type()) {
            true => Index::parse(&descriptor, &bytes).map_err(malformed)?.manifests,
            false => {
                let Manifest { config, layers, .. } =
                    Manifest::parse(&descriptor, &bytes).map_err(malformed)?;
                [vec![config], layers].concat()
            }
        };
        children.retain(|child| !may_not_be_distributed(child));
        Ok(Node { descriptor, children, bytes: Some(bytes) })
    }

    /// The bytes of a manifest or index, checked.
    async fn read(&self, descriptor: &Descriptor) -> Result<Bytes> {
        let name = descriptor.digest().to_string();
        if descriptor.size() > MAX_MANIFEST {
            return Err(Error::TooLarge { url: name, limit: MAX_MANIFEST });
        }
        let mut stream = self.source.fetch(descriptor, 0).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            let chunk =
                chunk.map_err(|source| Error::Source { digest: descriptor.digest().clone(), source })?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > descriptor.size() {
                return Err(Error::TooLarge { url: name, limit: descriptor.size() });
            }
        }
        let mut hasher = Hasher::new(descriptor.digest())
            .map_err(|error| Error::Config { reason: format!("cannot check {name}: {error}") })?;
        hasher.update(&bytes);
        let actual = hasher.finish();
        match actual == *descriptor.digest() {
            true => Ok(bytes.freeze()),
            false => Err(Error::DigestMismatch { url: name, expected: descriptor.digest().clone(), actual }),
        }
    }

    /// Puts one node, from its start again if an upload was lost.
    async fn put(&self, node: Node) -> Result<()> {
        let sent = Arc::new(AtomicU64::new(0));
        let mut beginnings = 1;
        let pushed = loop {
            match self.pusher.push(&node.descriptor, self.content(&node, sent.clone())).await {
                Err(error @ Error::UploadLost { .. }) if beginnings < BEGINNINGS => {
                    beginnings += 1;
                    tracing::debug!(%error, "pushing it again");
                }
                answer => break answer.map_err(cause)?,
            }
        };
        let descriptor = node.descriptor;
        self.progress.send(match pushed {
            Pushed::Existed => Event::Exists { descriptor },
            Pushed::Mounted => Event::Mounted { descriptor },
            Pushed::Uploaded => Event::Uploaded { descriptor, transferred: sent.load(Ordering::Relaxed) },
        });
        Ok(())
    }

    /// A node's bytes, whose source is opened when the first of them is wanted.
    fn content(&self, node: &Node, sent: Arc<AtomicU64>) -> ByteStream {
        let (progress, descriptor) = (self.progress.clone(), node.descriptor.clone());
        let (mut offset, mut reported) = (0, 0);
        let report = move |chunk: &Bytes| {
            offset += chunk.len() as u64;
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if offset - reported >= REPORT || offset == descriptor.size() {
                reported = offset;
                progress.send(Event::Uploading { descriptor: descriptor.clone(), offset });
            }
        };
        let bytes = match node.bytes.clone() {
            Some(bytes) => stream::once(async { Ok(bytes) }).boxed(),
            None => {
                let (source, wanted) = (self.source.clone(), node.descriptor.clone());
                let opened =
                    stream::once(async move { source.fetch(&wanted, 0).await.map_err(io::Error::other) });
                opened.try_flatten().boxed()
            }
        };
        bytes.inspect_ok(report).boxed()
    }
}

impl Found {
    /// Keeps the node's bytes only as long as there are not too many of them.
    fn add(&mut self, mut node: Node) -> Result<()> {
        if self.nodes.len() == MAX_NODES {
            let reason = format!("it is part of more than {MAX_NODES} blobs and manifests");
            return Err(Error::BadResponse { url: node.descriptor.digest().to_string(), reason });
        }
        let size = node.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        match self.kept + size <= KEPT {
            true => self.kept += size,
            false => node.bytes = None,
        }
        self.nodes.insert(node.descriptor.digest().clone(), node);
        Ok(())
    }
}

/// What a source answered, if that is why its bytes could not be pushed.
fn cause(error: Error) -> Error {
    match error {
        Error::Source { digest, source } => {
            source.downcast::<Error>().unwrap_or_else(|source| Error::Source { digest, source })
        }
        error => error,
    }
}

/// Blobs first, then each manifest or index after all that it lists.
fn in_order(mut nodes: HashMap<Digest, Node>) -> Graph {
    let mut documents = Vec::new();
    let mut blobs: Vec<_> =
        nodes.extract_if(|_, node| !is_document(&node.descriptor)).map(|(_, node)| node).collect();
    // The largest ones first: they take longest.
    blobs.sort_by_key(|node| Reverse(node.descriptor.size()));
    while !nodes.is_empty() {
        let open: HashSet<_> = nodes.keys().cloned().collect();
        let is_ready = |node: &mut Node| node.children.iter().all(|child| !open.contains(child.digest()));
        let level: Vec<_> = nodes.extract_if(|_, node| is_ready(node)).map(|(_, node)| node).collect();
        assert!(!level.is_empty(), "what lists itself would have to contain its own digest");
        documents.push(level);
    }
    Graph { blobs, documents }
}

fn is_document(node: &Descriptor) -> bool {
    is_index(node.media_type()) || is_manifest(node.media_type())
}

/// Layers that are licensed to be fetched from their maker only (image spec, "Non-distributable layers").
fn may_not_be_distributed(node: &Descriptor) -> bool {
    let name = node.media_type().as_ref();
    name.starts_with("application/vnd.docker.image.rootfs.foreign.")
        || name.starts_with("application/vnd.oci.image.layer.nondistributable.")
}
