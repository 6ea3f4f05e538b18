//! A body that goes on after its connection broke.

use std::{io, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::HeaderValue;
use oci_spec::image::Descriptor;
use tokio::time::{sleep, timeout};
use url::Url;
use windlass_content::ByteStream;

use super::{
    Server,
    exchange::silence,
    fetch::{Opened, Span},
    limits::{Direction, Turn},
    parallel,
    retry::backoff,
    server::{Failure, Repository},
};
use crate::{Error, Result};

/// How many bytes of an answer make up for its break: a server that gives fewer again and again is not the best to ask.
const AMENDS: u64 = 1 << 20;
/// How long the end of an answer is waited for after its last byte.
const DRAIN: Duration = Duration::from_millis(100);

/// Somewhere that a node's bytes may come from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) server: Server,
    /// A place outside the registry.
    pub(super) foreign: Option<Url>,
    /// What the content had there when it was last seen.
    pub(super) etag: Option<HeaderValue>,
}

impl Source {
    pub(super) fn new(server: Server, foreign: Option<Url>) -> Self {
        Self { server, foreign, etag: None }
    }
}

/// The bytes of a node from `from` on, from the first source that has them.
pub(super) async fn open(
    repository: &Repository,
    descriptor: &Descriptor,
    from: u64,
    sources: Vec<Source>,
) -> Result<ByteStream> {
    let size = descriptor.size();
    let server = &sources[0].server;
    let turn = server.turn(Direction::Download).await;
    let parallel = server.inner.settings.parallel.filter(|parallel| size - from > parallel.part_size.get());
    let mut body = Body {
        repository: repository.clone(),
        descriptor: descriptor.clone(),
        position: from,
        sources,
        opened: None,
        given: 0,
        failures: 0,
        breaks: 0,
        parts_only: false,
        _turn: Some(turn),
    };
    let Some(parallel) = parallel else {
        body.reopen(size - 1).await?;
        return Ok(body.stream());
    };
    body.reopen(from + parallel.part_size.get() - 1).await?;
    // Whoever gives the whole blob when asked for a part gives it over one connection.
    match body.opened.as_ref().is_some_and(|opened| opened.partial) {
        true => Ok(parallel::stream(body, parallel)),
        false => Ok(body.stream()),
    }
}

/// The rest of a node's bytes, in order.
pub(super) struct Body {
    repository: Repository,
    pub(super) descriptor: Descriptor,
    /// Which byte comes next.
    pub(super) position: u64,
    /// Where to ask. The first one is asked until it fails.
    sources: Vec<Source>,
    opened: Option<Opened>,
    /// How many bytes the answer that is being read has given.
    given: u64,
    /// How many answers in a row gave nothing.
    failures: u32,
    /// How many answers in a row broke, and had given little.
    breaks: u32,
    /// Whether an answer with more than the part that was asked for is refused.
    parts_only: bool,
    /// Kept until the end, so that a body that breaks does not wait in line again.
    _turn: Option<Turn>,
}

impl Body {
    pub(super) fn stream(self) -> ByteStream {
        stream::try_unfold(self, |mut body| async move {
            let end = body.descriptor.size();
            let chunk = body.next(end).await?;
            Ok(chunk.map(|chunk| (chunk, body)))
        })
        .boxed()
    }

    /// A body of the same node that begins elsewhere, and takes parts only. Its turn is held by whoever asks.
    pub(super) fn part(&self, position: u64) -> Self {
        Self {
            repository: self.repository.clone(),
            descriptor: self.descriptor.clone(),
            sources: self.sources.clone(),
            opened: None,
            given: 0,
            failures: 0,
            breaks: 0,
            parts_only: true,
            _turn: None,
            position,
        }
    }

    /// A turn for a further connection, if nobody waits for it.
    pub(super) fn another_turn(&self) -> Option<Turn> {
        let server = &self.sources[0].server;
        server.inner.limits.another(&server.endpoint.name(), Direction::Download)
    }

    /// The bytes that come next, up to `end`. `None` when there are no more.
    ///
    /// An answer that breaks, ends early or falls silent is followed by a request for the rest, until as many requests
    /// in a row gave nothing as there may be attempts.
    pub(super) async fn next(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(mut opened) = self.opened.take_if(|opened| self.position >= opened.end) {
                // Read to its end, a connection can be used again.
                let _ = timeout(DRAIN, opened.body.next()).await;
            }
            if self.position >= end {
                return Ok(None);
            }
            if self.opened.is_none() {
                if self.failures > 0 {
                    sleep(backoff(self.failures)).await;
                }
                self.reopen(end - 1).await.map_err(io::Error::other)?;
            }
            match self.read(end).await {
                Ok(chunk) if chunk.is_empty() => {}
                Ok(chunk) => {
                    self.position += chunk.len() as u64;
                    self.given += chunk.len() as u64;
                    self.failures = 0;
                    return Ok(Some(chunk));
                }
                Err(error) => self.broken(error)?,
            }
        }
    }

    /// Makes ready to ask for the rest, unless that was tried often enough.
    fn broken(&mut self, error: io::Error) -> io::Result<()> {
        self.opened = None;
        self.failures += 1;
        self.breaks = if self.given < AMENDS { self.breaks + 1 } else { 1 };
        if self.failures >= self.sources[0].server.inner.settings.attempts.get() {
            return Err(error);
        }
        // Another server may do better than one that broke twice in a row.
        if self.breaks > 1 {
            self.sources.rotate_left(1);
            self.breaks = 0;
        }
        tracing::debug!(%error, position = self.position, digest = %self.descriptor.digest(), "resuming");
        Ok(())
    }

    /// Asks for the bytes from here to `last`, one source after another.
    async fn reopen(&mut self, last: u64) -> Result<()> {
        let span = Span { first: self.position, last };
        let mut failure = Failure::default();
        for _ in 0..self.sources.len() {
            match self.repository.ask(&self.sources[0], &self.descriptor, span).await {
                Ok(opened) if self.parts_only && !opened.partial => {
                    return Err(Error::Config { reason: "the server gives no parts".into() });
                }
                Ok(opened) => {
                    self.sources[0].etag.clone_from(&opened.etag);
                    (self.opened, self.given) = (Some(opened), 0);
                    return Ok(());
                }
                Err(error) => {
                    failure.add(&self.sources[0].server, error);
                    self.sources.rotate_left(1);
                }
            }
        }
        Err(failure.into())
    }

    /// The next wanted bytes, none beyond `end`. Empty if only unwanted ones came.
    async fn read(&mut self, end: u64) -> io::Result<Bytes> {
        let patience = self.sources[0].server.inner.settings.idle_timeout;
        let opened = self.opened.as_mut().expect("the caller has opened it");
        let mut chunk = match timeout(patience, opened.body.next()).await {
            Ok(Some(chunk)) => chunk?,
            Ok(None) => {
                let (position, size) = (self.position, self.descriptor.size());
                let text = format!("the body ended after {position} of {size} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Err(_) => return Err(silence()),
        };
        let skipped = opened.skip.min(chunk.len() as u64);
        opened.skip -= skipped;
        let mut chunk = chunk.split_off(usize::try_from(skipped).expect("no more than the chunk"));
        let wanted = end.min(opened.end) - self.position;
        chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        Ok(chunk)
    }
}
