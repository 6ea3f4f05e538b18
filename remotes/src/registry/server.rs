//! The servers of a registry, and one repository on them.

use std::sync::Arc;

use http::HeaderValue;
use url::Url;

use super::{
    Inner,
    limits::{Direction, Turn},
};
use crate::{
    Error, Result,
    hosts::{Capabilities, Endpoint},
};

/// One server that answers for a registry.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) inner: Arc<Inner>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Whether it only stands for the registry, which can be asked instead: it is a mirror.
    pub(super) replaceable: bool,
}

/// One repository of one registry: what all requests of a pull have in common.
#[derive(Clone, Debug)]
pub(super) struct Repository {
    /// Mirrors first.
    pub(super) servers: Vec<Server>,
    /// The registry's name, as the reference writes it.
    pub(super) host: String,
    /// Its name on the registry: `library/redis`.
    pub(super) name: String,
}

impl Server {
    /// A URL below this server's base. `path` is made of checked names and needs no escaping.
    pub(super) fn url(&self, path: &str) -> Url {
        let mut url = self.endpoint.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}/{path}"));
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    pub(super) fn user_agent(&self) -> HeaderValue {
        HeaderValue::from_str(&self.inner.settings.user_agent)
            .expect("it was checked when the registry was built")
    }

    /// Whether it is spoken to in plain HTTP: it was declared so, or it is this machine.
    pub(super) fn is_plain(&self) -> bool {
        self.endpoint.url.scheme() == "http"
    }

    /// Waits for a turn to ask this server for something.
    pub(super) async fn turn(&self, direction: Direction) -> Turn {
        self.inner.limits.turn(&self.endpoint.name(), direction).await
    }

    fn is_dead(&self) -> bool {
        self.inner.health.is_dead(&self.endpoint)
    }
}

impl Repository {
    /// The servers that may be asked for something, those that answer first.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if there is none.
    pub(super) fn able(&self, to: &'static str, may: impl Fn(Capabilities) -> bool) -> Result<Vec<Server>> {
        let able = self.servers.iter().filter(|server| may(server.endpoint.capabilities)).cloned();
        let (dead, alive): (Vec<_>, Vec<_>) = able.partition(Server::is_dead);
        let servers = [alive, dead].concat();
        match servers.is_empty() {
            true => Err(Error::Config {
                reason: format!("no server that is configured for {} may {to}", self.host),
            }),
            false => Ok(servers),
        }
    }

    /// Asks one server after another until one answers well.
    ///
    /// # Errors
    ///
    /// That of the registry itself if it was asked, else that of the last server.
    pub(super) async fn first<T, Fut: Future<Output = Result<T>>>(
        &self,
        servers: Vec<Server>,
        ask: impl Fn(Server) -> Fut,
    ) -> Result<T> {
        let mut failure = Failure::default();
        for server in servers {
            match ask(server.clone()).await {
                Ok(answer) => return Ok(answer),
                // Mirrors that are down, which are all that is left, know no better.
                Err(error) if !server.replaceable && !error.is_transient() => return Err(error),
                Err(error) => failure.add(&server, error),
            }
        }
        Err(failure.into())
    }
}

/// What several servers that were asked in turn answered: the registry's own words count, not those of its mirrors.
#[derive(Default)]
pub(super) struct Failure {
    error: Option<Error>,
    /// Whether the error is the registry's own.
    own: bool,
}

impl Failure {
    /// Takes note of what the server that was asked last answered.
    pub(super) fn add(&mut self, server: &Server, error: Error) {
        let name = server.endpoint.name();
        match server.replaceable {
            true => tracing::warn!(server = name, %error, "a mirror failed"),
            false => tracing::debug!(server = name, %error, "a server failed"),
        }
        if !server.replaceable || !self.own {
            (self.error, self.own) = (Some(error), !server.replaceable);
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error.expect("a list of servers that may be asked is not empty")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Registry;

    #[test]
    fn a_mirrors_urls_say_which_registry_it_stands_for() {
        let registry = Registry::new().expect("the defaults are good");
        let mut endpoint = Endpoint::new("https://mirror.example/prefix/v2/".parse().expect("a URL"));
        endpoint.namespace = Some("docker.io".into());

        let server =
            Server { inner: registry.inner.clone(), endpoint: Arc::new(endpoint), replaceable: true };
        let url = server.url("library/redis/manifests/7");

        assert_eq!(url.as_str(), "https://mirror.example/prefix/v2/library/redis/manifests/7?ns=docker.io");
    }
}
