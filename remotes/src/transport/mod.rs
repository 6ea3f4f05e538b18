//! One HTTP request at a time: what an embedder replaces to bring a client of its own.

mod reqwest;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderMap, Method, Response};
use url::Url;
use windlass_content::ByteStream;

pub(crate) use self::reqwest::Reqwest;

/// Sends single HTTP requests.
///
/// Redirects, retries, credentials and limits are not its business: the registry client above it does these, and
/// needs to see every answer as it came. Bodies are not decoded either: a blob's digest is that of its bytes on the wire.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends a request, and answers as soon as status and headers are there. Any status is an answer.
    ///
    /// The answer's body gives bytes as they come, and an error if it ends before it is whole. Dropping the future or the
    /// body ends the request.
    ///
    /// # Errors
    ///
    /// [`TransportError`], which says whether a connection came about.
    async fn send(&self, request: Request) -> Result<Response<ByteStream>, TransportError>;
}

/// A request for a [`Transport`]. Its `Debug` form shows no secret: neither the URL's query, which may be signed, nor headers
/// that are marked as sensitive.
#[non_exhaustive]
pub struct Request {
    /// Such as `GET`.
    pub method: Method,
    /// Where to; the scheme is `http` or `https`.
    pub url: Url,
    /// All headers beyond those that HTTP itself needs.
    pub headers: HeaderMap,
    /// What is sent after them.
    pub body: Body,
    /// How to connect.
    pub connection: Arc<Connection>,
}

impl Request {
    /// A request without headers or body.
    pub fn new(method: Method, url: Url, connection: Arc<Connection>) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: Body::Empty, connection }
    }

    /// Sets all headers.
    pub fn headers(self, headers: HeaderMap) -> Self {
        Self { headers, ..self }
    }

    /// Sets the body.
    pub fn body(self, body: Body) -> Self {
        Self { body, ..self }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("url", &crate::url::shown(&self.url))
            .field("headers", &self.headers)
            .field("body", &self.body)
            .field("connection", &self.connection)
            .finish()
    }
}

/// The body of a [`Request`].
#[non_exhaustive]
pub enum Body {
    /// Nothing.
    Empty,
    /// As many bytes as are announced, as they come. The request fails if the stream does.
    Stream {
        /// How many bytes there are.
        length: u64,
        /// The bytes.
        stream: ByteStream,
    },
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("Empty"),
            Self::Stream { length, .. } => write!(f, "Stream({length} bytes)"),
        }
    }
}

/// How to connect to a host, beyond its URL. The default one is what a browser does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Connection {
    /// PEM files of certificates that are trusted beside the system's.
    pub roots: Vec<PathBuf>,
    /// What this side shows of itself. Nothing if not set.
    pub certificate: Option<ClientCertificate>,
    /// Whether the host's certificate is taken unseen. For tests; false if not set.
    pub skip_verify: bool,
    /// Gives up on a connection that is not there after this long. The client's own limit if not set.
    pub connect_timeout: Option<Duration>,
    /// The proxy to go through. What the environment says (`HTTPS_PROXY`, `NO_PROXY`, …) if not set.
    pub proxy: Option<ProxyUrl>,
    /// The Unix socket to connect to, whatever the URL says. TCP if not set.
    pub unix_socket: Option<PathBuf>,
}

/// A certificate that a client shows, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// The certificate, and those up to a root that the server knows.
    pub certificate: PathBuf,
    /// Its private key. In the certificate's file if not set.
    pub key: Option<PathBuf>,
}

/// The URL of a proxy. It may hold a password, which is not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ProxyUrl(pub Url);

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::url::shown(&self.0))
    }
}

/// Why a request got no answer. No message holds a URL, since that may hold secrets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The connection broke before the answer, or nothing came for too long.
    #[error("the connection broke")]
    Broken(#[source] io::Error),

    /// No connection came about: the request did not reach the host.
    #[error("no connection")]
    Connect(#[source] io::Error),

    /// A connection cannot even be tried: a certificate that cannot be read, no TLS provider.
    #[error("cannot set up the connection: {reason}")]
    Setup {
        /// What is missing, and what to do.
        reason: String,
    },
}
