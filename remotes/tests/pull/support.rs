//! Clients, images, and small servers that say whatever a test wants.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    fmt::Write as _,
    fs,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::TryStreamExt;
use oci_spec::image::Descriptor;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener},
    task::{JoinHandle, JoinSet},
};
use windlass_content::{LocalStore, Options};
use windlass_reference::Reference;
use windlass_remotes::{Builder, Fetcher, Registry, Resolved, Resolver, hosts::HostsDir};
use windlass_testkit::{Image, ImageBuilder, Layer, Registry as Server};

pub(crate) type Outcome<T> = Result<T, Box<dyn StdError + Send + Sync>>;

/// An image with one layer of some 50 kB.
pub(crate) fn app() -> Image {
    let content: Vec<_> = (0..50_000_u32).map(|at| (at * at / 7) as u8).collect();
    ImageBuilder::new().layer(Layer::new().file("file", 0o644, &content).plain()).build()
}

/// Settings for a machine that is busy with other tests: what comes late still comes.
pub(crate) fn builder() -> Builder {
    // An error says that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Registry::builder().idle_timeout(Duration::from_secs(20)).connect_timeout(Duration::from_secs(20))
}

/// For tests in which somebody falls silent.
pub(crate) fn impatient() -> Builder {
    builder().idle_timeout(Duration::from_millis(500))
}

pub(crate) fn client() -> Registry {
    built(builder())
}

pub(crate) fn built(builder: Builder) -> Registry {
    builder.build().expect("the settings are good")
}

pub(crate) fn attempts(attempts: u32) -> NonZeroU32 {
    NonZeroU32::new(attempts).expect("the test gives more than zero")
}

pub(crate) fn many(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("the test gives more than zero")
}

/// `HOST/library/app` and what follows.
pub(crate) fn named(host: &str, object: &str) -> Reference {
    format!("{host}/library/app{object}").parse().expect("it is a reference")
}

pub(crate) fn latest(server: &Server) -> Reference {
    named(&server.host(), ":latest")
}

pub(crate) fn push(server: &Server, image: &Image) {
    server.push(image, "library/app", "latest");
}

pub(crate) async fn serve(image: &Image) -> Server {
    let server = Server::start().await;
    push(&server, image);
    server
}

pub(crate) async fn fetcher(client: &Registry, reference: &Reference) -> Arc<dyn Fetcher> {
    let Resolved { fetcher, .. } = client.resolve(reference).await.expect("it is there");
    fetcher
}

/// Reads content from a byte on.
pub(crate) async fn read(fetcher: &dyn Fetcher, node: &Descriptor, from: u64) -> Outcome<Vec<u8>> {
    let chunks: Vec<_> = fetcher.fetch(node, from).await?.try_collect().await?;
    Ok(chunks.concat())
}

/// Resolves the image, and reads its first layer from a byte on.
pub(crate) async fn layer(client: &Registry, server: &Server, image: &Image, from: u64) -> Outcome<Vec<u8>> {
    let Resolved { fetcher, .. } = client.resolve(&latest(server)).await?;
    read(&*fetcher, &image.layers()[0], from).await
}

/// The bytes of its first layer.
pub(crate) fn bytes(image: &Image) -> Vec<u8> {
    image.blob(image.layers()[0].digest()).to_vec()
}

/// How many requests with this method went to a path with this part.
pub(crate) fn count(server: &Server, method: &str, part: &str) -> usize {
    let requests = server.requests();
    requests.iter().filter(|request| request.method == method && request.path.contains(part)).count()
}

/// The values of a header of the requests whose path has this part.
pub(crate) fn headers(server: &Server, part: &str, name: &str) -> Vec<String> {
    let requests = server.requests().into_iter().filter(|request| request.path.contains(part));
    requests.filter_map(|request| request.headers.get(name).cloned()).collect()
}

/// An error and all of its causes.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(error) = next {
        write!(text, ": {error}").expect("a text takes all that is written");
        next = error.source();
    }
    text
}

pub(crate) fn store() -> (tempfile::TempDir, Arc<LocalStore>) {
    let folder = tempfile::tempdir().expect("there is room");
    let store = LocalStore::open(folder.path(), Options::default()).expect("the folder is empty");
    (folder, Arc::new(store))
}

/// A folder with a `hosts.toml` for each host, and other files by their paths.
pub(crate) struct Config {
    folder: tempfile::TempDir,
}

impl Config {
    pub(crate) fn new(host: &str, text: &str) -> Self {
        let config = Self { folder: tempfile::tempdir().expect("there is room") };
        config.put(&format!("{host}/hosts.toml"), text);
        config
    }

