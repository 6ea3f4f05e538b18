//! A registry inside the process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::Router;
use bytes::Bytes;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{fault::Fault, image::Image, server};

/// The pull side of the OCI distribution API on a free loopback port, over plain HTTP, until it is dropped.
///
/// ```text
/// push(image) ──▶ Registry ◀── HEAD, GET ── the client under test
/// fault(…)    ──▶          ──▶ requests()
/// ```
#[derive(Debug)]
pub struct Registry {
    host: String,
    state: Arc<State>,
    /// Dropping it tells the server to stop.
    _stop: oneshot::Sender<()>,
}

impl Registry {
    /// Starts a registry that asks for no credentials.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A registry with authentication.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// Makes an image or an index, and all that it refers to, readable in `repository`; `tag` means its root.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) {
        let mut shared = self.state.lock();
        let repository = shared.repositories.entry(repository.to_owned()).or_default();
        repository.blobs.extend(image.blobs.clone());
        repository.tags.insert(tag.to_owned(), image.root.digest().to_string());
    }

    /// Goes wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Every request until now, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().requests.clone()
    }
}

/// One request that a [`Registry`] saw.
#[derive(Clone, Debug)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Values by name in lower case.
    pub headers: BTreeMap<String, String>,
}

/// Builds a [`Registry`] that asks for credentials.
#[derive(Debug, Default)]
pub struct RegistryBuilder {
    auth: Auth,
}

impl RegistryBuilder {
    /// Asks for a bearer token, which `/token` on the same host gives out. Not asked for if not set.
    pub fn token_auth(self) -> Self {
        Self { auth: Auth { token: true, ..self.auth } }
    }

    /// Asks for this user and password: at `/token` with [`token_auth`](Self::token_auth), else for every
    /// request. Anonymous if not set.
    pub fn password(self, user: &str, password: &str) -> Self {
        Self { auth: Auth { password: Some((user.to_owned(), password.to_owned())), ..self.auth } }
    }

    /// Starts it. It answers when this returns.
    pub async fn start(self) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
        let host = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(State { host: host.clone(), auth: self.auth, shared: Mutex::default() });
        let router = Router::new().fallback(server::answer).with_state(state.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            // Nothing is ever sent: the sender is dropped.
            stopped.await.ok();
        });
        tokio::spawn(async { server.await.expect("a bound server ends only when it is told to") });
        Registry { host, state, _stop: stop }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Auth {
    pub(crate) token: bool,
    pub(crate) password: Option<(String, String)>,
}

/// What the server and the test share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) host: String,
    pub(crate) auth: Auth,
    shared: Mutex<Shared>,
}

impl State {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nothing panics while it holds this lock")
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) repositories: BTreeMap<String, Repository>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) requests: Vec<Request>,
    /// The scopes of every token that was given out.
    pub(crate) tokens: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default)]
pub(crate) struct Repository {
    /// Media type and bytes, by digest.
    pub(crate) blobs: BTreeMap<String, (String, Bytes)>,
    /// Digests by tag.
    pub(crate) tags: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{ImageBuilder, Layer, http};

    async fn registry() -> (Registry, Image) {
        let image = ImageBuilder::new().layer(Layer::new().file("file", 0o644, &[7; 5000]).plain()).build();
        let registry = Registry::start().await;
        registry.push(&image, "library/app", "latest");
        (registry, image)
    }

    fn layer_path(image: &Image) -> String {
        format!("/v2/library/app/blobs/{}", image.layers()[0].digest())
    }

