//! How a registry in this process is to behave.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    registry::Registry,
    server::{listen, token::Tokens},
    state::State,
};

/// Builds a [`Registry`] that asks for credentials, or lacks what others have.
#[derive(Debug, Default)]
pub struct RegistryBuilder {
    settings: Settings,
    tokens: Arc<Mutex<Tokens>>,
}

/// Who gets in, and with which tokens.
impl RegistryBuilder {
    /// Asks for a bearer token, which `/token` on the same host gives out. Not asked for if not set.
    pub fn token_auth(self) -> Self {
        self.set(|it| it.token = true)
    }

    /// Asks for this user and password: at `/token` with [`token_auth`](Self::token_auth), else for every
    /// request. Anonymous if not set.
    pub fn password(self, user: &str, password: &str) -> Self {
        self.set(|it| it.password = Some((user.to_owned(), password.to_owned())))
    }

    /// Lets `/token` take this identity token as well, in a form with `grant_type=refresh_token`. None if not
    /// set.
    pub fn identity_token(self, token: &str) -> Self {
        self.set(|it| it.identity_token = Some(token.to_owned()))
    }

    /// Gives tokens that allow no more than pulling to whoever shows no credentials. Refused if not set.
    pub fn public(self) -> Self {
        self.set(|it| it.public = true)
    }

    /// Refuses a token this long after it was given out, and says so in `expires_in`, in whole seconds. 300 s
    /// if not set.
    pub fn token_lifetime(self, lifetime: Duration) -> Self {
        self.set(|it| it.token_lifetime = lifetime)
    }

    /// Leaves `expires_in` and `issued_at` out of what `/token` answers. Both are there if not set.
    pub fn without_expires_in(self) -> Self {
        self.set(|it| it.without_expires_in = true)
    }

    /// Gives out tokens in this field only: `token` or `access_token`. In both if not set.
    pub fn token_field(self, name: &str) -> Self {
        self.set(|it| it.token_field = Some(name.to_owned()))
    }

    /// Sends clients to this URL for a token. The registry's own `/token` if not set.
    pub fn token_realm(self, url: &str) -> Self {
        self.set(|it| (it.token, it.realm) = (true, Some(url.to_owned())))
    }

    /// Sends clients to the `/token` of another registry, started with [`token_auth`](Self::token_auth), and
    /// honours what that gives out. Its own tokens count if not set.
    pub fn token_server(self, other: &Registry) -> Self {
        let builder = self.token_realm(&format!("{}/token", other.url()));
        Self { tokens: other.state().tokens.clone(), ..builder }
    }
}

/// What it serves behind signed URLs.
impl RegistryBuilder {
    /// Answers a signed URL with 403 this long after [a redirect](Registry::redirect_blobs_to) named it. 300 s if
    /// not set.
    pub fn signed_url_lifetime(self, lifetime: Duration) -> Self {
        self.set(|it| it.signed_url_lifetime = lifetime)
    }

    /// Answers a signed URL with 403 after this many requests. No limit if not set.
    pub fn signed_url_uses(self, requests: usize) -> Self {
        self.set(|it| it.signed_url_uses = Some(requests))
    }
}

/// What it can do.
impl RegistryBuilder {
    /// Refuses an upload with a chunk of fewer bytes before its last one, and says so in `OCI-Chunk-Min-Length`.
    /// Chunks are of any length if not set.
    pub fn chunk_min(self, bytes: usize) -> Self {
        self.set(|it| it.chunk_min = Some(bytes))
    }

    /// Gives paths in `Location` and `Link`. URLs if not set.
    pub fn relative_locations(self) -> Self {
        self.set(|it| it.relative_locations = true)
    }

    /// Begins an upload where it is asked to mount a blob. Mounts it if not set.
    pub fn without_mount(self) -> Self {
        self.set(|it| it.without_mount = true)
    }

    /// Begins an upload where a `POST` brings a whole blob. Takes that if not set.
    pub fn without_monolithic_post(self) -> Self {
        self.set(|it| it.without_monolithic = true)
    }

    /// Knows nothing of `/referrers/` and of subjects. Knows them if not set.
    pub fn without_referrers(self) -> Self {
        self.set(|it| it.without_referrers = true)
    }

    /// Lists all that refers to a manifest, also where one `artifactType` is asked for. Filters if not set.
    pub fn without_referrers_filter(self) -> Self {
        self.set(|it| it.without_referrers_filter = true)
    }

    /// Lists no more than this many tags, repositories or referrers at once. No limit if not set.
    pub fn page_limit(self, entries: NonZeroUsize) -> Self {
        self.set(|it| it.page_limit = Some(entries))
    }
}

/// How it is spoken to.
impl RegistryBuilder {
    /// Speaks TLS, with a certificate for `127.0.0.1` and `localhost` from an authority of its own,
    /// [`Registry::ca_pem`]. Plain HTTP if not set.
    pub fn tls(self) -> Self {
        self.set(|it| it.tls = true)
    }

    /// Speaks TLS, with clients that show a certificate from the same authority, such as
    /// [`Registry::client_identity`]. Clients need none if not set.
    pub fn client_ca(self) -> Self {
        self.tls().set(|it| it.client_ca = true)
    }

    /// Speaks TLS, and HTTP/2 with whoever can. HTTP/1.1 if not set.
    pub fn http2(self) -> Self {
        self.tls().set(|it| it.http2 = true)
    }
}

impl RegistryBuilder {
    /// Starts it. It answers when this returns.
    pub async fn start(self) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let host = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(State::new(host, self.settings, self.tokens));
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(listen::serve(listener, state.clone(), stopped));
        Registry::new(state, stop)
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }
}

/// What was set. The setters say what each means.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) token: bool,
    pub(crate) realm: Option<String>,
    pub(crate) password: Option<(String, String)>,
    pub(crate) identity_token: Option<String>,
    pub(crate) public: bool,
    pub(crate) token_lifetime: Duration,
    pub(crate) without_expires_in: bool,
    pub(crate) token_field: Option<String>,
    pub(crate) signed_url_lifetime: Duration,
    pub(crate) signed_url_uses: Option<usize>,
    pub(crate) chunk_min: Option<usize>,
    pub(crate) relative_locations: bool,
    pub(crate) without_mount: bool,
    pub(crate) without_monolithic: bool,
    pub(crate) without_referrers: bool,
    pub(crate) without_referrers_filter: bool,
    pub(crate) page_limit: Option<NonZeroUsize>,
    pub(crate) tls: bool,
    pub(crate) client_ca: bool,
    pub(crate) http2: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            token: false,
            realm: None,
            password: None,
            identity_token: None,
            public: false,
            token_lifetime: Duration::from_secs(300),
            without_expires_in: false,
            token_field: None,
            signed_url_lifetime: Duration::from_secs(300),
            signed_url_uses: None,
            chunk_min: None,
            relative_locations: false,
            without_mount: false,
            without_monolithic: false,
            without_referrers: false,
            without_referrers_filter: false,
            page_limit: None,
            tls: false,
            client_ca: false,
            http2: false,
        }
    }
}
