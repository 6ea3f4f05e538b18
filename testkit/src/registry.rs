//! A registry inside the process.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use oci_spec::image::Digest;
use tokio::sync::oneshot;

use crate::{
    builder::RegistryBuilder,
    fault::Fault,
    image::{Image, sha256},
    pki::{Authority, Identity},
    state::State,
};

/// The OCI distribution API on a free loopback port, until it is dropped.
///
/// ```text
/// push(image) ──▶ Registry ◀── HEAD, GET, POST … ── the client under test
/// fault(…)    ──▶          ──▶ requests(), blob(), manifest(), …
/// ```
#[derive(Debug)]
pub struct Registry {
    state: Arc<State>,
    /// Dropping it tells the server to stop.
    _stop: oneshot::Sender<()>,
}

/// Setting it up.
impl Registry {
    /// Starts a registry that asks for no credentials.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A registry that asks for credentials, or lacks what others have.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.state.host.clone()
    }

    /// `http://127.0.0.1:PORT`, or `https:` with [`tls`](RegistryBuilder::tls).
    pub fn url(&self) -> String {
        self.state.url()
    }

    /// The certificate, in PEM, that clients must trust.
    ///
    /// # Panics
    ///
    /// If it was built without [`tls`](RegistryBuilder::tls).
    pub fn ca_pem(&self) -> String {
        self.authority().pem()
    }

    /// A new identity that it takes from clients.
    ///
    /// # Panics
    ///
    /// If it was built without [`tls`](RegistryBuilder::tls).
    pub fn client_identity(&self) -> Identity {
        self.authority().client()
    }

    /// Makes an image or an index, and all that it refers to, readable in `repository`; `tag` means its root.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) {
        let mut shared = self.state.lock();
        let repository = shared.repositories.entry(repository.to_owned()).or_default();
        for (digest, (media_type, bytes)) in &image.blobs {
            if Image::is_manifest(media_type) {
                repository.manifests.insert(digest.clone(), (media_type.clone(), bytes.clone()));
            } else {
                repository.blobs.insert(digest.clone(), bytes.clone());
            }
        }
        repository.tags.insert(tag.to_owned(), image.root.digest().to_string());
    }

    /// Makes these bytes readable as a manifest of this media type, whatever they are. A `reference` that is a
    /// digest need not be theirs: only so can an index list itself. Gives their digest.
    pub fn push_raw(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let mut shared = self.state.lock();
        let repository = shared.repositories.entry(repository.to_owned()).or_default();
        let manifest = (media_type.to_owned(), bytes);
        if reference.contains(':') {
            repository.manifests.insert(reference.to_owned(), manifest);
        } else {
            repository.manifests.insert(digest.to_string(), manifest);
            repository.tags.insert(reference.to_owned(), digest.to_string());
        }
        digest
    }

    /// Makes these bytes readable as a blob. Gives their digest.
    pub fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = sha256(&bytes);
        let mut shared = self.state.lock();
        let repository = shared.repositories.entry(repository.to_owned()).or_default();
        repository.blobs.insert(digest.to_string(), bytes);
        digest
    }

    /// Goes wrong from now on.
    pub fn fault(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Sends whoever asks for a blob to a signed URL of `other`, from now on: to
    /// `/cdn/DIGEST?X-Amz-Date=…&X-Amz-Expires=…&sig=…`, which `other` serves until it has [run out][out].
    ///
    /// Such a URL is all that is needed, whatever `other` asks for elsewhere. A request that brings
    /// `Authorization` along is answered with 400.
    ///
    /// [out]: RegistryBuilder::signed_url_lifetime
    pub fn redirect_blobs_to(&self, other: &Self) {
        self.state.lock().redirect = Some(other.state.clone());
    }

    /// Refuses every token that was given out until now.
    pub fn revoke_tokens(&self) {
        self.state.tokens().revoke();
    }

    pub(crate) fn new(state: Arc<State>, stop: oneshot::Sender<()>) -> Self {
        Self { state, _stop: stop }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    fn authority(&self) -> &Authority {
        self.state.authority.as_ref().expect("the registry speaks TLS")
    }
}

/// What it has.
impl Registry {
    /// The bytes of a blob, if the repository has it.
    pub fn blob(&self, repository: &str, digest: impl AsRef<str>) -> Option<Bytes> {
        self.state.lock().repositories.get(repository)?.blobs.get(digest.as_ref()).cloned()
    }

    /// Media type and bytes of a manifest by its tag or digest, if the repository has it.
    pub fn manifest(&self, repository: &str, reference: impl AsRef<str>) -> Option<(String, Bytes)> {
        let shared = self.state.lock();
        let (_, media_type, bytes) = shared.repositories.get(repository)?.manifest(reference.as_ref())?;
        Some((media_type.to_owned(), bytes.clone()))
    }

    /// Digests by tag. There are none in a repository that does not exist.
    pub fn tags(&self, repository: &str) -> BTreeMap<String, String> {
        self.state.lock().repositories.get(repository).map(|it| it.tags.clone()).unwrap_or_default()
    }

    /// How many uploads have begun, and have neither ended nor been given up.
    pub fn uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }
}

