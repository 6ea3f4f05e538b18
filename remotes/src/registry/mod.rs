//! The client of the OCI distribution protocol.

mod auth;
mod body;
mod builder;
mod challenge;
mod content_range;
mod fetch;
mod host;
mod http;
mod request;
mod resolve;
mod retry;

use std::sync::Arc;

use async_trait::async_trait;
use windlass_reference::Reference;

use crate::{Resolved, Resolver, Result};

pub use builder::Builder;

use auth::Tokens;
use host::Host;
use http::Http;

/// Registries that speak the OCI distribution protocol. Cheap to clone; clones share connections and tokens.
///
/// `localhost`, 127.0.0.0/8 and `[::1]` are spoken to in plain HTTP, as are hosts that were declared with
/// [`Builder::plain_http`]; all others in TLS only.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Builder,
    http: Http,
    tokens: Tokens,
}

/// One repository on one registry: what all requests of a pull have in common.
#[derive(Clone, Debug)]
struct Repository {
    inner: Arc<Inner>,
    host: Host,
    name: String,
}

impl Registry {
    /// Registries with the default settings. Connects to nothing.
    ///
    /// # Errors
    ///
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Settings to choose.
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn from_settings(settings: Builder) -> Self {
        let http = Http::new(&settings);
        Self { inner: Arc::new(Inner { settings, http, tokens: Tokens::default() }) }
    }

    fn repository(&self, reference: &Reference) -> Result<Repository> {
        let host = Host::new(reference.host(), &self.inner.settings.plain)?;
        Ok(Repository { inner: self.inner.clone(), host, name: reference.repository().to_owned() })
    }
}

#[async_trait]
impl Resolver for Registry {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let repository = self.repository(reference)?;
        let descriptor = resolve::resolve(&repository, reference).await?;
        Ok(Resolved { name: reference.to_string(), descriptor, fetcher: Arc::new(repository) })
    }
}
