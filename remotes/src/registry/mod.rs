//! The client of the OCI distribution protocol.
//!
//! ```text
//! Registry ──reference──▶ Repository ──▶ Server, Server, …    mirrors first, then the registry itself
//!                                          │ request            tried again, errors read
//!                                          │ authenticated      tokens
//!                                          │ exchange           redirects; secrets stay at their origin
//!                                          ▼
//!                                       Transport               one HTTP request
//! ```

mod auth;
mod body;
mod builder;
mod content_range;
mod exchange;
mod fetch;
mod health;
mod limits;
mod link;
mod list;
mod parallel;
mod push;
mod redirect;
mod referrers;
mod request;
mod resolve;
mod retry;
mod server;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Mutex;
use windlass_reference::Reference;

use crate::{
    Error, Resolved, Resolver, Result,
    hosts::{self, Hosts},
    transport::Transport,
};

pub use builder::{Builder, ParallelFetch};
pub use push::RegistryPusher;

#[cfg(fuzzing)]
pub(crate) use self::{
    auth::parse_challenge, content_range::parse as parse_content_range, link::next as next_link,
};

use auth::{Scopes, Tokens};
use exchange::Call;
use health::Health;
use limits::{Direction, Limits};
use redirect::Targets;
use server::{Repository, Server};

/// Registries that speak the OCI distribution protocol. Cheap to clone; clones share connections, tokens, limits and what was
/// learned of dead mirrors.
///
/// `localhost`, 127.0.0.0/8 and `[::1]` are spoken to in plain HTTP, as are hosts that were declared with
/// [`Builder::plain_http`] or in [`Hosts`]; all others in TLS only.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: Builder,
    transport: Arc<dyn Transport>,
    tokens: Tokens,
    health: Health,
    limits: Limits,
    targets: Targets,
    /// Held by whoever changes a list of referrers that the registry does not keep itself.
    referrers: Mutex<()>,
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

    /// Asks a registry whether it is there, and takes us for who we say we are (`GET /v2/`, distribution spec, "Determining
    /// Support"). Mirrors are not asked.
    ///
    /// # Errors
    ///
    /// [`Error::Unauthorized`](crate::Error::Unauthorized) if it does not, or does not take anybody it does not know; else as
    /// [`Resolver::resolve`].
    pub async fn ping(&self, host: &str) -> Result<()> {
        let servers = self.servers(host).await?;
        let server = servers
            .last()
            .ok_or_else(|| Error::Config { reason: format!("no server is configured for {host}") })?;
        let _turn = server.turn(Direction::Download).await;
        server.request(&Call::get(server.endpoint.url.clone()), &Scopes::default()).await?;
        Ok(())
    }

    fn from_settings(settings: Builder, transport: Arc<dyn Transport>) -> Self {
        let limits = Limits::new(settings.in_flight, settings.in_flight_per_host);
        let (tokens, health, targets) = <(Tokens, Health, Targets)>::default();
        Self {
            inner: Arc::new(Inner {
                settings,
                transport,
                tokens,
                health,
                limits,
                targets,
                referrers: Mutex::default(),
            }),
        }
    }

    /// The servers that answer for a host, in the order in which to try them.
    async fn servers(&self, host: &str) -> Result<Vec<Server>> {
        let settings = &self.inner.settings;
        let default = hosts::default_endpoint(host, settings.plain.contains(host))?;
        let endpoints = match &settings.hosts {
            Some(hosts) => hosts.endpoints(host, default).await?,
            None => vec![default],
        };
        let last = endpoints.len().saturating_sub(1);
        let servers = endpoints.into_iter().enumerate().map(|(at, endpoint)| Server {
            inner: self.inner.clone(),
            endpoint: Arc::new(endpoint),
            replaceable: at < last,
        });
        Ok(servers.collect())
    }

    async fn repository(&self, reference: &Reference) -> Result<Repository> {
        Ok(Repository {
            servers: self.servers(reference.host()).await?,
            host: reference.host().to_owned(),
            name: reference.repository().to_owned(),
        })
    }
}

#[async_trait]
impl Resolver for Registry {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let repository = self.repository(reference).await?;
        let descriptor = resolve::resolve(&repository, reference).await?;
        Ok(Resolved { name: reference.to_string(), descriptor, fetcher: Arc::new(repository) })
    }
}