/// What it saw.
impl Registry {
    /// Every request until now, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state.lock().requests.clone()
    }

    /// How many TCP connections were accepted until now.
    pub fn connections(&self) -> usize {
        self.state.lock().connections
    }

    /// The most requests that were in flight at once until now: those whose head had arrived, and whose answer
    /// was not complete.
    pub fn peak(&self) -> usize {
        self.state.lock().peak
    }
}

/// One request that a [`Registry`] saw.
#[derive(Clone, Debug)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Names and values of the query, decoded, in their order.
    pub query: Vec<(String, String)>,
    /// Values by name in lower case.
    pub headers: BTreeMap<String, String>,
    /// How many bytes of its body were read until now.
    pub body_length: u64,
    /// Names and values of the form that was sent to `/token`, decoded, in their order.
    pub form: Vec<(String, String)>,
}

impl Request {
    /// The first value of this name in the query, or else in the form.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().chain(&self.form).find(|(it, _)| it == name).map(|(_, value)| &**value)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Fault, Registry, http, sample};

    #[tokio::test]
    async fn requests_are_in_the_log_with_all_that_they_say() {
        let (registry, _) = sample::registry().await;
        let path = "/v2/library/app/manifests/latest?a=1&b=x%2Fy";
        http::send(&registry.host(), "HEAD", path, &[("x-name", "value")], b"").await;
        http::send(&registry.host(), "POST", "/somewhere", &[], &[7; 100_000]).await;

        let requests = registry.requests();

        assert_eq!((&*requests[0].method, &*requests[0].path), ("HEAD", path));
        assert_eq!(requests[0].parameter("b"), Some("x/y"));
        assert_eq!(requests[0].headers["host"], registry.host());
        assert_eq!(requests[0].headers["x-name"], "value");
        let lengths: Vec<_> = requests.iter().map(|it| it.body_length).collect();
        assert_eq!(lengths, [0, 100_000]);
        assert_eq!(registry.connections(), 2);
    }

    #[tokio::test]
    async fn what_was_pushed_can_be_read_back() {
        let (registry, image) = sample::registry().await;
        let (root, layer) = (&image.root, image.layers().remove(0));

        assert_eq!(registry.blob("library/app", layer.digest()), Some(image.blob(layer.digest())));
        assert_eq!(registry.blob("library/app", root.digest()), None, "it is a manifest");
        assert_eq!(registry.blob("library/other", layer.digest()), None);
        let manifest = (root.media_type().to_string(), image.blob(root.digest()));
        for reference in ["latest", root.digest().as_ref()] {
            assert_eq!(registry.manifest("library/app", reference), Some(manifest.clone()), "{reference}");
        }
        let tags = [("latest".to_owned(), root.digest().to_string())];
        assert_eq!(registry.tags("library/app"), tags.into());
        assert!(registry.tags("library/other").is_empty());
    }

    #[tokio::test]
    async fn raw_bytes_are_served_as_whatever_they_are_said_to_be() {
        let registry = Registry::start().await;
        let index = "application/vnd.oci.image.index.v1+json";
        let itself = format!("sha256:{}", "5".repeat(64));
        let bytes = format!("{{\"manifests\":[{{\"digest\":\"{itself}\"}}]}}");

        let digest = registry.push_raw("app", "latest", "text/html", bytes.clone());
        registry.push_raw("app", &itself, index, bytes.clone());
        let blob = registry.push_blob("app", "blob");

        for (path, media_type, body) in [
            ("manifests/latest".to_owned(), "text/html", &*bytes),
            (format!("manifests/{digest}"), "text/html", &*bytes),
            (format!("manifests/{itself}"), index, &*bytes),
            (format!("blobs/{blob}"), "application/octet-stream", "blob"),
        ] {
            let answer = http::get(&registry.host(), &format!("/v2/app/{path}")).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, Some(media_type)), "{path}");
            assert_eq!(answer.body, body.as_bytes(), "{path}");
        }
    }

    #[tokio::test]
    async fn the_peak_counts_what_is_in_flight_at_once() {
        let (registry, image) = sample::registry().await;
        let (host, path) = (registry.host(), sample::layer_path(&image));
        for _ in 0..3 {
            http::get(&host, &path).await;
        }
        assert_eq!(registry.peak(), 1);

        registry.fault(Fault::stall("/blobs/", Duration::from_millis(200)));
        tokio::join!(http::get(&host, &path), http::get(&host, &path), http::get(&host, &path));

        assert_eq!(registry.peak(), 3);
    }

    #[tokio::test]
    async fn a_dropped_registry_is_gone() {
        let (registry, _) = sample::registry().await;
        let host = registry.host();
        assert_eq!(http::get(&host, "/v2/").await.status, 200);

        drop(registry);
        // The server's task closes the socket the next time it runs.
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(50)).await;

        assert!(tokio::net::TcpStream::connect(&host).await.is_err());
    }
}
