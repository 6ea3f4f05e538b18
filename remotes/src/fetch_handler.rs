use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use oci_spec::image::Descriptor;
use windlass_content::{ByteStream, Error as ContentError, Ingest, Ingester, Labels, Writer};
use windlass_images::{
    BoxError, Handler, Next, media_type,
    progress::{Event, Progress},
};

use crate::Fetcher;

/// How many bytes lie between two counts that are reported.
const REPORT: u64 = 64 << 10;
/// How often a stream may break in the middle of one blob before it is given up.
const BREAKS: u32 = 8;

/// Fetches each node into a content store, unless it is there.
#[derive(Clone)]
pub struct FetchHandler {
    fetcher: Arc<dyn Fetcher>,
    ingester: Arc<dyn Ingester>,
    progress: Progress,
}

impl FetchHandler {
    /// Fetches with `fetcher` into `ingester`.
    pub fn new(fetcher: Arc<dyn Fetcher>, ingester: Arc<dyn Ingester>) -> Self {
        Self { fetcher, ingester, progress: Progress::default() }
    }

    /// Sets where events go. Nowhere if not set.
    pub fn progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// Writes all that is missing of a node.
    async fn fill(
        &self,
        node: &Descriptor,
        writer: &mut dyn Writer,
        count: &Arc<AtomicU64>,
    ) -> Result<(), BoxError> {
        let mut breaks = 0;
        loop {
            let from = writer.offset();
            self.progress.send(Event::Downloading { descriptor: node.clone(), offset: from });
            let body = self.fetcher.fetch(node, from).await?;
            match writer.append(self.counted(node, from, body, count)).await {
                Ok(()) => return Ok(()),
                // Whoever got further than last time may try again: the connection is bad, but the content is there.
                Err(ContentError::Source { .. }) if writer.offset() > from && breaks < BREAKS => breaks += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Passes `body` on, which starts at `offset`, and reports and counts what goes by.
    fn counted(
        &self,
        node: &Descriptor,
        mut offset: u64,
        body: ByteStream,
        count: &Arc<AtomicU64>,
    ) -> ByteStream {
        let (progress, node, count) = (self.progress.clone(), node.clone(), count.clone());
        let mut reported = offset;
        let report = move |chunk: &bytes::Bytes| {
            let length = chunk.len() as u64;
            count.fetch_add(length, Ordering::Relaxed);
            offset += length;
            if offset - reported >= REPORT || offset == node.size() {
                reported = offset;
                progress.send(Event::Downloading { descriptor: node.clone(), offset });
            }
        };
        body.inspect_ok(report).boxed()
    }
}

impl fmt::Debug for FetchHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchHandler")
            .field("fetcher", &self.fetcher)
            .field("ingester", &self.ingester)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Handler for FetchHandler {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        let count = Arc::new(AtomicU64::new(0));
        let mut started_over = false;
        loop {
            let mut writer = match self.ingester.ingest(&ingest_key(node), node).await? {
                Ingest::Open(writer) => writer,
                Ingest::Present => {
                    self.progress.send(Event::Exists { descriptor: node.clone() });
                    return Ok(Next::Visit(vec![]));
                }
            };
            let resumed = writer.offset() > 0;
            self.fill(node, &mut *writer, &count).await?;
            match writer.commit(Labels::new()).await {
                Ok(()) => break,
                // What an earlier pull had left was damaged. It is gone now, and should not fail this pull too.
                Err(ContentError::DigestMismatch { .. }) if resumed && !started_over => {
                    tracing::warn!(digest = %node.digest(), "the part from an earlier pull was damaged; starting over");
                    started_over = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let transferred = count.load(Ordering::Relaxed);
        self.progress.send(Event::Downloaded { descriptor: node.clone(), transferred });
        Ok(Next::Visit(vec![]))
    }
}

/// The key under which a node is ingested, which says what it is: `layer-sha256:…`.
pub fn ingest_key(node: &Descriptor) -> String {
    let kind = match node.media_type() {
        kind if media_type::is_index(kind) => "index",
        kind if media_type::is_manifest(kind) => "manifest",
        kind if media_type::is_config(kind) => "config",
        kind if media_type::is_layer(kind) => "layer",
        _ => "blob",
    };
    format!("{kind}-{}", node.digest())
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use windlass_content::hash::sha256;

    use super::*;

    #[test]
    fn a_key_says_what_the_node_is() {
        for (media_type, kind) in [
            ("application/vnd.oci.image.index.v1+json", "index-sha256:"),
            ("application/vnd.docker.distribution.manifest.v2+json", "manifest-sha256:"),
            ("application/vnd.oci.image.config.v1+json", "config-sha256:"),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "layer-sha256:"),
            ("application/octet-stream", "blob-sha256:"),
        ] {
            let node = Descriptor::new(MediaType::from(media_type), 1, sha256(b"x"));
            assert!(ingest_key(&node).starts_with(kind), "{media_type}");
        }
    }
}
