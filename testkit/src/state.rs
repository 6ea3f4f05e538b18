//! What the server and the test share.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use bytes::Bytes;

use crate::{builder::Settings, fault::Fault, pki::Authority, registry::Request, server::token::Tokens};

#[derive(Debug)]
pub(crate) struct State {
    /// `127.0.0.1:PORT`.
    pub(crate) host: String,
    pub(crate) settings: Settings,
    /// Who vouches for it, if it speaks TLS.
    pub(crate) authority: Option<Authority>,
    /// Another registry that honours these tokens has them too.
    pub(crate) tokens: Arc<Mutex<Tokens>>,
    shared: Mutex<Shared>,
}

impl State {
    pub(crate) fn new(host: String, settings: Settings, tokens: Arc<Mutex<Tokens>>) -> Self {
        let authority = settings.tls.then(Authority::new);
        Self { host, settings, authority, tokens, shared: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().expect("nothing panics while it holds this lock")
    }

    /// `http://127.0.0.1:PORT`, or `https:` with TLS.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.host)
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.settings.tls { "https" } else { "http" }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) repositories: BTreeMap<String, Repository>,
    /// Those that go on, by their ids.
    pub(crate) uploads: BTreeMap<String, Upload>,
    pub(crate) uploads_begun: usize,
    pub(crate) faults: Vec<Fault>,
    pub(crate) requests: Vec<Request>,
    /// Connections that were accepted.
    pub(crate) connections: usize,
    pub(crate) in_flight: usize,
    /// The most that [`in_flight`](Self::in_flight) has been.
    pub(crate) peak: usize,
    /// Where blobs are redirected to.
    pub(crate) redirect: Option<Arc<State>>,
    /// What signed URLs open, by signature.
    pub(crate) signed: BTreeMap<String, Signed>,
}

#[derive(Debug, Default)]
pub(crate) struct Repository {
    /// Media type and bytes, by digest.
    pub(crate) manifests: BTreeMap<String, (String, Bytes)>,
    /// Bytes by digest.
    pub(crate) blobs: BTreeMap<String, Bytes>,
    /// Digests by tag.
    pub(crate) tags: BTreeMap<String, String>,
}

impl Repository {
    /// The digest, media type and bytes of a manifest, by its tag or digest.
    pub(crate) fn manifest(&self, reference: &str) -> Option<(&str, &str, &Bytes)> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        let (digest, (media_type, bytes)) = self.manifests.get_key_value(digest)?;
        Some((digest, media_type, bytes))
    }
}

/// A blob of which more may come.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) repository: String,
    pub(crate) bytes: Vec<u8>,
    /// How often it has told the client a new location.
    pub(crate) state: usize,
    /// Whether the last chunk was shorter than chunks must be.
    pub(crate) is_short: bool,
}

/// A blob behind a signed URL.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) digest: String,
    pub(crate) bytes: Bytes,
    pub(crate) until: Instant,
    /// `None` has no limit.
    pub(crate) uses_left: Option<usize>,
}
