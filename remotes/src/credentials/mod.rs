//! Who asks: passwords and tokens, each for the host that it is for.

mod auth_file;
mod auth_files;
mod disk;
mod edit;
mod helper;
mod json;
mod key;

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;

use crate::Result;

pub use auth_files::{AuthFiles, Stored};

/// Knows who to be at a registry.
#[async_trait]
pub trait Credentials: fmt::Debug + Send + Sync {
    /// What to say to `host` about who asks; `None` is to be anonymous there.
    ///
    /// Called when the host wants to know, not before. `host` is a server's name as a reference writes it
    /// (`docker.io`, `registry.example:5000`; a mirror's own name for a mirror), `repository` is what is asked for, such
    /// as `library/redis`, if it is about one.
    ///
    /// # Errors
    ///
    /// [`Error::File`](crate::Error::File) and [`Error::Helper`](crate::Error::Helper) if there may be a credential, but it
    /// cannot be read: that never counts as none.
    async fn find(&self, host: &str, repository: Option<&str>) -> Result<Option<Credential>>;
}

/// What one says to a registry about who one is. Its `Debug` form shows no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credential {
    /// A user and a password, or a token that stands for a password.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, which is exchanged for access tokens.
    IdentityToken(Secret),
    /// An access token, sent as it is.
    AccessToken(Secret),
}

/// A text that is neither shown nor logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever must send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Credentials that are known beforehand, by host.
#[async_trait]
impl Credentials for BTreeMap<String, Credential> {
    async fn find(&self, host: &str, _repository: Option<&str>) -> Result<Option<Credential>> {
        Ok(self.get(host).cloned())
    }
}

/// Takes any bytes for a file of credentials, asks it and edits it: whatever the bytes are, nothing panics.
#[cfg(any(test, fuzzing))]
pub(crate) fn exercise(bytes: &[u8]) {
    let host = "r.example";
    if let Ok(file) = auth_file::AuthFile::parse(bytes) {
        let _ = file.source(host, Some("team/app"));
        let written = edit::set(bytes, host, &edit::Entry::InHelper).expect("what parses can be edited");
        auth_file::AuthFile::parse(&written).expect("what was edited parses");
        let removed = edit::remove(&written, host).expect("what was edited parses");
        auth_file::AuthFile::parse(&removed.expect("it was there")).expect("what was edited parses");
    }
}
