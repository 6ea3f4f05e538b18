//! One request as the handlers see it.

use std::{collections::BTreeMap, io, sync::Arc};

use axum::{
    body::{Body, BodyDataStream},
    http::{HeaderMap, Method, header, request::Parts},
};
use bytes::Bytes;
use futures::StreamExt;

use crate::{fault::Kind, registry::Request, state::State};

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) method: Method,
    /// Without the query.
    pub(crate) path: String,
    /// Names and values, decoded.
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Inflow,
    /// Those that apply to it so far.
    pub(crate) faults: Vec<Kind>,
    /// The path with its query, as it was sent.
    target: String,
    /// `HOST:PORT` as the client knows it.
    authority: String,
}

impl Call {
    /// Writes the request into the log.
    pub(crate) fn new(state: Arc<State>, parts: Parts, body: Body) -> Self {
        let target = parts.uri.path_and_query().map_or_else(|| parts.uri.path(), |it| it.as_str()).to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let query = pairs(query.as_bytes());
        let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut headers: BTreeMap<_, _> =
            parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let authority = match parts.uri.authority() {
            // HTTP/2 has it there, and no such header.
            Some(authority) => authority.to_string(),
            None => headers.get("host").cloned().unwrap_or_default(),
        };
        headers.entry("host".to_owned()).or_insert_with(|| authority.clone());

        let request = Request {
            method: parts.method.to_string(),
            path: target.clone(),
            query: query.clone(),
            headers,
            body_length: 0,
            form: Vec::new(),
        };
        let mut shared = state.lock();
        let index = shared.requests.len();
        shared.requests.push(request);
        drop(shared);
        Self {
            method: parts.method,
            path: path.to_owned(),
            query,
            headers: parts.headers,
            body: Inflow { stream: body.into_data_stream(), state: state.clone(), index, is_touched: false },
            faults: Vec::new(),
            authority,
            target,
            state,
        }
    }

    /// Adds those faults of the registry that apply, one of a kind. `early` are those that do not care whether
    /// the client may come in.
    pub(crate) fn take_faults(&mut self, early: bool) {
        let has_range = self.headers.contains_key(header::RANGE);
        for fault in &mut self.state.lock().faults {
            let is_new = !self
                .faults
                .iter()
                .any(|it| std::mem::discriminant(it) == std::mem::discriminant(&fault.kind));
            if fault.kind.is_early() == early
                && is_new
                && fault.applies(&self.method, &self.target, has_range)
            {
                self.faults.push(fault.kind.clone());
            }
        }
    }

    pub(crate) fn has(&self, fault: &Kind) -> bool {
        self.faults.contains(fault)
    }

    /// The first value of this name in the query.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        value(&self.query, name)
    }

    pub(crate) fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What follows the scheme, such as `Basic `, in `Authorization`.
    pub(crate) fn authorization(&self, scheme: &str) -> Option<&str> {
        self.header(header::AUTHORIZATION)?.strip_prefix(scheme)
    }

    /// How the client is told to go to this path of the registry.
    pub(crate) fn location(&self, path: &str) -> String {
        if self.state.settings.relative_locations {
            return path.to_owned();
        }
        // By the name that the client knows, which need not be the registry's own.
        format!("{}://{}{path}", self.state.scheme(), self.authority)
    }

    /// Writes into the log what a form says.
    pub(crate) fn note_form(&self, form: &[(String, String)]) {
        self.state.lock().requests[self.body.index].form = form.to_vec();
    }
}

/// The body of a request. The log counts what was read of it.
#[derive(Debug)]
pub(crate) struct Inflow {
    stream: BodyDataStream,
    state: Arc<State>,
    /// Of the request in the log.
    index: usize,
    is_touched: bool,
}

impl Inflow {
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.is_touched = true;
        let bytes = self.stream.next().await.transpose().map_err(io::Error::other)?;
        if let Some(bytes) = &bytes {
            self.state.lock().requests[self.index].body_length += bytes.len() as u64;
        }
        Ok(bytes)
    }

    pub(crate) async fn all(&mut self) -> io::Result<Bytes> {
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }

    /// Reads the rest, since a client that is still sending may miss an answer. One that waits for `100` has
    /// sent nothing yet.
    pub(crate) async fn drain(&mut self, headers: &HeaderMap) {
        if self.is_touched || !headers.contains_key(header::EXPECT) {
            while let Ok(Some(_)) = self.next().await {}
        }
    }
}

/// The names and values of a query or a form.
pub(crate) fn pairs(encoded: &[u8]) -> Vec<(String, String)> {
    url::form_urlencoded::parse(encoded).into_owned().collect()
}

/// The first value of this name.
pub(crate) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(it, _)| it == name).map(|(_, value)| &**value)
}
