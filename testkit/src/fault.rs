//! What a registry can be told to do wrong.

pub(crate) mod body;

use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::json;

use crate::server::answer::Answer;

/// Something that a [`Registry`](crate::Registry) does wrong, for requests whose path has a given part.
///
/// A fault applies to every such request, unless [`once`](Self::once) or [`times`](Self::times) limits it.
/// Different faults apply to one request together. A request that is refused for want of credentials meets only
/// those faults that answer in place of the registry, such as [`status`](Self::status), or delay it.
#[derive(Clone, Debug)]
pub struct Fault {
    path: String,
    method: Option<Method>,
    left: Option<usize>,
    pub(crate) kind: Kind,
}

/// Faults that answer in place of the registry.
impl Fault {
    /// Answers with this status, and nothing else.
    pub fn status(path: &str, status: u16) -> Self {
        Self::answer(path, status, &[], "")
    }

    /// Answers with this status, these headers and this body.
    pub fn answer(path: &str, status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let answer = headers.iter().fold(Answer::new(status_of(status)), |answer, (name, value)| {
            answer.header(&name.to_lowercase(), *value)
        });
        Self::new(path, Kind::Status(answer.body(body.to_owned())))
    }

    /// Answers with this status and a registry's error whose message has this many bytes.
    pub fn error_body(path: &str, status: u16, bytes: usize) -> Self {
        let error = json!({ "errors": [{ "code": "UNKNOWN", "message": "x".repeat(bytes) }] });
        Self::answer(path, status, &[("content-type", "application/json")], &error.to_string())
    }

    /// Answers with this status, such as 307, and this URL to go to.
    pub fn redirect(path: &str, status: u16, to_url: &str) -> Self {
        Self::new(path, Kind::Redirect(status_of(status), to_url.to_owned()))
    }

    /// Closes the connection without an answer. The request has no effect.
    pub fn hang_up(path: &str) -> Self {
        Self::new(path, Kind::HangUp)
    }

    /// Does what the request asks for, then closes the connection without an answer.
    pub fn lose_answer(path: &str) -> Self {
        Self::new(path, Kind::LoseAnswer)
    }

    /// Answers `HEAD` with 405.
    pub fn no_head(path: &str) -> Self {
        Self::new(path, Kind::NoHead)
    }

    /// Waits this long before it answers.
    pub fn delay(path: &str, duration: Duration) -> Self {
        Self::new(path, Kind::Delay(duration))
    }

    /// Answers without reading the rest of the request's body, which other answers wait for.
    pub fn unread(path: &str) -> Self {
        Self::new(path, Kind::Unread)
    }
}

/// Faults of the headers.
impl Fault {
    /// Leaves out `Docker-Content-Digest`.
    pub fn no_digest_header(path: &str) -> Self {
        Self::new(path, Kind::NoDigestHeader)
    }

    /// Gives the digest of something else in `Docker-Content-Digest`.
    pub fn wrong_digest_header(path: &str) -> Self {
        Self::new(path, Kind::WrongDigestHeader)
    }

    /// Gives this `Content-Type`.
    pub fn wrong_content_type(path: &str, media_type: &str) -> Self {
        Self::new(path, Kind::WrongContentType(media_type.to_owned()))
    }

    /// Leaves out `Content-Length`: the body is chunked.
    pub fn no_content_length(path: &str) -> Self {
        Self::new(path, Kind::NoContentLength)
    }

    /// Adds this many headers, `x-header-0` and so on.
    pub fn many_headers(path: &str, headers: usize) -> Self {
        Self::new(path, Kind::ManyHeaders(headers))
    }

    /// Adds a header, `x-huge`, whose value has this many bytes.
    pub fn huge_header(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::HugeHeader(bytes))
    }
}

/// Faults of a range: they apply to requests with `Range`.
impl Fault {
    /// Answers a request for a range with 200 and the whole blob.
    pub fn ignore_range(path: &str) -> Self {
        Self::new(path, Kind::IgnoreRange)
    }

    /// Answers a request for a range with 206, what it asks for, and this `Content-Range`, such as
    /// `bytes 0-9/10`.
    pub fn wrong_content_range(path: &str, range: &str) -> Self {
        Self::new(path, Kind::WrongContentRange(range.to_owned()))
    }

    /// Answers a request for a range with 206, what it asks for, and no `Content-Range`.
    pub fn partial_without_range(path: &str) -> Self {
        Self::new(path, Kind::PartialWithoutRange)
    }

    /// Answers a request for a range with 416, whatever it is.
    pub fn status_416(path: &str) -> Self {
        Self::new(path, Kind::RefuseRange)
    }
}

