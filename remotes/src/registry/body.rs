//! A body that goes on after its connection broke.

use std::io;

use bytes::Bytes;
use futures::stream;
use oci_spec::image::Descriptor;
use tokio::time::{sleep, timeout};
use windlass_content::ByteStream;

use super::{
    Repository,
    fetch::Opened,
    http::{innermost, silent},
    retry::backoff,
};

/// The bytes of a node from `from` on, of which `opened` is the first answer.
///
/// An answer that breaks, ends early or falls silent is followed by a request for the rest, until as many requests in a
/// row gave nothing as there may be attempts.
pub(super) fn resumed(
    repository: Repository,
    descriptor: Descriptor,
    from: u64,
    opened: Opened,
) -> ByteStream {
    let body = Body { repository, descriptor, position: from, opened: Some(opened), failures: 0 };
    Box::pin(stream::try_unfold(body, |mut body| async move {
        let chunk = body.next().await?;
        Ok(chunk.map(|chunk| (chunk, body)))
    }))
}

struct Body {
    repository: Repository,
    descriptor: Descriptor,
    /// Which byte comes next.
    position: u64,
    opened: Option<Opened>,
    /// How many answers in a row gave nothing.
    failures: u32,
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.position < self.descriptor.size() {
            let mut opened = match self.opened.take() {
                Some(opened) => opened,
                None => self.reopen().await?,
            };
            match self.read(&mut opened).await {
                Ok(chunk) => {
                    self.opened = Some(opened);
                    if !chunk.is_empty() {
                        self.position += chunk.len() as u64;
                        self.failures = 0;
                        return Ok(Some(chunk));
                    }
                }
                Err(error) => {
                    self.failures += 1;
                    if self.failures >= self.repository.inner.settings.attempts.get() {
                        return Err(error);
                    }
                    tracing::debug!(%error, position = self.position, digest = %self.descriptor.digest(), "resuming");
                }
            }
        }
        Ok(None)
    }

    async fn reopen(&self) -> io::Result<Opened> {
        sleep(backoff(self.failures)).await;
        self.repository.open(&self.descriptor, self.position).await.map_err(io::Error::other)
    }

    /// The next wanted bytes, never more than are missing. Empty if only unwanted ones came.
    async fn read(&self, opened: &mut Opened) -> io::Result<Bytes> {
        let patience = self.repository.inner.settings.idle_timeout;
        let mut chunk = match timeout(patience, opened.response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => {
                let (position, size) = (self.position, self.descriptor.size());
                let text = format!("the body ended after {position} of {size} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(Err(error)) => return Err(innermost(&error.without_url())),
            Err(_) => {
                let url = self.repository.content_url(&self.descriptor);
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    silent(&self.repository.host.name, &url),
                ));
            }
        };
        let skipped = opened.skip.min(chunk.len() as u64);
        opened.skip -= skipped;
        let mut chunk = chunk.split_off(skipped as usize);
        let missing = self.descriptor.size() - self.position;
        chunk.truncate(usize::try_from(missing).unwrap_or(usize::MAX));
        Ok(chunk)
    }
}
