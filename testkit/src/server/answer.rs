//! What a handler answers, and how faults change it on its way out.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, HttpBody},
    http::{Method, Response, StatusCode},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde_json::{Value, json};

use crate::{
    fault::{Kind, body},
    image::sha256,
    server::listen::Reset,
    state::State,
};

/// An answer of which everything is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    status: StatusCode,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Answer {
    pub(crate) fn new(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn json(status: StatusCode, body: &Value) -> Self {
        Self::new(status).header("content-type", "application/json").body(body.to_string())
    }

    pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        Self::json(status, &json!({ "errors": [{ "code": code, "message": message }] }))
    }

    /// Sets a header, whose name is in lower case.
    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(it, _)| it != name);
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn body(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }

    /// As these faults send it, to a request of this method.
    pub(crate) fn send(
        mut self,
        faults: &[Kind],
        method: &Method,
        reset: &Reset,
        flight: Flight,
    ) -> Response<Counted> {
        for fault in faults {
            self = self.spoil(fault);
        }
        let length = self.body.len();
        let is_measured = !faults.iter().any(Kind::hides_length) && self.status != StatusCode::NO_CONTENT;
        if is_measured {
            self = self.header("content-length", length.to_string());
        }
        let body = if *method == Method::HEAD { Body::empty() } else { body::of(self.body, faults, reset) };
        let left = is_measured.then_some(length as u64);
        let counted = Counted { body, left, flight: Some(flight) };
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        response.body(counted).unwrap_or_else(|error| panic!("{:?}: {error}", self.headers))
    }

    fn spoil(self, fault: &Kind) -> Self {
        let partial = StatusCode::PARTIAL_CONTENT;
        match fault {
            Kind::HugeHeader(bytes) => self.header("x-huge", "x".repeat(*bytes)),
            Kind::ManyHeaders(headers) => {
                (0..*headers).fold(self, |it, n| it.header(&format!("x-header-{n}"), "x"))
            }
            Kind::NoDigestHeader => self.without("docker-content-digest"),
            Kind::PartialWithoutRange => self.status(partial).without("content-range"),
            Kind::WrongContentRange(range) => self.status(partial).header("content-range", &**range),
            Kind::WrongContentType(media_type) => self.header("content-type", &**media_type),
            Kind::WrongDigestHeader => {
                let wrong = sha256(b"something else").to_string();
                self.header("docker-content-digest", wrong)
            }
            _ => self,
        }
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(it, _)| it != name);
        self
    }
}

/// A request that has not had the whole of its answer.
#[derive(Debug)]
pub(crate) struct Flight(Arc<State>);

impl Flight {
    pub(crate) fn new(state: &Arc<State>) -> Self {
        let mut shared = state.lock();
        shared.in_flight += 1;
        shared.peak = shared.peak.max(shared.in_flight);
        Self(state.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

/// A body whose request is in flight until its last byte is handed over. The client cannot see that byte, and
/// ask for more, any earlier.
#[derive(Debug)]
pub(crate) struct Counted {
    body: Body,
    /// The bytes to come, if somebody has counted them.
    left: Option<u64>,
    flight: Option<Flight>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.left = self.left.map(|left| left.saturating_sub(sent));
        }
        if self.left == Some(0) || !matches!(frame, Some(Ok(_))) {
            self.flight = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Fault, Registry, http, sample};

    #[tokio::test]
    async fn faults_of_the_headers_change_nothing_else() {
        let (registry, image) = sample::registry().await;
        let path = sample::layer_path(&image);
        let digest = image.layers()[0].digest().to_string();
        let length = image.layers()[0].size().to_string();
        for (fault, header, before, after) in [
            (Fault::no_digest_header("/blobs/"), "docker-content-digest", Some(&*digest), None),
            (Fault::wrong_digest_header("/blobs/"), "docker-content-digest", Some(&*digest), Some(WRONG)),
            (
                Fault::wrong_content_type("/blobs/", "text/html"),
                "content-type",
                Some("application/octet-stream"),
                Some("text/html"),
            ),
            (Fault::no_content_length("/blobs/"), "content-length", Some(&*length), None),
            (Fault::many_headers("/blobs/", 300), "x-header-299", None, Some("x")),
            (Fault::huge_header("/blobs/", 9), "x-huge", None, Some("xxxxxxxxx")),
        ] {
            registry.fault(fault.clone().once());

            let wrong = http::get(&registry.host(), &path).await;
            let right = http::get(&registry.host(), &path).await;

            assert_eq!((wrong.header(header), right.header(header)), (after, before), "{fault:?}");
            assert_eq!((wrong.status, &wrong.body), (right.status, &right.body), "{fault:?}");
        }
    }

    /// `printf 'something else' | sha256sum`
    const WRONG: &str = "sha256:f41f3fa625ff120ddca7ef456bf66371ecea23c129f4e4c32367101edb516cf8";

    #[tokio::test]
    async fn faults_of_a_range_leave_other_requests_alone() {
        let (registry, image) = sample::registry().await;
        let (path, whole) = (sample::layer_path(&image), image.blob(image.layers()[0].digest()));
        let all = format!("bytes */{}", whole.len());
        for (fault, status, range, body) in [
            (Fault::ignore_range("/blobs/"), 200, None, &*whole),
            (Fault::wrong_content_range("/blobs/", "bytes 0-1/9"), 206, Some("bytes 0-1/9"), &whole[1..3]),
            (Fault::partial_without_range("/blobs/"), 206, None, &whole[1..3]),
            (Fault::status_416("/blobs/"), 416, Some(&*all), b""),
        ] {
            registry.fault(fault.clone().once());

            let without = http::get(&registry.host(), &path).await;
            let with = http::send(&registry.host(), "GET", &path, &[("range", "bytes=1-2")], b"").await;

            assert_eq!(without.status, 200, "{fault:?}");
            assert_eq!((with.status, with.header("content-range")), (status, range), "{fault:?}");
            assert_eq!(with.body, body, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_request_without_credentials_does_not_use_up_a_fault_of_the_content() {
        let registry = Registry::builder().password("user", "secret").start().await;
        let image = sample::image();
        registry.push(&image, "library/app", "latest");
        registry.fault(Fault::no_digest_header("/blobs/").once());
        let path = sample::layer_path(&image);

        let refused = http::get(&registry.host(), &path).await;
        let header = [("authorization", "Basic dXNlcjpzZWNyZXQ=")];
        let wrong = http::send(&registry.host(), "GET", &path, &header, b"").await;

        assert_eq!(refused.status, 401);
        assert_eq!((wrong.status, wrong.header("docker-content-digest")), (200, None));
    }
}
