//! The client below: one of the embedder's, or ours with what the environment says.

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use windlass_content::ByteStream;
use windlass_remotes::{
    Resolver,
    transport::{Request, Transport, TransportError},
};
use windlass_testkit::Image;

use crate::support::{Config, Proxy, app, builder, built, bytes, fetcher, named, read, serve};

/// An image, and whoever asked for its parts.
#[derive(Clone, Debug)]
struct Memory {
    image: Image,
    log: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl Transport for Memory {
    async fn send(&self, request: Request) -> Result<Response<ByteStream>, TransportError> {
        let url = request.url.to_string();
        self.log.lock().expect("nobody panics").push(format!("{} {url}", request.method));
        let last = url.rsplit('/').next().unwrap_or_default();
        let digest = if last == "latest" { self.image.root.digest().to_string() } else { last.to_owned() };
        let (status, kind, bytes) = match self.image.blobs.get(&digest) {
            Some((kind, bytes)) => (StatusCode::OK, kind.clone(), bytes.clone()),
            None => (StatusCode::NOT_FOUND, "text/plain".to_owned(), Bytes::new()),
        };
        let builder = Response::builder()
            .status(status)
            .header("content-type", kind)
            .header("content-length", bytes.len())
            .header("docker-content-digest", digest);
        let chunks = bytes.chunks(1000).map(|chunk| Ok(bytes.slice_ref(chunk))).collect::<Vec<_>>();
        let body: ByteStream = Box::pin(stream::iter(chunks));
        Ok(builder.body(body).expect("the headers are good"))
    }
}

#[tokio::test]
async fn an_embedders_own_client_serves_a_pull() {
    let image = app();
    let memory = Memory { image: image.clone(), log: Arc::default() };
    let client = built(builder().transport(memory.clone()));

    let fetcher = fetcher(&client, &named("registry.example", ":latest")).await;
    let came = read(&*fetcher, &image.layers()[0], 0).await.expect("it is in memory");

    assert!(came == bytes(&image));
    let base = "https://registry.example/v2/library/app";
    let log = memory.log.lock().expect("nobody panics").clone();
    let digest = image.layers()[0].digest().clone();
    assert_eq!(log, [format!("HEAD {base}/manifests/latest"), format!("GET {base}/blobs/{digest}")]);
}

/// Lets whoever has a password in, redirects them, and remembers how requests look in a log.
#[derive(Clone, Debug, Default)]
struct Diary(Arc<Mutex<String>>);

#[async_trait]
impl Transport for Diary {
    async fn send(&self, request: Request) -> Result<Response<ByteStream>, TransportError> {
        *self.0.lock().expect("nobody panics") += &format!("{request:?}\n");
        let answer = Response::builder();
        let answer = match (request.url.host_str(), request.headers.contains_key("authorization")) {
            (Some("cdn.example"), _) => answer.header("content-type", "text/plain"),
            (_, false) => answer.status(401).header("www-authenticate", "Basic realm=x"),
            (_, true) => answer.status(307).header("location", "https://cdn.example/x?sig=signature-secret"),
        };
        let body: ByteStream = Box::pin(stream::iter([Ok(Bytes::from_static(br#"{"layers":[]}"#))]));
        Ok(answer.body(body).expect("the headers are good"))
    }
}

#[tokio::test]
async fn a_request_that_is_logged_shows_no_secret() {
    let diary = Diary::default();
    let text = "server = 'https://registry.example'\nproxy = 'http://me:proxy-secret@proxy.example'\n\
                [header]\nx-secret = 'header-secret'";
    let config = Config::new("registry.example", text);
    let builder = builder().hosts(config.hosts()).credentials("registry.example", "user", "hunter2");

    let client = built(builder.transport(diary.clone()));
    client.resolve(&named("registry.example", ":1")).await.expect("it is in the storage");

    let text = diary.0.lock().expect("nobody panics").clone();
    assert!(text.contains("https://cdn.example/x") && text.contains("x-secret"), "{text}");
    // `user:hunter2` in base 64.
    for secret in ["dXNlcjpodW50ZXIy", "signature-secret", "header-secret", "proxy-secret"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

/// Run by [`the_environments_proxy_is_gone_through`], in a process with an environment of its own.
#[tokio::test]
async fn in_a_process_with_a_proxy() {
    let Ok(answers) = env::var("WINDLASS_TEST_HOSTS") else { return };
    for (host, good) in answers.split(',').map(|answer| answer.split_once('=').expect("it is a pair")) {
        let client = built(builder().plain_http(host).attempts(crate::support::attempts(1)));

        let resolved = client.resolve(&named(host, ":latest")).await;

        assert_eq!(resolved.is_ok(), good == "true", "{host}: {resolved:?}");
    }
}

#[tokio::test]
async fn the_environments_proxy_is_gone_through() {
    let server = serve(&app()).await;
    let (proxy, nobody) = (Proxy::to(&server).await, "http://127.0.0.1:1".to_owned());
    let url = format!("http://me:secret@{}", proxy.host);
    let local = server.host();
    for (environment, hosts, through) in [
        (BTreeMap::from([("HTTP_PROXY", &url)]), "registry.invalid=true", true),
        (BTreeMap::from([("http_proxy", &url)]), "registry.invalid=true", true),
        (BTreeMap::from([("ALL_PROXY", &url)]), "registry.invalid=true", true),
        (BTreeMap::from([("HTTPS_PROXY", &url)]), "registry.invalid=false", false),
        (
            BTreeMap::from([("HTTP_PROXY", &url), ("NO_PROXY", &".invalid".to_owned())]),
            "registry.invalid=false",
            false,
        ),
        // No proxy is between a machine and itself.
        (BTreeMap::from([("HTTP_PROXY", &nobody)]), &*format!("{local}=true"), false),
    ] {
        let before = proxy.seen().len();
        let mut command = Command::new(env::current_exe().expect("it runs"));
        command.args(["--exact", "transport::in_a_process_with_a_proxy", "--nocapture"]);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        command.envs(&environment).env("WINDLASS_TEST_HOSTS", hosts);

        let output = tokio::task::spawn_blocking(move || command.output().expect("it starts")).await;

        let output = output.expect("it ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{environment:?}: {text}");
        let seen = proxy.seen().split_off(before);
        assert_eq!(!seen.is_empty(), through, "{environment:?}: {seen:?}");
        for request in seen {
            assert!(request.target.starts_with("http://registry.invalid/v2/"), "{request:?}");
            // `me:secret` in base 64.
            assert_eq!(request.header("proxy-authorization"), Some("Basic bWU6c2VjcmV0"), "{request:?}");
        }
    }
}
