//! What the tests share: clients, content, and the registry's log as text.

use std::{num::NonZeroUsize, path::Path, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream};
use oci_spec::image::{Descriptor, MediaType};
use tempfile::TempDir;
use windlass_content::{
    ByteStream, Durability, Ingest, Ingester, LocalStore, Options, WriterExt, hash::sha256,
};
use windlass_reference::Reference;
use windlass_remotes::{Builder, Pushed, Pusher, Registry, RegistryPusher, Result, hosts::HostsDir};
use windlass_testkit::{Image, ImageBuilder, Layer, Registry as Server};

/// How much these clients send at once, in bytes.
pub(crate) const CHUNK: usize = 1000;

/// Settings with small chunks, and a provider, which every client needs.
pub(crate) fn builder() -> Builder {
    // An error says that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Registry::builder().upload_chunk(at_once(CHUNK))
}

pub(crate) fn client() -> Registry {
    builder().build().expect("the settings are good")
}

pub(crate) fn at_once(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("the test gives more than zero")
}

/// `app` on this host, with `:tag`, `@digest` or nothing.
pub(crate) fn app(host: &str, object: &str) -> Reference {
    format!("{host}/app{object}").parse().expect("it is a reference")
}

/// A pusher of blobs into `app`.
pub(crate) async fn pusher(client: &Registry, server: &Server) -> RegistryPusher {
    let nothing = sha256(b"no manifest");
    client.pusher(&app(&server.host(), ""), &nothing).await.expect("it may be pushed to")
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(length: usize) -> Bytes {
    (0..length).map(|it| (it % 251) as u8).collect()
}

pub(crate) fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, sha256(bytes))
}

/// These bytes in pieces that fit no chunk.
pub(crate) fn stream(bytes: &Bytes) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(333).map(|piece| Ok(bytes.slice_ref(piece))).collect();
    stream::iter(pieces).boxed()
}

/// A stream that may not be asked for anything.
pub(crate) fn untouched() -> ByteStream {
    stream::once(async { panic!("nobody needs these bytes") }).boxed()
}

/// Pushes a blob into `app`.
pub(crate) async fn push_blob(client: &Registry, server: &Server, bytes: &Bytes) -> Result<Pushed> {
    pusher(client, server).await.push(&layer(bytes), stream(bytes)).await
}

/// What the registry has of a blob.
pub(crate) fn has(server: &Server, bytes: &Bytes) -> bool {
    server.blob("app", sha256(bytes)).is_some_and(|there| there == *bytes)
}

/// The requests, as `METHOD first-last` of a chunk or `METHOD length`.
pub(crate) fn log(server: &Server) -> Vec<String> {
    let entry = |request: windlass_testkit::Request| {
        let what = request.headers.get("content-range").or_else(|| request.headers.get("content-length"));
        format!("{} {}", request.method, what.map_or("", String::as_str)).trim_end().to_owned()
    };
    server.requests().into_iter().map(entry).collect()
}

/// The methods and paths of all requests.
pub(crate) fn paths(server: &Server) -> Vec<String> {
    server.requests().into_iter().map(|it| format!("{} {}", it.method, it.path)).collect()
}

/// How many requests had this method.
pub(crate) fn count(server: &Server, method: &str) -> usize {
    server.requests().iter().filter(|request| request.method == method).count()
}

/// An image of several layers, the largest of which does not fit into one chunk.
pub(crate) fn image() -> Image {
    let layer = |name: &str, length| Layer::new().file(name, 0o644, &bytes(length)).plain();
    ImageBuilder::new().layer(layer("a", 20)).layer(layer("b", 3000)).layer(layer("c", 40)).build()
}

/// A store that has these images.
pub(crate) async fn store(images: &[&Image]) -> (TempDir, LocalStore) {
    let folder = tempfile::tempdir().expect("there is room");
    let options = Options::default().durability(Durability::Fast);
    let store = LocalStore::open(folder.path(), options).expect("the folder is new");
    for (_, (media_type, bytes)) in images.iter().flat_map(|image| &image.blobs) {
        let descriptor =
            Descriptor::new(MediaType::from(media_type.as_str()), bytes.len() as u64, sha256(bytes));
        if let Ingest::Open(mut writer) =
            store.ingest(descriptor.digest().as_ref(), &descriptor).await.expect("there is room")
        {
            writer.write(bytes.clone()).await.expect("there is room");
            writer.commit(windlass_content::Labels::new()).await.expect("the bytes are right");
        }
    }
    (folder, store)
}

/// A folder of host configurations that trusts this authority at this host.
pub(crate) fn trusting(host: &str, ca_pem: &str) -> (TempDir, HostsDir) {
    let folder = tempfile::tempdir().expect("there is room");
    write_hosts(folder.path(), host, ca_pem);
    let hosts = HostsDir::new(folder.path());
    (folder, hosts)
}

fn write_hosts(root: &Path, host: &str, ca_pem: &str) {
    let folder = root.join(host);
    std::fs::create_dir(&folder).expect("the folder is new");
    std::fs::write(folder.join("ca.pem"), ca_pem).expect("there is room");
    let text = format!("server = \"https://{host}\"\nca = \"ca.pem\"\n");
    std::fs::write(folder.join("hosts.toml"), text).expect("there is room");
}

/// Long enough for what takes no time, and too short for a test to hang.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it ends soon")
}
