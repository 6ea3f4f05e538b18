//! The upload of one blob: mounted, in one request, or in chunks that are resumed (distribution spec, "Pushing blobs").

use std::{io, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use http::{
    HeaderValue, Method, StatusCode,
    header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE},
};
use oci_spec::image::Descriptor;
use tokio::time::sleep;
use url::Url;
use windlass_content::ByteStream;

use super::{
    RegistryPusher, Server,
    auth::Scopes,
    exchange::{Answer, Call},
    request::Failed,
    retry::Attempts,
};
use crate::{Error, Pushed, Result, url::shown};

/// The least that a registry wants in a chunk.
const CHUNK_MIN: &str = "oci-chunk-min-length";
/// How many bytes per second a registry must at least get through when it checks and stores a whole blob at the end of its
/// upload. Storage in the cloud is not fast at that.
const COMMIT_RATE: u64 = 16 << 20;
/// The largest chunk that is held in memory because a registry wants it, in bytes.
const LARGEST_CHUNK: u64 = 64 << 20;

/// Puts a blob, unless it is there.
pub(super) async fn blob(
    pusher: &RegistryPusher,
    descriptor: &Descriptor,
    content: ByteStream,
) -> Result<Pushed> {
    let upload = Upload { pusher, descriptor, scopes: Scopes::push(&pusher.repository) };
    if upload.is_there().await? {
        return Ok(Pushed::Existed);
    }
    for from in pusher.mount_from.iter().filter(|from| **from != pusher.repository) {
        if upload.mounted(from).await? {
            return Ok(Pushed::Mounted);
        }
    }
    upload.send(Source::new(descriptor, content)).await?;
    Ok(Pushed::Uploaded)
}

struct Upload<'a> {
    pusher: &'a RegistryPusher,
    descriptor: &'a Descriptor,
    scopes: Scopes,
}

/// Where an upload goes on, and how much it wants at a time.
struct Session {
    location: Url,
    /// How much is sent in one request, in bytes.
    chunk: u64,
    /// The least that the registry wants in all requests but the last.
    least: u64,
}

