//! Requests to one server: authenticated, tried again, errors read.

use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::StatusCode;
use serde::Deserialize;
use tokio::time::{sleep, timeout};
use url::Url;
use windlass_content::ByteStream;

use super::{
    Server,
    auth::Scopes,
    exchange::{Answer, Call, silence},
    retry::{Attempts, retry_after},
};
use crate::{Error, Result, transport::TransportError, url::shown};

/// How much of an error's body is read, in bytes.
const ERROR_BODY: u64 = 8 << 10;
/// How much of a registry's words is repeated, in characters.
const ERROR_TEXT: usize = 400;

/// A failed attempt.
pub(super) struct Failed {
    pub(super) error: Error,
    /// What the server answered, if it did.
    pub(super) status: Option<StatusCode>,
    /// How long the server wants us to wait before the next one.
    pub(super) asked: Option<Duration>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, status: None, asked: None }
    }
}

impl Server {
    /// Sends a request until it succeeds, or there is no more hope.
    pub(super) async fn request(&self, call: &Call, scopes: &Scopes) -> Result<Answer> {
        self.request_up_to(u32::MAX, call, scopes).await
    }

    /// As [`request`](Self::request), but an error of this status is final.
    pub(super) async fn request_unless(&self, last: u16, call: &Call, scopes: &Scopes) -> Result<Answer> {
        self.attempt_all(self.attempts(), Some(last), call, scopes).await
    }

    /// As [`request`](Self::request), with no more attempts than that.
    pub(super) async fn request_up_to(&self, most: u32, call: &Call, scopes: &Scopes) -> Result<Answer> {
        self.attempt_all(self.attempts().at_most(most), None, call, scopes).await
    }

    fn attempts(&self) -> Attempts {
        // Whoever may be asked instead is asked sooner than a server that may be gone.
        let known = !self.replaceable && self.inner.health.has_answered(&self.endpoint);
        Attempts::new(&self.inner.settings, known)
    }

    async fn attempt_all(
        &self,
        mut attempts: Attempts,
        last: Option<u16>,
        call: &Call,
        scopes: &Scopes,
    ) -> Result<Answer> {
        loop {
            let Failed { error, status, asked } = match self.attempt(call, scopes).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if last.is_some() && status.map(|status| status.as_u16()) == last {
                return Err(error);
            }
            let Some(wait) = attempts.after(&error, asked) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "trying again");
            sleep(wait).await;
        }
    }

    /// Sends a request once, for whoever does more between two attempts than to wait.
    pub(super) async fn attempt(&self, call: &Call, scopes: &Scopes) -> Result<Answer, Failed> {
        let answer = self.authenticated(call, scopes).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let (status, asked) = (answer.status, retry_after(&answer.headers, SystemTime::now()));
        Err(Failed { error: self.refusal(&call.url, answer).await, status: Some(status), asked })
    }

    /// Sends a request with what is known of the caller, and once more if the server wants to know more.
    async fn authenticated(&self, call: &Call, scopes: &Scopes) -> Result<Answer> {
        // An upload may continue at another host, which has nothing to do with our login.
        if call.anonymous || !self.is_home(&call.url) {
            return self.exchange(call, None).await;
        }
        let tokens = &self.inner.tokens;
        let used = tokens.current(self, scopes).await?;
        let answer = self.exchange(call, used.as_ref()).await?;
        // Who asks for a login after a redirect to another origin is not this registry.
        if answer.status != StatusCode::UNAUTHORIZED || !self.is_home(&answer.url) {
            return Ok(answer);
        }
        match tokens.renew(self, scopes, used.as_ref(), &answer.headers).await? {
            Some(authorization) => self.exchange(call, Some(&authorization)).await,
            None => Ok(answer),
        }
    }

    /// The error that an answer is.
    pub(super) async fn refusal(&self, asked: &Url, answer: Answer) -> Error {
        let status = answer.status;
        // Words are good to have, and not worth a long wait.
        let body = timeout(self.inner.settings.idle_timeout, self.body(&answer.url, answer.body, ERROR_BODY));
        let message = match body.await {
            Ok(Ok(body)) => words(&body),
            _ => String::new(),
        };
        let (host, url) = (self.endpoint.name(), shown(asked));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Unauthorized { host, url, message },
            StatusCode::NOT_FOUND => Error::NotFound { name: url.clone(), url },
            _ => Error::Status { host, url, status: status.as_u16(), message },
        }
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(super) async fn body(&self, url: &Url, mut body: ByteStream, limit: u64) -> Result<Bytes> {
        let mut bytes = BytesMut::new();
        loop {
            match timeout(self.inner.settings.idle_timeout, body.next()).await {
                Ok(Some(Ok(chunk))) if (bytes.len() + chunk.len()) as u64 <= limit => {
                    bytes.extend_from_slice(&chunk);
                }
                Ok(Some(Ok(_))) => return Err(Error::TooLarge { url: shown(url), limit }),
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(error))) => return Err(self.failure(url, TransportError::Broken(error))),
                Err(_) => return Err(self.failure(url, TransportError::Broken(silence()))),
            }
        }
    }

    /// Sends a request until its whole answer has come, which has at most `limit` bytes.
    pub(super) async fn read(&self, call: &Call, scopes: &Scopes, limit: u64) -> Result<(Answer, Bytes)> {
        let mut attempts = Attempts::new(&self.inner.settings, true);
        loop {
            let mut answer = self.request(call, scopes).await?;
            let body = std::mem::replace(&mut answer.body, Box::pin(futures::stream::empty()));
            let error = match self.body(&answer.url, body, limit).await {
                Ok(bytes) => return Ok((answer, bytes)),
                Err(error) => error,
            };
            let Some(wait) = attempts.after(&error, None) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "reading again");
            sleep(wait).await;
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
    line(&text)
}

/// A stranger's text, fit for one line of a log: without control characters, and not too long.
pub(super) fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_one_line() {
        for (body, text) in [
            (r#"{"errors":[{"code":"DENIED","message":"go\naway","detail":null}]}"#, "DENIED: go away"),
            (r#"{"errors":[{"code":"A"},{"message":"b"},{}]}"#, "A; b"),
            (
                r#"{"errors":[{"code":"NEVER_HEARD_OF","message":"odd","detail":[1,{"a":2}],"more":1}]}"#,
                "NEVER_HEARD_OF: odd",
            ),
            ("<html>", ""),
        ] {
            assert_eq!(words(body.as_bytes()), text);
        }
    }
}
