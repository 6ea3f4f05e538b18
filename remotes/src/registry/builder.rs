use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    num::NonZeroU32,
    time::Duration,
};

use crate::{Error, Registry, Result};

/// Settings of a [`Registry`].
#[derive(Clone)]
pub struct Builder {
    pub(super) connect_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) user_agent: String,
    pub(super) max_manifest_size: u64,
    pub(super) attempts: NonZeroU32,
    pub(super) plain: BTreeSet<String>,
    pub(super) credentials: BTreeMap<String, Credentials>,
}

/// A user's name and password.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            user_agent: concat!("windlass/", env!("CARGO_PKG_VERSION")).into(),
            max_manifest_size: 4 << 20,
            attempts: NonZeroU32::new(5).expect("five is not zero"),
            plain: BTreeSet::new(),
            credentials: BTreeMap::new(),
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

    /// Limits the manifests and indexes that are resolved, in bytes. 4 MiB if not set.
    pub fn max_manifest_size(self, max_manifest_size: u64) -> Self {
        Self { max_manifest_size, ..self }
    }

    /// How often a request is tried, and how often a body is resumed that gives nothing new. 5 if not set.
    pub fn attempts(self, attempts: NonZeroU32) -> Self {
        Self { attempts, ..self }
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
        self.credentials.insert(host.into(), Credentials { user: user.into(), password: password.into() });
        self
    }

    /// Checks the settings. Touches neither the network nor the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the user agent cannot be a header.
    pub fn build(self) -> Result<Registry> {
        if reqwest::header::HeaderValue::from_str(&self.user_agent).is_err() {
            let reason = format!("{:?} cannot be a user agent; use printable ASCII", self.user_agent);
            return Err(Error::Config { reason });
        }
        Ok(Registry::from_settings(self))
    }
}

/// Names the hosts that have credentials, and no secrets.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("user_agent", &self.user_agent)
            .field("max_manifest_size", &self.max_manifest_size)
            .field("attempts", &self.attempts)
            .field("plain", &self.plain)
            .field("credentials", &self.credentials.keys())
            .finish()
    }
}
