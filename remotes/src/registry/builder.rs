use std::{
    collections::{BTreeMap, BTreeSet},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use http::HeaderValue;

use super::Hosts;
use crate::{
    Error, Registry, Result,
    credentials::{Credential, Credentials, Secret},
    transport::{Reqwest, Transport},
};

/// Settings of a [`Registry`].
///
/// Its `Debug` form names the hosts that have credentials, and no secrets.
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) connect_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) user_agent: String,
    pub(super) max_manifest_size: u64,
    pub(super) attempts: NonZeroU32,
    pub(super) retry_for: Duration,
    pub(super) in_flight: NonZeroUsize,
    pub(super) in_flight_per_host: NonZeroUsize,
    pub(super) parallel: Option<ParallelFetch>,
    pub(super) upload_chunk: NonZeroUsize,
    pub(super) foreign_urls: bool,
    pub(super) plain: BTreeSet<String>,
    pub(super) known: BTreeMap<String, Credential>,
    pub(super) credentials: Option<Arc<dyn Credentials>>,
    pub(super) hosts: Option<Arc<dyn Hosts>>,
    transport: Option<Arc<dyn Transport>>,
}

/// How a large blob is fetched over several connections at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParallelFetch {
    /// How many connections one blob may use; they count towards [`Builder::in_flight`].
    pub connections: NonZeroUsize,
    /// How many bytes are asked for at a time. As many parts as connections may be held in memory.
    pub part_size: NonZeroU64,
}

impl Default for ParallelFetch {
    /// Four connections, 4 MiB.
    fn default() -> Self {
        Self { connections: nonzero(4), part_size: NonZeroU64::new(4 << 20).expect("4 MiB is not zero") }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            user_agent: concat!("windlass/", env!("CARGO_PKG_VERSION")).into(),
            max_manifest_size: 4 << 20,
            attempts: NonZeroU32::new(5).expect("five is not zero"),
            retry_for: Duration::from_secs(300),
            in_flight: nonzero(64),
            in_flight_per_host: nonzero(16),
            parallel: None,
            upload_chunk: nonzero(8 << 20),
            foreign_urls: false,
            plain: BTreeSet::new(),
            known: BTreeMap::new(),
            credentials: None,
            hosts: None,
            transport: None,
        }
    }
}

impl Builder {
    /// Gives up on a connection that is not there after this long. 30 s if not set.
    pub fn connect_timeout(self, connect_timeout: Duration) -> Self {
        Self { connect_timeout, ..self }
    }

    /// Gives up on an answer or a body that sends nothing for this long; a body is then resumed. 30 s if not set.
    pub fn idle_timeout(self, idle_timeout: Duration) -> Self {
        Self { idle_timeout, ..self }
    }

    /// What the client calls itself. `windlass/<version>` if not set.
    pub fn user_agent(self, user_agent: impl Into<String>) -> Self {
        Self { user_agent: user_agent.into(), ..self }
    }

    /// Limits the manifests and indexes that are resolved and fetched, in bytes. 4 MiB if not set.
    pub fn max_manifest_size(self, max_manifest_size: u64) -> Self {
        Self { max_manifest_size, ..self }
    }

    /// How often a request is tried, and how often a body is resumed that gives nothing new. 5 if not set.
    pub fn attempts(self, attempts: NonZeroU32) -> Self {
        Self { attempts, ..self }
    }

    /// How long a request is tried again and again, waits included. 5 minutes if not set.
    pub fn retry_for(self, retry_for: Duration) -> Self {
        Self { retry_for, ..self }
    }

    /// How many operations may be in flight at once, to all hosts: a body that is being read, a manifest, an upload. 64 if not
    /// set. Whoever holds more bodies than that without reading them waits for himself.
    pub fn in_flight(self, in_flight: NonZeroUsize) -> Self {
        Self { in_flight, ..self }
    }

    /// The same for each host. 16 if not set.
    pub fn in_flight_per_host(self, in_flight_per_host: NonZeroUsize) -> Self {
        Self { in_flight_per_host, ..self }
    }

    /// Fetches blobs that are larger than one part over several connections. Over one if not set.
    pub fn parallel_fetch(self, parallel: ParallelFetch) -> Self {
        Self { parallel: Some(parallel), ..self }
    }

    /// The most of a blob that is sent in one request, in bytes; so much is held in memory for each upload, since what
    /// broke is sent again. 8 MiB if not set.
    pub fn upload_chunk(self, upload_chunk: NonZeroUsize) -> Self {
        Self { upload_chunk, ..self }
    }

    /// Whether a layer that the registry does not have is fetched from the `urls` of its descriptor, without credentials.
    /// False if not set.
    pub fn foreign_urls(self, foreign_urls: bool) -> Self {
        Self { foreign_urls, ..self }
    }

    /// Speaks plain HTTP with this host too, written as in a reference: `registry.lan:5000`. May be called again.
    pub fn plain_http(mut self, host: impl Into<String>) -> Self {
        self.plain.insert(host.into());
        self
    }

    /// Logs in to this host, written as in a reference, as this user. May be called again for other hosts.
    pub fn credentials(
        mut self,
        host: impl Into<String>,
        user: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        let password = Secret::new(password);
        self.known.insert(host.into(), Credential::Password { user: user.into(), password });
        self
    }

    /// Asks here who to be at a host that [`credentials`](Self::credentials) does not name. Anonymous if not set.
    pub fn credentials_from(self, credentials: impl Credentials + 'static) -> Self {
        Self { credentials: Some(Arc::new(credentials)), ..self }
    }

    /// Asks here which servers answer for a host, mirrors for instance. The host itself if not set.
    pub fn hosts(self, hosts: impl Hosts + 'static) -> Self {
        Self { hosts: Some(Arc::new(hosts)), ..self }
    }

    /// Sends requests with a client of the caller's own. With `reqwest` if not set.
    pub fn transport(self, transport: impl Transport + 'static) -> Self {
        Self { transport: Some(Arc::new(transport)), ..self }
    }

    /// Checks the settings. Touches neither the network nor the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the user agent cannot be a header.
    pub fn build(mut self) -> Result<Registry> {
        if HeaderValue::from_str(&self.user_agent).is_err() {
            let reason = format!("{:?} cannot be a user agent; use printable ASCII", self.user_agent);
            return Err(Error::Config { reason });
        }
        let transport = self.transport.take().unwrap_or_else(|| Arc::new(Reqwest::new(self.connect_timeout)));
        Ok(Registry::from_settings(self, transport))
    }
}

const fn nonzero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("the caller gives a constant above zero")
}
