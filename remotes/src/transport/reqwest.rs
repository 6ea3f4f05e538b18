//! The transport that is used if nobody brings another: `reqwest`, with rustls.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::TryStreamExt;
use http::{Response, header::CONTENT_LENGTH};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Proxy, redirect::Policy};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::sync::OnceCell;
use windlass_content::ByteStream;

use super::{Body, Connection, Request, Transport, TransportError};
use crate::hosts::is_loopback;

/// How many bytes of one HTTP/2 stream may be on their way: enough for 100 ms at 20 MB/s.
const STREAM_WINDOW: u32 = 2 << 20;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// One `reqwest` client for each way to connect, made when it is first needed.
#[derive(Debug)]
pub(crate) struct Reqwest {
    connect_timeout: Duration,
    clients: Mutex<HashMap<Way, Arc<OnceCell<Client>>>>,
}

/// What clients differ in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Way {
    connection: Arc<Connection>,
    tls: bool,
    loopback: bool,
}

impl Reqwest {
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self { connect_timeout, clients: Mutex::default() }
    }

    async fn client(&self, way: Way) -> Result<Client, TransportError> {
        let cell = {
            let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.entry(way.clone()).or_default().clone()
        };
        let connect_timeout = self.connect_timeout;
        let make = || async move {
            install_provider()?;
            // Certificates are read from the disk.
            tokio::task::spawn_blocking(move || make(&way, connect_timeout))
                .await
                .map_err(|error| setup(error.to_string()))?
        };
        cell.get_or_try_init(make).await.cloned()
    }
}

#[async_trait]
impl Transport for Reqwest {
    async fn send(&self, request: Request) -> Result<Response<ByteStream>, TransportError> {
        let Request { method, url, headers, body, connection } = request;
        let loopback = is_loopback(url.host_str().unwrap_or_default());
        let client = self.client(Way { connection, tls: url.scheme() == "https", loopback }).await?;
        let outgoing = client.request(method, url).headers(headers);
        let outgoing = match body {
            Body::Empty => outgoing,
            Body::Stream { length, stream } => {
                outgoing.header(CONTENT_LENGTH, length).body(reqwest::Body::wrap_stream(stream))
            }
        };
        let incoming = outgoing.send().await.map_err(failure)?;
        let (status, headers) = (incoming.status(), incoming.headers().clone());
        let body = incoming.bytes_stream().map_err(|error| innermost(&error.without_url()));
        let mut response = Response::new(Box::pin(body) as ByteStream);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }
}

/// A client needs a rustls provider even if it never speaks TLS, and panics without one: so that is asked first.
fn install_provider() -> Result<(), TransportError> {
    #[cfg(feature = "rustls-ring")]
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error says that somebody else was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    match rustls::crypto::CryptoProvider::get_default() {
        Some(_) => Ok(()),
        None => Err(setup(
            "no rustls provider is installed; call `install_default` of one, or use the feature `rustls-ring`"
                .into(),
        )),
    }
}

fn make(way: &Way, connect_timeout: Duration) -> Result<Client, TransportError> {
    let Connection { roots, certificate, skip_verify, connect_timeout: own, proxy, unix_socket } =
        &*way.connection;
    let mut builder = Client::builder()
        .connect_timeout(own.unwrap_or(connect_timeout))
        .redirect(Policy::none())
        // Retries are counted above.
        .retry(reqwest::retry::never())
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW);
    if let Some(proxy) = proxy {
        let proxy = Proxy::all(proxy.0.clone())
            .map_err(|error| setup(innermost(&error.without_url()).to_string()))?;
        builder = builder.proxy(proxy);
    } else if way.loopback || unix_socket.is_some() {
        // No proxy is between a machine and itself, whatever the environment says.
        builder = builder.no_proxy();
    }
    if let Some(path) = unix_socket {
        builder = builder.unix_socket(path.clone());
    }
    builder = match way.tls {
        true => tls(builder, roots, *skip_verify)?,
        // Nothing is read from the disk where no certificate will be seen.
        false => builder.tls_certs_only([]),
    };
    if let Some(certificate) = certificate {
        let mut pem = read(&certificate.certificate)?;
        if let Some(key) = &certificate.key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        let identity = Identity::from_pem(&pem).map_err(|error| {
            bad_pem(&certificate.certificate, &error, "a certificate and its private key")
        })?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| setup(innermost(&error).to_string()))
}

fn tls(
    mut builder: ClientBuilder,
    roots: &[std::path::PathBuf],
    skip_verify: bool,
) -> Result<ClientBuilder, TransportError> {
    for path in roots {
        let pem = read(path)?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|error| bad_pem(path, &error, "certificates"))?;
        if certificates.is_empty() {
            return Err(setup(format!("{} holds no certificate in PEM form", path.display())));
        }
        // The client looks into them only when all are there, and does not say which is broken.
        for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
            RootCertStore::empty().add(certificate).map_err(|error| {
                setup(format!("{} holds a certificate that cannot be trusted: {error}", path.display()))
            })?;
        }
        builder = builder.tls_certs_merge(certificates);
    }
    Ok(if skip_verify { builder.tls_danger_accept_invalid_certs(true) } else { builder })
}

fn read(path: &Path) -> Result<Vec<u8>, TransportError> {
    fs::read(path).map_err(|error| setup(format!("cannot read {}: {error}", path.display())))
}

fn bad_pem(path: &Path, error: &reqwest::Error, what: &str) -> TransportError {
    setup(format!("{} does not hold {what} in PEM form: {}", path.display(), innermost(error)))
}

/// Why there is no answer. A certificate that is not trusted will not be trusted a moment later either.
fn failure(error: reqwest::Error) -> TransportError {
    let (connect, error) = (error.is_connect(), error.without_url());
    let source = innermost(&error);
    let untrusted = is_untrusted(&error);
    match (untrusted, connect) {
        (true, _) => {
            setup(format!("{source}; trust its authority with `ca` in hosts.toml, or on the system"))
        }
        (false, true) => TransportError::Connect(source),
        (false, false) => TransportError::Broken(source),
    }
}

/// Whether the other side's certificate was refused.
fn is_untrusted(error: &(dyn StdError + 'static)) -> bool {
    if let Some(error) = error.downcast_ref() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // An I/O error gives the cause of what is in it, and not what is in it.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let inner = inner.map(|inner| inner as &(dyn StdError + 'static));
    inner.or_else(|| error.source()).is_some_and(is_untrusted)
}

fn setup(reason: String) -> TransportError {
    TransportError::Setup { reason }
}

/// The cause at the bottom, which says what happened; those above say only where.
pub(crate) fn innermost(error: &(dyn StdError + 'static)) -> io::Error {
    let mut error = error;
    let mut kind = io::ErrorKind::Other;
    loop {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            kind = error.kind();
        }
        let Some(source) = error.source() else {
            return io::Error::new(kind, error.to_string());
        };
        error = source;
    }
}
