//! Requests to one repository: authenticated, tried again, errors read.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, HeaderMap, RETRY_AFTER},
};
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use url::Url;

use super::{
    Inner, Repository,
    host::shown,
    http::{failure, silent},
    retry::Attempts,
};
use crate::{Error, Result};

/// How much of an error's body is read, in bytes.
const ERROR_BODY: usize = 8 << 10;
/// How much of a registry's words is repeated, in characters.
const ERROR_TEXT: usize = 400;

impl Repository {
    /// Sends a request until it succeeds, or there is no more hope.
    pub(super) async fn request(&self, method: Method, url: &Url, headers: &HeaderMap) -> Result<Response> {
        self.request_up_to(self.inner.settings.attempts.get(), method, url, headers).await
    }

    /// As [`request`](Self::request), with a number of attempts of the caller's choice.
    pub(super) async fn request_up_to(
        &self,
        attempts: u32,
        method: Method,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response> {
        let mut attempts = Attempts::new(attempts);
        loop {
            let (error, asked) = match self.authenticated(&method, url, headers).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let asked = retry_after(&response);
                    (self.refusal(url, response).await, asked)
                }
                Err(error) => (error, None),
            };
            let Some(wait) = attempts.after(&error, asked) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "trying again");
            sleep(wait).await;
        }
    }

    /// Sends a request with what is known of the caller, and once more if the registry wants to know more.
    async fn authenticated(&self, method: &Method, url: &Url, headers: &HeaderMap) -> Result<Response> {
        let mut used = self.inner.tokens.current(self).await;
        for last in [false, true] {
            let mut headers = headers.clone();
            if let Some(authorization) = &used {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            let response =
                self.inner.http.send(&self.host.name, method.clone(), url.clone(), headers).await?;
            // Who asks for a login after a redirect to another origin is not this registry.
            let ours = response.url().origin() == url.origin();
            if last || response.status() != StatusCode::UNAUTHORIZED || !ours {
                return Ok(response);
            }
            match self.inner.tokens.renew(self, used.as_ref(), &response).await? {
                Some(authorization) => used = Some(authorization),
                None => return Ok(response),
            }
        }
        unreachable!("the last round returns")
    }

    /// The error that an answer is.
    pub(super) async fn refusal(&self, url: &Url, response: Response) -> Error {
        refusal(&self.inner, &self.host.name, url, response).await
    }
}

/// The error that an answer is.
pub(super) async fn refusal(inner: &Inner, host: &str, url: &Url, response: Response) -> Error {
    let status = response.status();
    let message = match body(inner, host, url, response, ERROR_BODY as u64).await {
        Ok(body) => words(&body),
        Err(_) => String::new(),
    };
    let (host, url) = (host.to_owned(), shown(url));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized { host, url, message },
        StatusCode::NOT_FOUND => Error::NotFound { name: url.clone(), url },
        _ => Error::Status { host, url, status: status.as_u16(), message },
    }
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn body(
    inner: &Inner,
    host: &str,
    url: &Url,
    response: Response,
    limit: u64,
) -> Result<Bytes> {
    let mut response = response;
    let mut bytes = BytesMut::new();
    loop {
        match timeout(inner.settings.idle_timeout, response.chunk()).await {
            Ok(Ok(Some(chunk))) if (bytes.len() + chunk.len()) as u64 <= limit => {
                bytes.extend_from_slice(&chunk);
            }
            Ok(Ok(Some(_))) => return Err(Error::TooLarge { url: shown(url), limit }),
            Ok(Ok(None)) => return Ok(bytes.freeze()),
            Ok(Err(error)) => return Err(failure(host, url, error)),
            Err(_) => return Err(silent(host, url)),
        }
    }
}

/// What a registry says went wrong, in one line: `MANIFEST_UNKNOWN: manifest unknown`.
fn words(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let entries = serde_json::from_slice::<Body>(body).map(|body| body.errors).unwrap_or_default();
    let texts = entries.iter().map(|Entry { code, message }| match (code.is_empty(), message.is_empty()) {
        (false, false) => format!("{code}: {message}"),
        _ => format!("{code}{message}"),
    });
    let text = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_TEXT).collect()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_one_line() {
        for (body, text) in [
            (r#"{"errors":[{"code":"DENIED","message":"go\naway","detail":null}]}"#, "DENIED: go away"),
            (r#"{"errors":[{"code":"A"},{"message":"b"},{}]}"#, "A; b"),
            ("<html>", ""),
        ] {
            assert_eq!(words(body.as_bytes()), text);
        }
    }
}