/// Faults of the body: they apply to `GET`, unless [`method`](Self::method) says otherwise.
impl Fault {
    /// Closes the connection after this many bytes of the body, which `Content-Length` says is whole.
    pub fn truncate_at(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::TruncateAt(bytes))
    }

    /// Resets the connection after this many bytes of the body, fewer than it has.
    pub fn reset(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::Reset(bytes))
    }

    /// Sends half of the body, then nothing for this long, then the rest.
    pub fn stall(path: &str, duration: Duration) -> Self {
        Self::new(path, Kind::Stall(duration))
    }

    /// Sends the body at this many bytes per second.
    pub fn slow(path: &str, bytes_per_second: usize) -> Self {
        Self::new(path, Kind::Slow(bytes_per_second))
    }

    /// Sends a body of the right size with its first byte changed.
    pub fn wrong_bytes(path: &str) -> Self {
        Self::new(path, Kind::WrongBytes)
    }

    /// Sends this many spaces after the body, and no `Content-Length`.
    pub fn too_long(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::TooLong(bytes))
    }

    /// Sends spaces after the body until the client has enough of them, and no `Content-Length`.
    pub fn endless_body(path: &str) -> Self {
        Self::new(path, Kind::EndlessBody)
    }
}

/// Faults of an upload: they apply to requests for one that has begun.
impl Fault {
    /// Breaks the connection after this many bytes of a `PATCH` or `PUT`, if it has as many, and keeps them. The
    /// upload can be resumed from where it was.
    pub fn drop_upload_after(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::DropUpload(bytes))
    }

    /// Forgets the upload, and answers that it is unknown.
    pub fn lose_upload(path: &str) -> Self {
        Self::new(path, Kind::LoseUpload)
    }
}

/// Limits.
impl Fault {
    /// Applies to the first such request only.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Applies to this many such requests.
    pub fn times(self, requests: usize) -> Self {
        Self { left: Some(requests), ..self }
    }

    /// Applies to this method, such as `PATCH`, and to no other.
    pub fn method(self, method: &str) -> Self {
        let method = method.parse().unwrap_or_else(|_| panic!("{method:?} is no method"));
        Self { method: Some(method), ..self }
    }

    /// Whether it applies to this request, which then counts as one of [`times`](Self::times).
    pub(crate) fn applies(&mut self, method: &Method, path: &str, has_range: bool) -> bool {
        let method_applies = match &self.method {
            Some(wanted) => wanted == method,
            None => self.kind.applies(method),
        };
        let applies = method_applies
            && path.contains(&self.path)
            && (has_range || !self.kind.needs_range())
            && (path.contains("/blobs/uploads/") || !self.kind.needs_upload())
            && self.left != Some(0);
        if applies {
            self.left = self.left.map(|left| left - 1);
        }
        applies
    }

    fn new(path: &str, kind: Kind) -> Self {
        Self { path: path.to_owned(), method: None, left: None, kind }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Delay(Duration),
    DropUpload(usize),
    EndlessBody,
    HangUp,
    HugeHeader(usize),
    IgnoreRange,
    LoseAnswer,
    LoseUpload,
    ManyHeaders(usize),
    NoContentLength,
    NoDigestHeader,
    NoHead,
    PartialWithoutRange,
    Redirect(StatusCode, String),
    RefuseRange,
    Reset(usize),
    Slow(usize),
    Stall(Duration),
    Status(Answer),
    TooLong(usize),
    TruncateAt(usize),
    Unread,
    WrongBytes,
    WrongContentRange(String),
    WrongContentType(String),
    WrongDigestHeader,
}

impl Kind {
    /// Whether it comes before the question of credentials.
    pub(crate) fn is_early(&self) -> bool {
        matches!(self, Self::Delay(_) | Self::HangUp | Self::NoHead | Self::Status(_) | Self::Unread)
    }

    /// Whether the answer is not to tell how long it is.
    pub(crate) fn hides_length(&self) -> bool {
        matches!(self, Self::EndlessBody | Self::NoContentLength | Self::TooLong(_))
    }

    fn needs_range(&self) -> bool {
        matches!(
            self,
            Self::IgnoreRange | Self::PartialWithoutRange | Self::RefuseRange | Self::WrongContentRange(_)
        )
    }

    fn needs_upload(&self) -> bool {
        matches!(self, Self::DropUpload(_) | Self::LoseUpload)
    }

    /// Whether it makes sense for this method.
    fn applies(&self, method: &Method) -> bool {
        match self {
            Self::DropUpload(_) => [Method::PATCH, Method::PUT].contains(method),
            Self::EndlessBody
            | Self::NoContentLength
            | Self::Reset(_)
            | Self::Slow(_)
            | Self::Stall(_)
            | Self::TooLong(_)
            | Self::TruncateAt(_)
            | Self::WrongBytes => method == Method::GET,
            Self::LoseUpload => method != Method::POST,
            Self::NoHead => method == Method::HEAD,
            _ => true,
        }
    }
}

fn status_of(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or_else(|_| panic!("{status} is no status"))
}
