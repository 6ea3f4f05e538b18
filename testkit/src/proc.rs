//! Programs that the tests run, above all Debian's registry.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::ChildStderr,
};

use crate::{
    http::{self, Response},
    image::Image,
    pki::Authority,
};

/// How long a registry may take until it listens.
const START: Duration = Duration::from_secs(10);

/// A `docker-registry` process on a free loopback port, with an empty folder of its own. It is killed, and its
/// folder deleted, when this is dropped.
#[derive(Debug)]
pub struct RealRegistry {
    host: String,
    process: Child,
    authority: Option<Authority>,
    _storage: TempDir,
}

impl RealRegistry {
    /// Starts it over plain HTTP, for anybody. It answers when this returns.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A registry with TLS, or for some users only.
    pub fn builder() -> RealRegistryBuilder {
        RealRegistryBuilder::default()
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.host.clone()
    }

    /// The certificate, in PEM, that clients must trust.
    ///
    /// # Panics
    ///
    /// If it was built without [`tls`](RealRegistryBuilder::tls).
    pub fn ca_pem(&self) -> String {
        self.authority.as_ref().expect("the registry speaks TLS").pem()
    }

    async fn get(&self, path: &str) -> Response {
        let Some(authority) = &self.authority else {
            return http::send(&self.host, "GET", path, &[], b"").await;
        };
        let stream = http::connect_tls(&self.host, &authority.pem(), None, &[]).await;
        let stream = stream.expect("docker-registry has the certificate that it was given");
        match http::talk(stream, &self.host, "GET", path, &[], b"", usize::MAX).await {
            (Some(answer), None) => answer,
            (answer, error) => panic!("{path}: {error:?} after {answer:?}"),
        }
    }
}

/// Pushing, over plain HTTP and without a password.
impl RealRegistry {
    /// Uploads an image or an index, and all that it refers to; `tag` means its root.
    pub async fn push(&self, image: &Image, repository: &str, tag: &str) {
        let (manifests, blobs): (Vec<_>, Vec<_>) =
            image.blobs.iter().partition(|(_, (media_type, _))| Image::is_manifest(media_type));
        for (digest, (_, bytes)) in blobs {
            self.push_blob(repository, digest, bytes).await;
        }
        // The registry refuses an index before it has what the index lists.
        let root = image.root.digest().to_string();
        for (digest, (media_type, bytes)) in manifests.iter().filter(|(digest, _)| **digest != root) {
            self.push_manifest(repository, digest, media_type, bytes).await;
        }
        let (media_type, bytes) = &image.blobs[&root];
        self.push_manifest(repository, tag, media_type, bytes).await;
    }

    async fn push_blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let answer = http::send(&self.host, "POST", &path, &[], b"").await;
        assert_eq!(answer.status, 202, "start an upload to {repository}: {answer:?}");
        let location = answer.header("location").expect("an upload has a location");
        let path = location.strip_prefix(&format!("http://{}", self.host)).unwrap_or(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={digest}");
        let headers = [("content-type", "application/octet-stream")];
        let answer = http::send(&self.host, "PUT", &path, &headers, bytes).await;
        assert_eq!(answer.status, 201, "upload {digest}: {answer:?}");
    }

    async fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let answer = http::send(&self.host, "PUT", &path, &[("content-type", media_type)], bytes).await;
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, 201, "upload manifest {reference}: {text}");
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        // Waited for, so that its port and its folder are free afterwards. A killed process ends at once.
        self.process.kill().and_then(|()| self.process.wait()).expect("a child can be killed and waited for");
    }
}

/// Builds a [`RealRegistry`].
#[derive(Debug, Default)]
pub struct RealRegistryBuilder {
    tls: bool,
    user: Option<(String, String)>,
}

impl RealRegistryBuilder {
    /// Speaks TLS, with a certificate for `127.0.0.1` and `localhost` from an authority of its own,
    /// [`RealRegistry::ca_pem`]. Plain HTTP if not set.
    pub fn tls(self) -> Self {
        Self { tls: true, ..self }
    }

    /// Asks for this user and password. Anybody may do anything if not set.
    pub fn htpasswd(self, user: &str, password: &str) -> Self {
        Self { user: Some((user.to_owned(), password.to_owned())), ..self }
    }

    /// Starts it. It answers when this returns.
    pub async fn start(self) -> RealRegistry {
        let program = require("docker-registry", "docker-registry");
        let storage = tempfile::tempdir().expect("a temporary folder can be made");
        let authority = self.tls.then(Authority::new);
        let config = self.write_to(storage.path(), authority.as_ref());
        let mut process = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts");
        let stderr = process.stderr.take().expect("it was asked for");
        // From here on the process ends with this value, also when it is never ready.
        let mut registry = RealRegistry { host: String::new(), process, authority, _storage: storage };
        let stderr = ChildStderr::from_std(stderr).expect("a pipe can be read asynchronously");
        let mut log = BufReader::new(stderr).lines();
        let listening = tokio::time::timeout(START, listening(&mut log)).await;
        registry.host =
            listening.unwrap_or_else(|_| panic!("docker-registry does not listen after {START:?}"));
        // Somebody must read the log, or the registry waits for it.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let status = if self.user.is_some() { 401 } else { 200 };
        assert_eq!(registry.get("/v2/").await.status, status, "docker-registry answers");
        registry
    }

