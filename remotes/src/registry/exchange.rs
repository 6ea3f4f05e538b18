//! One request and the redirects after it.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, LOCATION, USER_AGENT},
};
use tokio::time::{Instant, sleep_until};
use url::Url;
use windlass_content::ByteStream;

use super::{Server, request::line};
use crate::{
    Error, Result,
    transport::{Body, Connection, Request, TransportError},
    url::shown,
};

/// How many redirects are followed.
const REDIRECTS: usize = 10;
/// How much of a body is handed over at a time, in bytes: so often it is seen that bytes still go.
const PIECE: usize = 64 << 10;

/// A request, before anybody has said who asks.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The body. It is kept, so that it can be sent again.
    pub(super) body: Option<Vec<Bytes>>,
    /// Whether nothing of ours is shown, wherever it goes.
    pub(super) anonymous: bool,
    /// How much longer than anything else the answer may take.
    pub(super) grace: Duration,
}

impl Call {
    pub(super) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None, anonymous: false, grace: Duration::ZERO }
    }

    pub(super) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }

    pub(super) fn headers(self, headers: HeaderMap) -> Self {
        Self { headers, ..self }
    }

    pub(super) fn body(self, body: Vec<Bytes>) -> Self {
        Self { body: Some(body), ..self }
    }

    pub(super) fn anonymous(self) -> Self {
        Self { anonymous: true, ..self }
    }

    pub(super) fn grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }
}

/// An answer, of any status.
pub(super) struct Answer {
    /// Where it came from, after all redirects.
    pub(super) url: Url,
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: ByteStream,
}

impl Answer {
    /// A header's value, if it is text.
    pub(super) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What is wrong if the body is encoded: nobody asked for that, and a digest is that of the bytes on the wire.
    pub(super) fn encoded(&self) -> Result<(), String> {
        match self.header(CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            Some(encoding) => Err(format!("it is encoded as {:?}, which was not asked for", line(encoding))),
            None => Ok(()),
        }
    }
}

impl Server {
    /// Sends a request, and follows redirects.
    ///
    /// `authorization` goes to the origin of the request only, and this server's headers and client certificate to the
    /// server's; neither once a redirect has led elsewhere. What is uploaded is sent again only within its origin.
    pub(super) async fn exchange(&self, call: &Call, authorization: Option<&HeaderValue>) -> Result<Answer> {
        let mut url = call.url.clone();
        let mut stayed = !call.anonymous;
        for _ in 0..=REDIRECTS {
            let mut headers = call.headers.clone();
            headers.insert(USER_AGENT, self.user_agent());
            // A blob's digest is that of its bytes on the wire.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            let at_home = stayed && self.is_home(&url);
            if at_home {
                headers.extend(self.endpoint.headers.clone());
            }
            if let Some(authorization) = authorization.filter(|_| stayed) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let answer = self.once(call, &url, headers, at_home).await?;
            let Some(next) = next(&answer)? else {
                return Ok(answer);
            };
            stayed &= next.origin() == url.origin();
            let may_repeat = call.method.is_safe() || (stayed && answer.status.as_u16() >= 307);
            if !may_repeat {
                return Err(bad(&url, "it redirects an upload or a login"));
            }
            url = next;
        }
        Err(bad(&url, &format!("more than {REDIRECTS} redirects")))
    }

    /// Whether the URL is at this server's own origin.
    pub(super) fn is_home(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.url.origin()
    }

    /// Sends one request. Gives up when neither side has sent anything for too long.
    async fn once(&self, call: &Call, url: &Url, headers: HeaderMap, at_home: bool) -> Result<Answer> {
        let connection = if at_home { self.endpoint.connection.clone() } else { self.connection_elsewhere() };
        let mut request = Request::new(call.method.clone(), url.clone(), connection).headers(headers);
        let patience = self.inner.settings.idle_timeout.saturating_add(call.grace);
        let connecting =
            self.endpoint.connection.connect_timeout.unwrap_or(self.inner.settings.connect_timeout);
        let alive = Alive::new(patience.saturating_add(connecting));
        if let Some(body) = &call.body {
            request = request.body(watched(body, patience, alive.clone()));
        }
        let response = tokio::select! {
            response = self.inner.transport.send(request) => response,
            () = alive.ended() => Err(TransportError::Broken(silence())),
        };
        let response = response.map_err(|error| self.failure(url, error));
        if at_home {
            self.inner.health.note(&self.endpoint, &response);
        }
        let (parts, body) = response?.into_parts();
        Ok(Answer { url: url.clone(), status: parts.status, headers: parts.headers, body })
    }

    /// How to connect to where this server redirects to: by the same roads, but without showing who we are.
    fn connection_elsewhere(&self) -> Arc<Connection> {
        let Connection { roots, connect_timeout, proxy, .. } = (*self.endpoint.connection).clone();
        Arc::new(Connection { roots, connect_timeout, proxy, ..Connection::default() })
    }

    /// A failure of the way to the server, in our words.
    pub(super) fn failure(&self, url: &Url, error: TransportError) -> Error {
        let host = url.host_str().map_or_else(String::new, |host| match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        });
        match error {
            TransportError::Connect(source) => Error::Connect { host, url: shown(url), source },
            TransportError::Broken(source) => Error::Transport { host, url: shown(url), source },
            TransportError::Setup { reason } => Error::Tls { host, reason },
        }
    }
}

/// The error of a side that has fallen silent.
pub(super) fn silence() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long")
}

fn bad(url: &Url, reason: &str) -> Error {
    Error::BadResponse { url: shown(url), reason: reason.into() }
}

/// Where the answer leads, if it is a redirect.
fn next(answer: &Answer) -> Result<Option<Url>> {
    use StatusCode as S;
    if !matches!(
        answer.status,
        S::MOVED_PERMANENTLY | S::FOUND | S::SEE_OTHER | S::TEMPORARY_REDIRECT | S::PERMANENT_REDIRECT
    ) {
        return Ok(None);
    }
    let from = &answer.url;
    let next = answer
        .header(LOCATION)
        .and_then(|location| from.join(location).ok())
        .filter(Url::has_host)
        .ok_or_else(|| bad(from, "it redirects to nowhere"))?;
    match (from.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(Some(next)),
        _ => Err(bad(from, "it redirects from TLS to something else")),
    }
}

/// When a request is given up, unless something happens before.
#[derive(Clone)]
struct Alive(Arc<Mutex<Instant>>);

impl Alive {
    fn new(patience: Duration) -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + patience)))
    }

    fn until(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn extend(&self, patience: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + patience;
    }

    async fn ended(&self) {
        while Instant::now() < self.until() {
            sleep_until(self.until()).await;
        }
    }
}

/// A body that says that it is alive whenever a piece of it is taken.
fn watched(chunks: &[Bytes], patience: Duration, alive: Alive) -> Body {
    let pieces: Vec<_> =
        chunks.iter().flat_map(|chunk| chunk.chunks(PIECE).map(|piece| chunk.slice_ref(piece))).collect();
    let length = chunks.iter().map(|chunk| chunk.len() as u64).sum();
    let stream = stream::iter(pieces.into_iter().map(move |piece| {
        alive.extend(patience);
        Ok(piece)
    }));
    Body::Stream { length, stream: Box::pin(stream) }
}
