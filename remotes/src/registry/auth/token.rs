//! Tokens, and the servers that give them out (distribution spec, token authentication).

use std::time::{Duration, Instant, SystemTime};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::CONTENT_TYPE};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::{Challenge, Scopes};
use crate::{
    Error, Result,
    credentials::{Credential, Secret},
    hosts::is_loopback,
    registry::{Server, exchange::Call},
    url::shown,
};

/// How long a token holds if the server does not say.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long before its end a token is renewed, at most; a tenth of its life if that is less.
const MARGIN: Duration = Duration::from_secs(30);
/// The largest answer of a token server that is read, in bytes.
const TOKEN_BODY: u64 = 1 << 20;
/// What this client calls itself to token servers.
const CLIENT: &str = "windlass";

/// What a request is sent with.
pub(super) struct Token {
    authorization: HeaderValue,
    /// `None` is never.
    renew_at: Option<Instant>,
}

impl Token {
    pub(super) fn basic(user: &str, password: &Secret) -> Self {
        Self { authorization: basic(user, password), renew_at: None }
    }

    /// A token that the caller has from elsewhere.
    pub(super) fn given(token: &Secret) -> Result<Self> {
        let authorization = secret(&format!("Bearer {}", token.reveal())).ok_or_else(|| Error::Config {
            reason: "an access token has characters that no header can have".into(),
        })?;
        Ok(Self { authorization, renew_at: None })
    }

    pub(super) fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    /// What to send, unless it is time for another.
    pub(super) fn valid(&self) -> Option<HeaderValue> {
        self.renew_at.is_none_or(|at| Instant::now() < at).then(|| self.authorization())
    }
}

/// Gets a token from the server that the challenge names.
pub(super) async fn ask(
    server: &Server,
    scopes: &Scopes,
    challenge: &Challenge,
    credential: Option<Credential>,
) -> Result<Token> {
    let realm = realm(server, challenge)?;
    let scopes = scopes.clone().and(Scopes::parse(challenge.get("scope").unwrap_or_default()));
    let service = challenge.get("service");
    let started = Instant::now();
    let answer = match &credential {
        Some(Credential::IdentityToken(token)) => {
            let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
            server.exchange(&post(realm.clone(), service, &scopes, &grant), None).await?
        }
        Some(Credential::Password { user, password }) => {
            let answer =
                server.exchange(&get(realm.clone(), service, &scopes), Some(&basic(user, password))).await?;
            match answer.status {
                // It may speak OAuth2 only.
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                    let grant =
                        [("grant_type", "password"), ("username", user), ("password", password.reveal())];
                    server.exchange(&post(realm.clone(), service, &scopes, &grant), None).await?
                }
                _ => answer,
            }
        }
        _ => server.exchange(&get(realm.clone(), service, &scopes), None).await?,
    };
    if !answer.status.is_success() {
        return Err(server.refusal(&realm, answer).await);
    }
    let body = server.body(&realm, answer.body, TOKEN_BODY).await?;
    parse(&body, started, SystemTime::now())
        .map_err(|reason| Error::BadResponse { url: shown(&realm), reason: reason.into() })
}

/// Where to ask. A password may be sent there, so it must be TLS, or a host that is spoken to in plain HTTP anyway.
fn realm(server: &Server, challenge: &Challenge) -> Result<Url> {
    let bad = |reason: String| Error::BadResponse { url: shown(&server.endpoint.url), reason };
    let url = challenge.get("realm").and_then(|realm| Url::parse(realm).ok()).filter(Url::has_host);
    let url = url.ok_or_else(|| bad("its token realm is not a URL".into()))?;
    let host = url.host_str().unwrap_or_default();
    let named = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let declared = is_loopback(host)
        || server.inner.settings.plain.contains(&named)
        || url.host_str() == server.endpoint.url.host_str();
    match url.scheme() {
        "https" => Ok(url),
        "http" if server.is_plain() && declared => Ok(url),
        _ => Err(bad(format!("its token realm {} is not on TLS", shown(&url)))),
    }
}

fn get(mut url: Url, service: Option<&str>, scopes: &Scopes) -> Call {
    {
        let mut query = url.query_pairs_mut();
        query.extend_pairs(service.map(|service| ("service", service)));
        query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
    }
    Call::get(url)
}

/// A request for an OAuth2 token (RFC 6749, 4.3 and 6).
fn post(url: Url, service: Option<&str>, scopes: &Scopes, grant: &[(&str, &str)]) -> Call {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(grant).append_pair("client_id", CLIENT);
    form.extend_pairs(service.map(|service| ("service", service)));
    form.append_pair("scope", &scopes.to_string());
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    Call::new(Method::POST, url)
        .headers(HeaderMap::from_iter([(CONTENT_TYPE, form_type)]))
        .body(vec![Bytes::from(form.finish())])
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
    issued_at: Option<String>,
}

/// Reads the answer to a request that was sent at `started`; it is `now`.
fn parse(body: &[u8], started: Instant, now: SystemTime) -> Result<Token, &'static str> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "it is not a token")?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token);
    let token = token.filter(|token| !token.is_empty()).ok_or("it holds no token")?;
    let authorization = secret(&format!("Bearer {token}")).ok_or("its token cannot be a header")?;
    let lifetime = answer.expires_in.map_or(LIFETIME, Duration::from_secs);
    // A token may have been given out before. If it seems to be over already, the clocks differ.
    let issued = answer.issued_at.and_then(|text| humantime::parse_rfc3339(&text).ok());
    let age = issued.and_then(|issued| now.duration_since(issued).ok()).filter(|age| *age < lifetime);
    let left = lifetime - age.unwrap_or_default();
    Ok(Token { authorization, renew_at: started.checked_add(left - MARGIN.min(left / 10)) })
}

fn basic(user: &str, password: &Secret) -> HeaderValue {
    let encoded = BASE64_STANDARD.encode(format!("{user}:{}", password.reveal()));
    secret(&format!("Basic {encoded}")).expect("base64 is printable ASCII")
}

/// A header's value that no log shows.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let (started, now) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        for (fields, seconds) in [
            (r#""token":"t""#, 54),
            (r#""access_token":"t","expires_in":3600"#, 3570),
            (r#""token":"","access_token":"t","expires_in":100,"issued_at":"1970-01-01T00:16:00Z""#, 54),
            (r#""token":"t","expires_in":100,"issued_at":"1970-01-01T00:00:00Z""#, 90),
            (r#""token":"t","expires_in":100,"issued_at":"2970-01-01T00:00:00Z""#, 90),
            (r#""token":"t","expires_in":100,"issued_at":"today""#, 90),
        ] {
            let token = parse(format!("{{{fields}}}").as_bytes(), started, now).expect(fields);
            assert_eq!(token.renew_at, Some(started + Duration::from_secs(seconds)), "{fields}");
            assert_eq!(token.authorization(), "Bearer t");
        }
    }

    #[test]
    fn what_is_no_token_says_why() {
        for (body, why) in [
            ("<html>", "it is not a token"),
            ("{}", "it holds no token"),
            (r#"{"token":"","access_token":""}"#, "it holds no token"),
            (r#"{"token":"a\nb"}"#, "its token cannot be a header"),
        ] {
            let error = parse(body.as_bytes(), Instant::now(), SystemTime::now()).err();
            assert_eq!(error, Some(why), "{body}");
        }
    }
}