impl Upload<'_> {
    fn server(&self) -> &Server {
        &self.pusher.server
    }

    async fn is_there(&self) -> Result<bool> {
        let url =
            self.server().url(&format!("{}/blobs/{}", self.pusher.repository, self.descriptor.digest()));
        match self.server().request(&Call::new(Method::HEAD, url), &self.scopes).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            // A registry that does not take this method. If it takes nothing else either, it will say why.
            Err(error @ Error::Status { .. }) if !error.is_transient() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Asks the registry to take the blob from another of its repositories.
    async fn mounted(&self, from: &str) -> Result<bool> {
        let mut url = self.uploads();
        url.query_pairs_mut()
            .append_pair("mount", self.descriptor.digest().as_ref())
            .append_pair("from", from);
        let scopes = self.scopes.clone().and(Scopes::pull(from));
        match self.server().request(&Call::new(Method::POST, url).body(vec![]), &scopes).await {
            Ok(answer) if answer.status == StatusCode::CREATED => Ok(true),
            Ok(answer) => {
                // It began an upload instead. Ours begins when all other repositories have been asked.
                if let Ok(location) = location(&answer) {
                    self.cancel(location).await;
                }
                Ok(false)
            }
            // Who may not read there, or has nothing there, sends the bytes.
            Err(Error::Unauthorized { .. } | Error::NotFound { .. } | Error::Status { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn uploads(&self) -> Url {
        self.server().url(&format!("{}/blobs/uploads/", self.pusher.repository))
    }

    /// Sends the blob. An upload that cannot succeed is cancelled.
    async fn send(&self, mut source: Source<'_>) -> Result<()> {
        // A source that cannot even begin leaves nothing behind.
        let mut chunk = Chunk::default();
        chunk.fill(&mut source, self.server().inner.settings.upload_chunk.get() as u64).await?;
        let mut session = self.begin().await?;
        let sent = self.send_to(&mut session, chunk, source).await;
        if sent.as_ref().is_err_and(|error| !error.is_transient()) {
            self.cancel(session.location).await;
        }
        sent
    }

    /// Sends this chunk and what follows. What breaks is resumed, or begun anew as long as all of it is in memory.
    async fn send_to(&self, session: &mut Session, mut chunk: Chunk, mut source: Source<'_>) -> Result<()> {
        let size = self.descriptor.size();
        let settings = &self.server().inner.settings;
        let mut attempts = Attempts::new(settings, true);
        if chunk.end() < size {
            chunk.fill(&mut source, session.chunk).await?;
        }
        loop {
            if chunk.arrived() == chunk.end() && chunk.end() < size {
                chunk = chunk.next();
                chunk.fill(&mut source, session.chunk).await?;
            }
            let whole = chunk.start == 0 && chunk.end() == size;
            let complete = whole || chunk.arrived() == size;
            let outcome = match complete {
                true => self.finish(session, chunk.rest()).await,
                false => self.patch(session, &chunk).await,
            };
            let Err(Failed { error, asked, .. }) = outcome else {
                if complete {
                    return Ok(());
                }
                attempts = Attempts::new(settings, true);
                chunk.sent = chunk.length();
                continue;
            };
            let Some(wait) = attempts.after(&error, asked) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, digest = %self.descriptor.digest(), "resuming an upload");
            sleep(wait).await;
            match self.arrived(session).await {
                Some(arrived) if !whole && chunk.resumes_at(arrived) => {
                    if arrived > chunk.arrived() {
                        attempts = Attempts::new(settings, true);
                    }
                    chunk.sent = arrived - chunk.start;
                    if arrived < chunk.end() {
                        let least = session.least.min(size - arrived);
                        chunk.fill(&mut source, chunk.sent + least).await?;
                    }
                }
                found if chunk.start == 0 => {
                    if found.is_some() {
                        self.cancel(session.location.clone()).await;
                    }
                    (*session, chunk.sent) = (self.begin().await?, 0);
                }
                _ => {
                    let (digest, url) = (self.descriptor.digest().clone(), shown(&self.uploads()));
                    return Err(Error::UploadLost { digest, url });
                }
            }
        }
    }

    async fn begin(&self) -> Result<Session> {
        let answer = self
            .server()
            .request(&Call::new(Method::POST, self.uploads()).body(vec![]), &self.scopes)
            .await
            .map_err(|error| match error {
                Error::NotFound { url, .. } => {
                    let name = format!("{}/{}", self.server().endpoint.name(), self.pusher.repository);
                    Error::NotFound { name, url }
                }
                error => error,
            })?;
        let wanted = answer.header(CHUNK_MIN).and_then(|least| least.parse::<u64>().ok()).unwrap_or_default();
        if wanted > LARGEST_CHUNK && self.descriptor.size() > LARGEST_CHUNK {
            let reason = format!("it wants chunks of {wanted} bytes; {LARGEST_CHUNK} is the limit");
            return Err(Error::BadResponse { url: shown(&answer.url), reason });
        }
        let own = self.server().inner.settings.upload_chunk.get() as u64;
        Ok(Session { location: location(&answer)?, chunk: own.max(wanted), least: wanted })
    }

    /// Sends what is left of a chunk.
    async fn patch(&self, session: &mut Session, chunk: &Chunk) -> Result<(), Failed> {
        let mut call = Call::new(Method::PATCH, session.location.clone()).body(chunk.rest());
        call.headers.insert(CONTENT_TYPE, octets());
        let range = format!("{}-{}", chunk.arrived(), chunk.end() - 1);
        call.headers
            .insert(CONTENT_RANGE, HeaderValue::from_str(&range).expect("a range is printable ASCII"));
        // A part of it may be there after a failure, so it is not simply sent again.
        let answer = self.server().attempt(&call, &self.scopes).await.map_err(|failed| self.lost(failed))?;
        session.location = location(&answer)?;
        Ok(())
    }

    /// Completes the upload, with its last bytes.
    async fn finish(&self, session: &Session, bytes: Vec<Bytes>) -> Result<(), Failed> {
        let mut url = session.location.clone();
        url.query_pairs_mut().append_pair("digest", self.descriptor.digest().as_ref());
        let grace = Duration::from_secs(self.descriptor.size() / COMMIT_RATE);
        let mut call = Call::new(Method::PUT, url).body(bytes).grace(grace);
        call.headers.insert(CONTENT_TYPE, octets());
        let Err(failed) = self.server().attempt(&call, &self.scopes).await else {
            return Ok(());
        };
        let failed = self.lost(failed);
        // The answer may have been lost on its way, and not the blob. Who asks us to wait has not lost it.
        let unclear = failed.error.is_transient() && failed.asked.is_none();
        match unclear && self.is_there().await? {
            true => Ok(()),
            false => Err(failed),
        }
    }

    /// How many bytes have arrived. `None` if the upload is lost. It goes on where this answer says.
    async fn arrived(&self, session: &mut Session) -> Option<u64> {
        let answer = self.server().request(&Call::get(session.location.clone()), &self.scopes).await.ok()?;
        let (first, last) = answer.header(RANGE)?.trim_start_matches("bytes=").split_once('-')?;
        let last = last.parse::<u64>().ok().filter(|_| first == "0")?;
        if let Ok(location) = location(&answer) {
            session.location = location;
        }
        last.checked_add(1)
    }

    /// Tells the registry that an upload will not go on. It may not care.
    async fn cancel(&self, location: Url) {
        if let Err(Failed { error, .. }) =
            self.server().attempt(&Call::new(Method::DELETE, location), &self.scopes).await
        {
            tracing::debug!(%error, "cannot cancel an upload");
        }
    }

    /// An upload that the registry does not know, or knows otherwise, may be begun anew.
    fn lost(&self, failed: Failed) -> Failed {
        let error = match failed.error {
            Error::NotFound { url, .. } | Error::Status { status: 416, url, .. } => {
                Error::UploadLost { digest: self.descriptor.digest().clone(), url }
            }
            error => error,
        };
        Failed { error, ..failed }
    }
}

/// A part of the blob that is in memory.
#[derive(Default)]
struct Chunk {
    /// Where in the blob it begins.
    start: u64,
    bytes: Vec<Bytes>,
    /// How many of its bytes have arrived.
    sent: u64,
}

impl Chunk {
    /// An empty one that follows this one, whose bytes are not needed any more.
    fn next(self) -> Self {
        Self { start: self.end(), ..Self::default() }
    }

    /// Takes bytes from the source until it has that many, if the blob has as many.
    async fn fill(&mut self, source: &mut Source<'_>, most: u64) -> Result<()> {
        let missing = most.saturating_sub(self.length());
        if missing > 0 {
            self.bytes.extend(source.take(missing).await?);
        }
        Ok(())
    }

    fn length(&self) -> u64 {
        self.bytes.iter().map(|bytes| bytes.len() as u64).sum()
    }

    /// Where in the blob it ends.
    fn end(&self) -> u64 {
        self.start + self.length()
    }

    /// How many of the blob's bytes have arrived.
    fn arrived(&self) -> u64 {
        self.start + self.sent
    }

    /// Whether an upload of which so many bytes have arrived goes on within it.
    fn resumes_at(&self, arrived: u64) -> bool {
        // `0-0` is what registries say of one byte and of an empty upload, too.
        let unclear = self.start == 0 && arrived == 1;
        !unclear && (self.start..=self.end()).contains(&arrived)
    }

    /// The bytes that have not arrived.
    fn rest(&self) -> Vec<Bytes> {
        let mut skip = usize::try_from(self.sent).expect("it is no more than what is in memory");
        let mut rest = Vec::new();
        for bytes in &self.bytes {
            let skipped = skip.min(bytes.len());
            skip -= skipped;
            rest.push(bytes.slice(skipped..));
        }
        rest
    }
}

/// The bytes of a blob, taken in parts, and as many as its descriptor says.
pub(super) struct Source<'a> {
    descriptor: &'a Descriptor,
    content: ByteStream,
    /// What came with the last part, but did not fit.
    left: Bytes,
    taken: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(descriptor: &'a Descriptor, content: ByteStream) -> Self {
        Self { descriptor, content, left: Bytes::new(), taken: 0 }
    }

    /// The next bytes: `most` of them, or fewer at the end.
    pub(super) async fn take(&mut self, most: u64) -> Result<Vec<Bytes>> {
        let size = self.descriptor.size();
        let mut wanted = most.min(size - self.taken);
        let mut parts = Vec::new();
        while wanted > 0 {
            if self.left.is_empty() {
                self.left = match self.content.next().await {
                    Some(bytes) => bytes.map_err(|source| self.failed(source))?,
                    None => {
                        let text = format!("there are {} bytes instead of {size}", self.taken);
                        return Err(self.failed(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
                    }
                };
            }
            let part = self.left.split_to(self.left.len().min(usize::try_from(wanted).unwrap_or(usize::MAX)));
            wanted -= part.len() as u64;
            self.taken += part.len() as u64;
            if !part.is_empty() {
                parts.push(part);
            }
        }
        let at_end = self.taken == size;
        if at_end
            && (!self.left.is_empty()
                || matches!(self.content.next().await, Some(Ok(more)) if !more.is_empty()))
        {
            let text = format!("there are more than {size} bytes");
            return Err(self.failed(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Ok(parts)
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Source { digest: self.descriptor.digest().clone(), source }
    }
}

/// Where an answer says that the upload goes on.
fn location(answer: &Answer) -> Result<Url> {
    let bad = |reason: &str| Error::BadResponse { url: shown(&answer.url), reason: reason.into() };
    let location = answer.header(LOCATION).and_then(|location| answer.url.join(location).ok());
    let location =
        location.filter(Url::has_host).ok_or_else(|| bad("it does not say where the upload goes on"))?;
    match (answer.url.scheme(), location.scheme()) {
        (_, "https") | ("http", "http") => Ok(location),
        _ => Err(bad("it leads an upload from TLS to something else")),
    }
}

fn octets() -> HeaderValue {
    HeaderValue::from_static("application/octet-stream")
}
