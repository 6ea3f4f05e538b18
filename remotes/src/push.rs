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
/// How often the push of one node is begun.
const BEGINNINGS: u32 = 3;
/// How many bytes lie between two counts that are reported.
const REPORT: u64 = 256 << 10;

/// Pushes an image, or an index with all that it lists, from `source` to `pusher`.
///
/// `source` may be a store ([`from_provider`](crate::from_provider)) or another registry's fetcher: then nothing is stored
/// on the way. `limit` blobs move at once. Whatever is listed is put before what lists it, so that the registry never
/// shows an image that is not whole. Layers that may not be distributed are left out, as the image spec wants it.
///
/// # Errors
///
/// [`Error::NotFound`] if `source` lacks something, [`Error::DigestMismatch`] if it gives another manifest than the one that
/// was named, and what [`Pusher::push`] may answer. What was put before stays there; pushing again goes on after it.
pub async fn push(
    source: Arc<dyn Fetcher>,
    pusher: Arc<dyn Pusher>,
    root: &Descriptor,
    limit: NonZeroUsize,
    progress: &Progress,
) -> Result<()> {
    let push = Push { source, pusher, progress: progress.clone() };
    let graph = push.graph(root, limit).await?;
    let put_all = async |nodes: Vec<Descriptor>| {
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

/// Each node, and what it lists.
type Found = HashMap<Digest, (Descriptor, Vec<Descriptor>)>;

/// What is to be put, in this order.
struct Graph {
    blobs: Vec<Descriptor>,
    /// Manifests, then indexes that list only these, and so on.
    documents: Vec<Vec<Descriptor>>,
}

impl Push {
    /// Reads all manifests and indexes from `root` on.
    async fn graph(&self, root: &Descriptor, limit: NonZeroUsize) -> Result<Graph> {
        let found = Arc::new(Mutex::new(Found::new()));
        let (this, all) = (self.clone(), found.clone());
        let read = move |node: Descriptor| {
            let (this, all) = (this.clone(), all.clone());
            async move {
                this.progress.send(Event::Waiting { descriptor: node.clone() });
                let children = this.children(&node).await?;
                let entry = (node.digest().clone(), (node, children.clone()));
                all.lock().unwrap_or_else(PoisonError::into_inner).extend([entry]);
                Ok::<_, BoxError>(Next::Visit(children))
            }
        };
        dispatch(read, root.clone(), limit).await.map_err(Error::from_walk)?;
        let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(in_order(found))
    }

    /// What a node lists, without what may not be distributed.
    async fn children(&self, node: &Descriptor) -> Result<Vec<Descriptor>> {
        if !is_document(node) {
            return Ok(vec![]);
        }
        let bytes = self.read(node).await?;
        let malformed = |error: windlass_images::Error| Error::BadResponse {
            url: node.digest().to_string(),
            reason: error.to_string(),
        };
        let children = match is_index(node.media_type()) {
            true => Index::parse(node, &bytes).map_err(malformed)?.manifests,
            false => {
                let Manifest { config, layers, .. } = Manifest::parse(node, &bytes).map_err(malformed)?;
                [vec![config], layers].concat()
            }
        };
        Ok(children.into_iter().filter(|child| !may_not_be_distributed(child)).collect())
    }

    /// The bytes of a manifest or index, checked.
    async fn read(&self, node: &Descriptor) -> Result<Bytes> {
        let name = node.digest().to_string();
        if node.size() > MAX_MANIFEST {
            return Err(Error::TooLarge { url: name, limit: MAX_MANIFEST });
        }
        let mut stream = self.source.fetch(node, 0).await?;
        let mut bytes = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| Error::Source { digest: node.digest().clone(), source })?;
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > node.size() {
                return Err(Error::TooLarge { url: name, limit: node.size() });
            }
        }
        let mut hasher = Hasher::new(node.digest())
            .map_err(|error| Error::Config { reason: format!("cannot check {name}: {error}") })?;
        hasher.update(&bytes);
        let actual = hasher.finish();
        match actual == *node.digest() {
            true => Ok(bytes.freeze()),
            false => Err(Error::DigestMismatch { url: name, expected: node.digest().clone(), actual }),
        }
    }

    /// Puts one node, from its start again if an upload was lost.
    async fn put(&self, node: Descriptor) -> Result<()> {
        let sent = Arc::new(AtomicU64::new(0));
        let mut beginnings = 1;
        let pushed = loop {
            match self.pusher.push(&node, self.content(&node, sent.clone())).await {
                Err(error) if error.is_transient() && beginnings < BEGINNINGS => {
                    beginnings += 1;
                    tracing::debug!(%error, digest = %node.digest(), "pushing it again");
                }
                answer => break answer?,
            }
        };
        self.progress.send(match pushed {
            Pushed::Existed => Event::Exists { descriptor: node },
            Pushed::Mounted => Event::Mounted { descriptor: node },
            Pushed::Uploaded => {
                Event::Uploaded { descriptor: node, transferred: sent.load(Ordering::Relaxed) }
            }
        });
        Ok(())
    }

    /// A node's bytes, whose source is opened when the first of them is wanted.
    fn content(&self, node: &Descriptor, sent: Arc<AtomicU64>) -> ByteStream {
        let (source, progress, node) = (self.source.clone(), self.progress.clone(), node.clone());
        let wanted = node.clone();
        let opened = stream::once(async move { source.fetch(&wanted, 0).await.map_err(io::Error::other) });
        let (mut offset, mut reported) = (0, 0);
        let report = move |chunk: &Bytes| {
            offset += chunk.len() as u64;
            sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            if offset - reported >= REPORT || offset == node.size() {
                reported = offset;
                progress.send(Event::Uploading { descriptor: node.clone(), offset });
            }
        };
        opened.try_flatten().inspect_ok(report).boxed()
    }
}

/// Blobs first, then each manifest or index after all that it lists.
fn in_order(mut found: Found) -> Graph {
    let mut blobs: Vec<_> =
        found.values().filter(|(node, _)| !is_document(node)).map(|(node, _)| node.clone()).collect();
    // The largest ones first: they take longest.
    blobs.sort_by_key(|node| Reverse(node.size()));
    found.retain(|_, (node, _)| is_document(node));
    let mut documents = Vec::new();
    while !found.is_empty() {
        let open: HashSet<_> = found.keys().cloned().collect();
        let is_ready = |children: &[Descriptor]| children.iter().all(|child| !open.contains(child.digest()));
        let mut level = Vec::new();
        found.retain(|_, (node, children)| {
            let ready = is_ready(children);
            level.extend(ready.then(|| node.clone()));
            !ready
        });
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
