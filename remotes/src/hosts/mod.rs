//! Which servers answer for a registry's name: itself, and its mirrors.

mod defaults;
mod dir;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http::HeaderMap;
use url::Url;

use crate::{Result, transport::Connection};

pub(crate) use defaults::{default_endpoint, is_loopback};
pub use dir::HostsDir;
#[cfg(fuzzing)]
pub(crate) use dir::exercise;

/// Says which servers answer for a registry's name, and how to reach them.
#[async_trait]
pub trait Hosts: fmt::Debug + Send + Sync {
    /// The servers for `host`, in the order in which to try them.
    ///
    /// `host` is the name as a reference writes it: `docker.io`, `registry.example:5000`. `default` is the server of that
    /// name itself; who has no opinion answers with it alone.
    ///
    /// # Errors
    ///
    /// [`Error::File`](crate::Error::File) if the configuration for this host cannot be read: it never counts as absent.
    async fn endpoints(&self, host: &str, default: Endpoint) -> Result<Vec<Endpoint>>;
}

/// A server that speaks the distribution protocol.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Endpoint {
    /// The base of its API, with a slash at the end: `https://registry-1.docker.io/v2/`.
    pub url: Url,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Sent with every request to this server, and to no other origin.
    pub headers: HeaderMap,
    /// How to connect.
    pub connection: Arc<Connection>,
    /// The `ns` parameter: which registry a mirror is asked to stand for. `None` for the registry itself.
    pub namespace: Option<String>,
}

impl Endpoint {
    /// A server that may be asked for everything.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            capabilities: Capabilities::ALL,
            headers: HeaderMap::new(),
            connection: Arc::default(),
            namespace: None,
        }
    }

    /// Its name, with the port if it is not the scheme's own, or the path of its socket: what credentials are kept under.
    pub fn name(&self) -> String {
        if let Some(path) = &self.connection.unix_socket {
            return format!("unix:{}", path.display());
        }
        let host = self.url.host_str().unwrap_or_default();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None if host == defaults::DOCKER_SERVER => defaults::DOCKER.to_owned(),
            None => host.to_owned(),
        }
    }
}

/// What a server may be asked for (containerd's `capabilities`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Content by its digest.
    pub pull: bool,
    /// What a tag stands for: it is trusted to say so.
    pub resolve: bool,
    /// To take content in.
    pub push: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { pull: true, resolve: true, push: true };
    /// Nothing.
    pub const NONE: Self = Self { pull: false, resolve: false, push: false };
}
