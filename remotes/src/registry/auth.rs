//! Who asks: tokens and passwords, each kept for the host and scope that it is for.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{
    Method, Response,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use url::Url;

use super::{
    Repository,
    builder::Credentials,
    challenge::{self, Challenge},
    host::shown,
    request,
};
use crate::{Error, Result};

/// How long a token holds if the server does not say.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(5);
/// The largest answer of a token server that is read, in bytes.
const TOKEN_BODY: u64 = 1 << 20;

/// What was learned about who asks, per host and scope. Failures are not kept.
#[derive(Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<(String, String), Slot>>,
}

/// Whoever holds the lock is the one that asks for a new token; the others wait for it.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

struct Token {
    authorization: HeaderValue,
    /// `None` is never.
    expires: Option<Instant>,
}

impl Tokens {
    /// What to send with a request, if a challenge was answered before.
    pub(super) async fn current(&self, repository: &Repository) -> Option<HeaderValue> {
        self.slot(repository).lock().await.as_ref().and_then(Token::valid)
    }

    /// Answers the challenge of a 401. `None` if nothing can be said to it.
    ///
    /// `used` is what the refused request was sent with: if somebody else has something newer, that is the answer.
    pub(super) async fn renew(
        &self,
        repository: &Repository,
        used: Option<&HeaderValue>,
        refusal: &Response,
    ) -> Result<Option<HeaderValue>> {
        let slot = self.slot(repository);
        let mut slot = slot.lock().await;
        if let Some(current) = slot.as_ref().and_then(Token::valid)
            && Some(&current) != used
        {
            return Ok(Some(current));
        }
        *slot = None;
        let headers = refusal.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<Challenge> =
            headers.iter().filter_map(|header| header.to_str().ok()).flat_map(challenge::parse).collect();
        let credentials = repository.inner.settings.credentials.get(&repository.host.name);
        let find = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let token = match (find("bearer"), find("basic"), credentials) {
            (Some(bearer), _, _) => ask(repository, bearer, credentials).await?,
            (None, Some(_), Some(credentials)) => Token { authorization: credentials.basic(), expires: None },
            _ => return Ok(None),
        };
        let authorization = token.authorization.clone();
        *slot = Some(token);
        Ok(Some(authorization))
    }

    fn slot(&self, repository: &Repository) -> Slot {
        let key = (repository.host.name.clone(), scope(&repository.name));
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Token {
    fn valid(&self) -> Option<HeaderValue> {
        self.expires.is_none_or(|expires| Instant::now() < expires).then(|| self.authorization.clone())
    }
}

impl Credentials {
    fn basic(&self) -> HeaderValue {
        let encoded = BASE64_STANDARD.encode(format!("{}:{}", self.user, self.password));
        secret(&format!("Basic {encoded}")).expect("base64 is printable ASCII")
    }
}

/// What may be done with a repository for a pull.
fn scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// Gets a token from the server that the registry names.
async fn ask(
    repository: &Repository,
    challenge: &Challenge,
    credentials: Option<&Credentials>,
) -> Result<Token> {
    let host = &repository.host;
    let realm = challenge.get("realm").unwrap_or_default();
    let bad = |reason: String| Error::BadResponse { url: host.name.clone(), reason };
    let mut url = Url::parse(realm).map_err(|_| bad("its token realm is not a URL".into()))?;
    if url.scheme() != "https" && !(url.scheme() == "http" && host.is_plain()) {
        return Err(bad(format!("its token realm {} is not on TLS", shown(&url))));
    }
    let asked = challenge.get("scope").map_or_else(|| scope(&repository.name), str::to_owned);
    if let Some(service) = challenge.get("service") {
        url.query_pairs_mut().append_pair("service", service);
    }
    url.query_pairs_mut().append_pair("scope", &asked);

    let mut headers = HeaderMap::new();
    if let Some(credentials) = credentials {
        headers.insert(AUTHORIZATION, credentials.basic());
    }
    let inner = &repository.inner;
    let response = inner.http.send(&host.name, Method::GET, url.clone(), headers).await?;
    if !response.status().is_success() {
        return Err(request::refusal(inner, &host.name, &url, response).await);
    }
    let started = Instant::now();
    let body = request::body(inner, &host.name, &url, response, TOKEN_BODY).await?;
    let bad = |reason: &str| Error::BadResponse { url: shown(&url), reason: reason.into() };
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| bad("it is not a token"))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| bad("it holds no token"))?;
    let authorization =
        secret(&format!("Bearer {token}")).ok_or_else(|| bad("its token cannot be a header"))?;
    let lifetime = answer.expires_in.map_or(LIFETIME, Duration::from_secs);
    let expires = started.checked_add(lifetime.saturating_sub(MARGIN));
    Ok(Token { authorization, expires })
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// A header's value that no log shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
