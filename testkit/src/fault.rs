//! What a registry can be told to do wrong.

use std::{io, time::Duration};

use axum::{body::Body, http::Method};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

/// How long a broken connection stays open after its last byte, so that the kernel has sent that byte.
const LINGER: Duration = Duration::from_millis(50);

/// Something that a [`Registry`](crate::Registry) does wrong, for requests whose path has a given part.
///
/// A fault applies to every such request, unless [`once`](Self::once) or [`times`](Self::times) limits it.
/// Different faults apply to one request together.
#[derive(Clone, Debug)]
pub struct Fault {
    path: String,
    left: Option<usize>,
    pub(crate) kind: Kind,
}

impl Fault {
    /// Answers with this status, and nothing else.
    pub fn status(path: &str, status: u16) -> Self {
        Self::answer(path, status, &[], "")
    }

    /// Answers with this status, these headers and this body.
    pub fn answer(path: &str, status: u16, headers: &[(&str, &str)], body: &str) -> Self {
        let headers = headers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self::new(path, Kind::Status(status, headers, body.to_owned()))
    }

    /// Closes the connection after this many bytes of the body, which `Content-Length` says is whole.
    pub fn truncate_at(path: &str, bytes: usize) -> Self {
        Self::new(path, Kind::TruncateAt(bytes))
    }

    /// Sends half of the body, then nothing for this long, then the rest.
    pub fn stall(path: &str, duration: Duration) -> Self {
        Self::new(path, Kind::Stall(duration))
    }

    /// Sends a body of the right size with its first byte changed.
    pub fn wrong_bytes(path: &str) -> Self {
        Self::new(path, Kind::WrongBytes)
    }

    /// Answers `HEAD` with 405.
    pub fn no_head(path: &str) -> Self {
        Self::new(path, Kind::NoHead)
    }

    /// Leaves out `Docker-Content-Digest`.
    pub fn no_digest_header(path: &str) -> Self {
        Self::new(path, Kind::NoDigestHeader)
    }

    /// Answers a request for a range with 200 and the whole blob.
    pub fn ignore_range(path: &str) -> Self {
        Self::new(path, Kind::IgnoreRange)
    }

    /// Waits this long before it answers.
    pub fn delay(path: &str, duration: Duration) -> Self {
        Self::new(path, Kind::Delay(duration))
    }

    /// Sends the body at this many bytes per second.
    pub fn slow(path: &str, bytes_per_second: usize) -> Self {
        Self::new(path, Kind::Slow(bytes_per_second))
    }

    /// Applies to the first such request only.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Applies to this many such requests.
    pub fn times(self, requests: usize) -> Self {
        Self { left: Some(requests), ..self }
    }

    /// Whether it applies to this request, which then counts as one of [`times`](Self::times).
    pub(crate) fn applies(&mut self, method: &Method, path: &str, has_range: bool) -> bool {
        let kind_applies = match self.kind {
            Kind::NoHead => method == Method::HEAD,
            Kind::IgnoreRange => has_range,
            Kind::TruncateAt(_) | Kind::Stall(_) | Kind::WrongBytes | Kind::Slow(_) => method == Method::GET,
            Kind::Status(..) | Kind::NoDigestHeader | Kind::Delay(_) => true,
        };
        let applies = kind_applies && path.contains(&self.path) && self.left != Some(0);
        if applies {
            self.left = self.left.map(|left| left - 1);
        }
        applies
    }

    fn new(path: &str, kind: Kind) -> Self {
        Self { path: path.to_owned(), left: None, kind }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Delay(Duration),
    IgnoreRange,
    NoDigestHeader,
    NoHead,
    Slow(usize),
    Stall(Duration),
    Status(u16, Vec<(String, String)>, String),
    TruncateAt(usize),
    WrongBytes,
}

/// The body as these faults send it.
pub(crate) fn body(bytes: Bytes, faults: &[Kind]) -> Body {
    Body::from_stream(play(steps(bytes, faults)))
}

enum Step {
    Send(Bytes),
    Wait(Duration),
    Break,
}

fn steps(mut bytes: Bytes, faults: &[Kind]) -> Vec<Step> {
    let (mut rate, mut stall, mut end) = (None, None, None);
    for fault in faults {
        match fault {
            Kind::Slow(bytes_per_second) => rate = Some(*bytes_per_second),
            Kind::Stall(duration) => stall = Some((bytes.len() / 2, *duration)),
            Kind::TruncateAt(at) => end = Some(*at),
            Kind::WrongBytes if !bytes.is_empty() => {
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 0xff;
                bytes = wrong.into();
            }
            _ => {}
        }
    }

    let mut steps = Vec::new();
    let kept = end.map_or(bytes.len(), |end| end.min(bytes.len()));
    let rest = bytes.slice(..kept);
    let (first, rest) = match stall {
        Some((at, _)) if at < kept => (rest.slice(..at), rest.slice(at..)),
        _ => (rest, Bytes::new()),
    };
    send(&mut steps, &first, rate);
    if let Some((_, duration)) = stall {
        steps.push(Step::Wait(duration));
    }
    send(&mut steps, &rest, rate);
    if end.is_some() {
        steps.extend([Step::Wait(LINGER), Step::Break]);
    }
    steps
}

/// Adds the steps that send these bytes, in 20 parts per second if there is a rate.
fn send(steps: &mut Vec<Step>, bytes: &Bytes, rate: Option<usize>) {
    let size = rate.map_or(64 << 10, |rate| rate.div_ceil(20).max(1));
    for part in bytes.chunks(size) {
        steps.push(Step::Send(bytes.slice_ref(part)));
        if rate.is_some() {
            steps.push(Step::Wait(Duration::from_millis(50)));
        }
    }
}

fn play(steps: Vec<Step>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter(steps)
        .then(async |step| match step {
            Step::Send(bytes) => Some(Ok(bytes)),
            Step::Wait(duration) => {
                tokio::time::sleep(duration).await;
                None
            }
            Step::Break => Some(Err(io::Error::other("the test wants the connection broken"))),
        })
        .filter_map(futures::future::ready)
}
