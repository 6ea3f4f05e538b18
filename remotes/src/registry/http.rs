//! Single requests over HTTP: clients that are made when they are needed, redirects, errors in our words.

use std::{error::Error as StdError, io, time::Duration};

use reqwest::{
    Client, ClientBuilder, Method, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, LOCATION},
    redirect::Policy,
};
use tokio::{sync::OnceCell, time::timeout};
use url::Url;

use super::{Builder, host::shown};
use crate::{Error, Result};

/// How many redirects are followed.
const REDIRECTS: usize = 10;

/// Two clients: one for loopback and other plain hosts, which needs no root certificates, and one for TLS.
#[derive(Debug)]
pub(super) struct Http {
    connect_timeout: Duration,
    idle_timeout: Duration,
    user_agent: String,
    plain: OnceCell<Client>,
    tls: OnceCell<Client>,
}

impl Http {
    pub(super) fn new(settings: &Builder) -> Self {
        Self {
            connect_timeout: settings.connect_timeout,
            idle_timeout: settings.idle_timeout,
            user_agent: settings.user_agent.clone(),
            plain: OnceCell::new(),
            tls: OnceCell::new(),
        }
    }

    /// Sends a request, and follows redirects. `Authorization` stays at the origin that it was for.
    ///
    /// Any status is an answer. `host` is the registry that the request is for, as errors name it.
    pub(super) async fn send(
        &self,
        host: &str,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Response> {
        let (mut url, mut headers) = (url, headers);
        for _ in 0..=REDIRECTS {
            let request =
                self.client(&url).await?.request(method.clone(), url.clone()).headers(headers.clone());
            let response =
                match timeout(self.idle_timeout.saturating_add(self.connect_timeout), request.send()).await {
                    Ok(Ok(response)) => response,
                    Ok(Err(error)) => return Err(failure(host, &url, error)),
                    Err(_) => return Err(silent(host, &url)),
                };
            let Some(next) = redirect(&url, &response)? else {
                return Ok(response);
            };
            if next.origin() != url.origin() {
                headers.remove(AUTHORIZATION);
            }
            url = next;
        }
        Err(Error::BadResponse { url: shown(&url), reason: format!("more than {REDIRECTS} redirects") })
    }

    async fn client(&self, url: &Url) -> Result<&Client> {
        let builder = || {
            Client::builder()
                .connect_timeout(self.connect_timeout)
                .user_agent(&self.user_agent)
                .redirect(Policy::none())
                // Retries are ours to count.
                .retry(reqwest::retry::never())
        };
        match url.scheme() {
            // Plain hosts are near: no proxy is between. Without roots, nothing is read from the disk.
            "http" => self.plain.get_or_try_init(|| make(builder().no_proxy().tls_certs_only([]))).await,
            _ => self.tls.get_or_try_init(|| make(builder())).await,
        }
    }
}

/// Makes a client off the runtime's workers, since that may read the system's certificates.
///
/// A client needs a rustls provider even if it never speaks TLS, and panics without one: so that is asked first.
async fn make(builder: ClientBuilder) -> Result<Client> {
    #[cfg(feature = "rustls-ring")]
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error says that somebody else was faster, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let reason = "no rustls provider is installed; call `install_default` of one, or use the feature `rustls-ring`";
        return Err(Error::Tls { reason: reason.into() });
    }
    tokio::task::spawn_blocking(|| builder.build())
        .await
        .map_err(|error| Error::Tls { reason: error.to_string() })?
        .map_err(|error| Error::Tls { reason: innermost(&error).to_string() })
}

/// Where the answer leads, if it is a redirect.
fn redirect(from: &Url, response: &Response) -> Result<Option<Url>> {
    use StatusCode as S;
    if !matches!(
        response.status(),
        S::MOVED_PERMANENTLY | S::FOUND | S::SEE_OTHER | S::TEMPORARY_REDIRECT | S::PERMANENT_REDIRECT
    ) {
        return Ok(None);
    }
    let bad = |reason: &str| Error::BadResponse { url: shown(from), reason: reason.into() };
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let next = location
        .and_then(|location| from.join(location).ok())
        .ok_or_else(|| bad("it redirects to nowhere"))?;
    match (from.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(Some(next)),
        _ => Err(bad("it redirects from TLS to something else")),
    }
}

/// A failure of the way to the registry, without the URL, which may hold secrets.
pub(super) fn failure(host: &str, url: &Url, error: reqwest::Error) -> Error {
    let connect = error.is_connect();
    let (host, url, source) = (host.to_owned(), shown(url), innermost(&error.without_url()));
    match connect {
        true => Error::Connect { host, url, source },
        false => Error::Transport { host, url, source },
    }
}

pub(super) fn silent(host: &str, url: &Url) -> Error {
    let source = io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long");
    Error::Transport { host: host.to_owned(), url: shown(url), source }
}

/// The cause at the bottom, which says what happened; those above say only where.
pub(super) fn innermost(error: &(dyn StdError + 'static)) -> io::Error {
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