    /// Writes its configuration, and the files that this names. Gives its path.
    fn write_to(&self, folder: &Path, authority: Option<&Authority>) -> PathBuf {
        let write = |name: &str, content: &str| {
            let path = folder.join(name);
            fs::write(&path, content).expect("a new folder can be written to");
            path
        };
        let storage = folder.join("data");
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "info", "formatter": "json", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": storage }, "delete": { "enabled": true } },
            "http": { "addr": "127.0.0.1:0" },
        });
        if let Some(identity) = authority.map(Authority::server) {
            let (certificate, key) =
                (write("server.pem", &identity.certificate), write("server.key", &identity.key));
            config["http"]["tls"] = json!({ "certificate": certificate, "key": key });
        }
        if let Some((user, password)) = &self.user {
            // The least that the algorithm allows: this is not the place for a hash that takes its time.
            let hash = bcrypt::hash(password, 4).expect("the cost is one, and the password is short");
            let users = write("htpasswd", &format!("{user}:{hash}\n"));
            config["auth"] = json!({ "htpasswd": { "realm": "testkit", "path": users } });
        }
        // YAML has JSON in it.
        write("config.yml", &config.to_string())
    }
}

/// Starts Debian's registry.
pub async fn docker_registry() -> RealRegistry {
    RealRegistry::start().await
}

/// The program of this name in `PATH`.
///
/// # Panics
///
/// If it is missing, with the Debian package to install.
pub fn require(program: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|folder| folder.join(program)).find(|it| it.is_file());
    found.unwrap_or_else(|| panic!("{program} is missing: `apt-get install {package}`"))
}

/// Reads the log until the registry tells the port that the kernel has given it.
async fn listening(log: &mut Lines<BufReader<ChildStderr>>) -> String {
    let mut seen = String::new();
    while let Some(line) = log.next_line().await.expect("its log is text") {
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        if let Some(host) = entry["msg"].as_str().and_then(|it| it.strip_prefix("listening on ")) {
            return host.trim_end_matches(", tls").to_owned();
        }
        seen += &line;
        seen.push('\n');
    }
    panic!("docker-registry ended:\n{seen}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageBuilder, Index, Layer};

    #[tokio::test]
    async fn what_is_pushed_to_the_real_registry_can_be_read() {
        let of = |platform: &str| {
            let layer = Layer::new().file("platform", 0o644, platform.as_bytes());
            ImageBuilder::new().platform(platform).layer(layer).build()
        };
        let docker = ImageBuilder::new().docker().layer(Layer::new().file("f", 0o644, b"x")).build();
        let registry = docker_registry().await;
        for image in [of("linux/amd64"), Index::of(&[of("linux/amd64"), of("linux/arm64")]), docker] {
            registry.push(&image, "library/app", "latest").await;

            for (reference, kind) in [("latest", "manifests"), (image.root.digest().as_ref(), "manifests")] {
                let path = format!("/v2/library/app/{kind}/{reference}");
                let media_type = image.root.media_type().to_string();
                let answer =
                    http::send(&registry.host(), "GET", &path, &[("accept", &media_type)], b"").await;
                assert_eq!(answer.body, image.blob(image.root.digest()), "{reference}");
            }
        }
    }

    #[tokio::test]
    async fn a_real_registry_may_speak_tls_and_ask_for_a_password() {
        let registry = RealRegistry::builder().tls().htpasswd("user", "secret").start().await;
        let mut statuses = Vec::new();
        // `user:secret` and `user:wrong` in base 64.
        for credentials in ["dXNlcjpzZWNyZXQ=", "dXNlcjp3cm9uZw=="] {
            let stream = http::connect_tls(&registry.host(), &registry.ca_pem(), None, &[]).await;
            let stream = stream.expect("its authority is trusted");

            let header = [("authorization", &*format!("Basic {credentials}"))];
            let (answer, _) =
                http::talk(stream, &registry.host(), "GET", "/v2/", &header, b"", usize::MAX).await;

            statuses.push(answer.expect("it answers").status);
        }
        assert_eq!(statuses, [200, 401]);
        let stranger = Authority::new().pem();
        assert!(http::connect_tls(&registry.host(), &stranger, None, &[]).await.is_err());
    }

    #[tokio::test]
    async fn a_dropped_real_registry_is_gone() {
        let registry = docker_registry().await;
        let host = registry.host();
        let id = registry.process.id();

        drop(registry);

        assert!(!Path::new(&format!("/proc/{id}")).exists());
        assert!(tokio::net::TcpStream::connect(&host).await.is_err());
    }

    #[test]
    #[should_panic(expected = "no-such-program is missing: `apt-get install some-package`")]
    fn a_missing_program_names_its_package() {
        require("no-such-program", "some-package");
    }
}