    #[tokio::test]
    async fn manifests_are_served_by_tag_and_by_digest() {
        let (registry, image) = registry().await;
        let digest = image.root.digest().to_string();
        for reference in ["latest", &digest] {
            let path = format!("/v2/library/app/manifests/{reference}");

            let head = http::send(&registry.host(), "HEAD", &path, &[], b"").await;
            let get = http::send(&registry.host(), "GET", &path, &[], b"").await;

            assert_eq!((head.status, get.status), (200, 200), "{reference}");
            assert_eq!(head.header("docker-content-digest"), Some(&*digest));
            assert_eq!(head.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
            assert_eq!(head.header("content-length"), Some(&*image.root.size().to_string()));
            assert_eq!(head.body, b"");
            assert_eq!(get.body, image.blob(image.root.digest()));
        }
        let requests = registry.requests();
        assert_eq!(requests.len(), 4);
        assert_eq!((&*requests[0].method, &*requests[0].path), ("HEAD", "/v2/library/app/manifests/latest"));
        assert_eq!(requests[0].headers["host"], registry.host());
    }

    #[tokio::test]
    async fn what_is_not_there_is_404_with_the_registry_s_error() {
        let (registry, _) = registry().await;
        for (path, code) in [
            ("/v2/library/app/manifests/other", "MANIFEST_UNKNOWN"),
            ("/v2/library/app/blobs/sha256:0", "BLOB_UNKNOWN"),
            ("/v2/nobody/manifests/latest", "NAME_UNKNOWN"),
        ] {
            let response = http::send(&registry.host(), "GET", path, &[], b"").await;

            assert_eq!(response.status, 404, "{path}");
            let errors: serde_json::Value = serde_json::from_slice(&response.body).expect("it is JSON");
            assert_eq!(errors["errors"][0]["code"], code, "{path}");
        }
        assert_eq!(http::send(&registry.host(), "GET", "/v2/", &[], b"").await.status, 200);
    }

    #[tokio::test]
    async fn ranges_of_a_blob_are_served() {
        let (registry, image) = registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let size = whole.len();
        for (range, start, end) in
            [("bytes=100-199", 100, 200), ("bytes=5000-", 5000, size), ("bytes=-7", size - 7, size)]
        {
            let response =
                http::send(&registry.host(), "GET", &layer_path(&image), &[("range", range)], b"").await;

            assert_eq!(response.status, 206, "{range}");
            let content_range = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(response.header("content-range"), Some(&*content_range));
            assert_eq!(response.body, whole[start..end], "{range}");
        }
        let past = format!("bytes={size}-");
        let response =
            http::send(&registry.host(), "GET", &layer_path(&image), &[("range", &past)], b"").await;
        assert_eq!(response.status, 416);
        let changed = [("range", "bytes=1-2"), ("if-range", "\"another\"")];
        assert_eq!(http::send(&registry.host(), "GET", &layer_path(&image), &changed, b"").await.status, 200);
    }

    #[tokio::test]
    async fn faults_of_the_answer_apply_as_often_as_they_say() {
        let (registry, image) = registry().await;
        let path = layer_path(&image);
        registry.fault(Fault::answer("/blobs/", 429, &[("retry-after", "3")], "later").times(2));
        registry.fault(Fault::no_head("/manifests/"));
        registry.fault(Fault::no_digest_header("/manifests/"));
        registry.fault(Fault::ignore_range("/blobs/"));

        let (mut statuses, range) = (Vec::new(), [("range", "bytes=1-2")]);
        for _ in 0..3 {
            statuses.push(http::send(&registry.host(), "GET", &path, &range, b"").await.status);
        }
        let manifest = "/v2/library/app/manifests/latest";
        let head = http::send(&registry.host(), "HEAD", manifest, &[], b"").await;
        let get = http::send(&registry.host(), "GET", manifest, &[], b"").await;

        assert_eq!(statuses, [429, 429, 200]);
        assert_eq!((head.status, get.status), (405, 200));
        assert_eq!(get.header("docker-content-digest"), None);
    }

    #[tokio::test]
    async fn faults_of_the_body_are_seen_on_the_wire() {
        let (registry, image) = registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let path = layer_path(&image);
        registry.fault(Fault::truncate_at(&path, 1000).once());
        let cut = http::send(&registry.host(), "GET", &path, &[], b"").await;
        registry.fault(Fault::wrong_bytes(&path).once());
        let wrong = http::send(&registry.host(), "GET", &path, &[], b"").await;
        let right = http::send(&registry.host(), "GET", &path, &[], b"").await;

        assert_eq!(cut.header("content-length"), Some(&*whole.len().to_string()));
        assert_eq!(cut.body, whole[..1000]);
        assert_eq!(wrong.body.len(), whole.len());
        assert_eq!((wrong.body[0], &wrong.body[1..]), (whole[0] ^ 0xff, &whole[1..]));
        assert_eq!(right.body, whole);
    }

    #[tokio::test]
    async fn slow_faults_take_their_time_and_send_everything() {
        let (registry, image) = registry().await;
        let whole = image.blob(image.layers()[0].digest());
        let path = layer_path(&image);
        let least = Duration::from_millis(200);
        for fault in
            [Fault::delay(&path, least), Fault::stall(&path, least), Fault::slow(&path, whole.len() * 4)]
        {
            registry.fault(fault.clone().once());
            let started = std::time::Instant::now();

            let response = http::send(&registry.host(), "GET", &path, &[], b"").await;

            assert!(started.elapsed() >= least, "{fault:?}: {:?}", started.elapsed());
            assert_eq!(response.body, whole, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn a_token_opens_the_repository_that_it_was_asked_for() {
        let registry = Registry::builder().token_auth().start().await;
        registry.push(&ImageBuilder::new().build(), "app", "latest");
        let host = registry.host();
        let refused = http::send(&host, "GET", "/v2/app/manifests/latest", &[], b"").await;

        let token = async |scope: &str| {
            let path = format!("/token?service=testkit&scope={scope}");
            let answer = http::send(&host, "GET", &path, &[], b"").await;
            let answer: serde_json::Value = serde_json::from_slice(&answer.body).expect("it is JSON");
            format!("Bearer {}", answer["token"].as_str().expect("it has a token"))
        };
        let mut statuses = Vec::new();
        for scope in ["repository%3Aapp%3Apull", "repository:other:pull"] {
            let token = token(scope).await;
            let header = [("authorization", &*token)];
            statuses.push(http::send(&host, "GET", "/v2/app/manifests/latest", &header, b"").await.status);
        }

        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"testkit\",scope=\"repository:app:pull\"");
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(&*challenge)));
        assert_eq!(statuses, [200, 401]);
    }

    #[tokio::test]
    async fn a_password_is_asked_for() {
        let basic = Registry::builder().password("user", "secret").start().await;
        let token = Registry::builder().token_auth().password("user", "secret").start().await;
        for (registry, path) in [(&basic, "/v2/"), (&token, "/token?scope=repository:app:pull")] {
            let anonymous = http::send(&registry.host(), "GET", path, &[], b"").await;
            // `user:secret` and `user:wrong` in base 64.
            let right = [("authorization", "Basic dXNlcjpzZWNyZXQ=")];
            let wrong = [("authorization", "Basic dXNlcjp3cm9uZw==")];

            assert_eq!(anonymous.status, 401, "{path}");
            assert_eq!(anonymous.header("www-authenticate"), Some("Basic realm=\"testkit\""));
            assert_eq!(http::send(&registry.host(), "GET", path, &right, b"").await.status, 200, "{path}");
            assert_eq!(http::send(&registry.host(), "GET", path, &wrong, b"").await.status, 401, "{path}");
        }
    }

    #[tokio::test]
    async fn a_dropped_registry_is_gone() {
        let (registry, _) = registry().await;
        let host = registry.host();
        assert_eq!(http::send(&host, "GET", "/v2/", &[], b"").await.status, 200);

        drop(registry);
        // The server's task closes the socket the next time it runs.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(50)).await;

        assert!(tokio::net::TcpStream::connect(&host).await.is_err());
    }
}