    pub(crate) fn put(&self, path: &str, content: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made");
        fs::write(path, content).expect("there is room");
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn hosts(&self) -> HostsDir {
        HostsDir::new(self.folder.path())
    }

    pub(crate) fn client(&self) -> Registry {
        built(builder().hosts(self.hosts()))
    }
}

/// What a request says.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The path with its query, or whatever else is in its place.
    pub(crate) target: String,
    /// By name in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A server that answers with the bytes that a closure gives, one request for each connection. `None` hangs up.
pub(crate) struct Script {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Script {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Option<Vec<u8>> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let host = listener.local_addr().expect("it is bound").to_string();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.expect("a bound port accepts");
                let (log, answer) = (log.clone(), answer.clone());
                running.spawn(async move {
                    let Some((seen, _)) = head(&mut stream).await else { return };
                    let bytes = answer(&seen);
                    log.lock().expect("nobody panics").push(seen);
                    if let Some(bytes) = bytes {
                        // The client may have gone.
                        stream.write_all(&bytes).await.ok();
                        stream.shutdown().await.ok();
                        stream.read_to_end(&mut Vec::new()).await.ok();
                    }
                });
            }
        });
        Self { host, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("nobody panics").clone()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A whole answer.
pub(crate) fn reply(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Option<Vec<u8>> {
    cut(status, headers, body.len(), body)
}

/// An answer that says it has `length` bytes.
pub(crate) fn cut(status: u16, headers: &[(&str, &str)], length: usize, body: &[u8]) -> Option<Vec<u8>> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a text takes all that is written");
    }
    Some([head.as_bytes(), b"\r\n", body].concat())
}

/// Reads the head of a request, and its bytes too. `None` if the client went away.
async fn head(stream: &mut (impl AsyncRead + Unpin)) -> Option<(Seen, Vec<u8>)> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes.clone()).ok()?;
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Some((Seen { method, target, headers }, bytes))
}

/// An HTTP proxy that leads to one server, whatever is asked for.
pub(crate) struct Proxy {
    pub(crate) host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let host = listener.local_addr().expect("it is bound").to_string();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let (log, upstream) = (seen.clone(), server.host());
        let task = tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a bound port accepts");
                running.spawn(pass(stream, upstream.clone(), log.clone()));
            }
        });
        Self { host, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("nobody panics").clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut stream: TcpStream, upstream: String, log: Arc<Mutex<Vec<Seen>>>) -> Option<()> {
    let (seen, _) = head(&mut stream).await?;
    log.lock().expect("nobody panics").push(seen.clone());
    let mut upstream = TcpStream::connect(upstream).await.ok()?;
    if seen.method == "CONNECT" {
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.ok()?;
    } else {
        let path = seen.target.splitn(4, '/').nth(3).unwrap_or_default();
        let mut head = format!("{} /{path} HTTP/1.1\r\nconnection: close\r\n", seen.method);
        for (name, value) in seen.headers.iter().filter(|(name, _)| !name.contains("connection")) {
            write!(head, "{name}: {value}\r\n").expect("a text takes all that is written");
        }
        upstream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
    }
    copy_bidirectional(&mut stream, &mut upstream).await.ok()?;
    Some(())
}

/// A port that leads to a server, or to nobody.
pub(crate) struct Gate {
    pub(crate) host: String,
    task: Option<JoinHandle<()>>,
}

impl Gate {
    pub(crate) async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let host = listener.local_addr().expect("it is bound").to_string();
        let mut gate = Self { host, task: None };
        gate.forward(listener, server.host());
        gate
    }

    /// Ends all connections, and refuses others.
    pub(crate) async fn close(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // It is cancelled, and has dropped its sockets, when this returns.
            task.await.expect_err("it never ends by itself");
        }
    }

    pub(crate) async fn open(&mut self, server: &Server) {
        let listener = TcpListener::bind(&self.host).await.expect("the port was ours a moment ago");
        self.forward(listener, server.host());
    }

    fn forward(&mut self, listener: TcpListener, upstream: String) {
        self.task = Some(tokio::spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("a bound port accepts");
                running.spawn(join(stream, upstream.clone()));
            }
        }));
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// A Unix socket that leads to a server, until it is aborted.
pub(crate) fn socket(path: &Path, server: &Server) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).expect("the path is free");
    let upstream = server.host();
    tokio::spawn(async move {
        let mut running = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("a bound socket accepts");
            running.spawn(join(stream, upstream.clone()));
        }
    })
}

async fn join(mut stream: impl AsyncRead + AsyncWrite + Unpin, upstream: String) {
    if let Ok(mut upstream) = TcpStream::connect(upstream).await {
        // Either side may break off.
        copy_bidirectional(&mut stream, &mut upstream).await.ok();
    }
}
