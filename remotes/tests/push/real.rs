//! The same against Debian's registry, over TLS and with a password. What it has is read back by skopeo.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::Descriptor;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    process::Command,
};
use windlass_content::{Durability, LocalStore, Options, ProviderExt, hash::sha256};
use windlass_images::{ChildrenHandler, HandlerExt, dispatch, progress::Progress};
use windlass_reference::Reference;
use windlass_remotes::{
    Builder, Error, FetchHandler, Fetcher, Pushed, Pusher, Registry, Resolver, from_provider,
    hosts::HostsDir, push,
};
use windlass_testkit::{Artifact, Image, ImageBuilder, Index, Layer, RealRegistry, require};

use crate::support::{app, at_once, builder, bytes, image, layer, store, stream, trusting, untouched};

const USER: &str = "user";
const PASSWORD: &str = "hunter2";

/// The registry, and a client that may come in.
struct Real {
    registry: RealRegistry,
    hosts: HostsDir,
    folder: TempDir,
}

impl Real {
    async fn start() -> Self {
        let registry = RealRegistry::builder().tls().htpasswd(USER, PASSWORD).start().await;
        let (folder, hosts) = trusting(&registry.host(), &registry.ca_pem());
        Self { registry, hosts, folder }
    }

    fn host(&self) -> String {
        self.registry.host()
    }

    /// Settings that trust it, as nobody.
    fn stranger(&self) -> Builder {
        builder().hosts(self.hosts.clone())
    }

    fn builder(&self) -> Builder {
        self.stranger().credentials(self.host(), USER, PASSWORD)
    }

    fn client(&self) -> Registry {
        self.builder().build().expect("the settings are good")
    }

    /// Pushes an image as `app:v1`, from a store.
    async fn push(&self, image: &Image) {
        let (_folder, store) = store(&[image]).await;
        let pusher = self.client().pusher(&app(&self.host(), ":v1"), image.root.digest()).await;
        let (source, pusher) =
            (Arc::new(from_provider(store)), Arc::new(pusher.expect("it may be pushed to")));
        let progress = Progress::default();
        push(source, pusher, &image.root, at_once(4), &progress).await.expect("nothing is in its way");
    }

    /// Runs skopeo on `app:v1` with these arguments.
    async fn skopeo(&self, arguments: &[&str], to: Option<&str>) -> Vec<u8> {
        let certificates = self.folder.path().join("skopeo");
        fs::create_dir_all(&certificates).expect("there is room");
        fs::write(certificates.join("ca.crt"), self.registry.ca_pem()).expect("there is room");
        let prefix = if to.is_some() { "--src-" } else { "--" };
        let output = Command::new(require("skopeo", "skopeo"))
            .arg("--insecure-policy")
            .args(arguments)
            .arg(format!("{prefix}cert-dir={}", certificates.display()))
            .arg(format!("{prefix}creds={USER}:{PASSWORD}"))
            .arg(format!("docker://{}/app:v1", self.host()))
            .args(to)
            .stdin(Stdio::null())
            .output()
            .await
            .expect("it starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

fn index() -> Image {
    let of = |platform: &str| {
        let layer = Layer::new().file(platform, 0o644, &bytes(3000));
        ImageBuilder::new().platform(platform).layer(layer).build()
    };
    Index::of(&[of("linux/amd64"), of("linux/arm64")])
}

/// The digests of all blobs in a folder of files, whatever their names.
fn digests_in(folder: &Path) -> BTreeSet<String> {
    let entries =
        fs::read_dir(folder).expect("it is a folder").map(|entry| entry.expect("it is readable").path());
    let files = entries.filter(|path| path.is_file());
    files.map(|path| sha256(&fs::read(path).expect("it is readable")).to_string()).collect()
}

#[tokio::test]
async fn images_of_all_kinds_are_pushed_and_pulled_again() {
    let real = Real::start().await;
    let docker = ImageBuilder::new().docker().layer(Layer::new().file("f", 0o644, b"x")).build();
    let list = Index::of(std::slice::from_ref(&docker));
    for image in [image(), index(), docker, list] {
        real.push(&image).await;
        real.push(&image).await;

        let resolved = real.client().resolve(&app(&real.host(), ":v1")).await.expect("it is there");
        assert_eq!(resolved.descriptor.digest(), image.root.digest());
        let folder = tempfile::tempdir().expect("there is room");
        let options = Options::default().durability(Durability::Fast);
        let store = LocalStore::open(folder.path(), options).expect("the folder is new");
        let shared = Arc::new(store.clone());
        let fetch = FetchHandler::new(resolved.fetcher, shared.clone());
        let pulled =
            dispatch(fetch.then(ChildrenHandler::new(shared)), resolved.descriptor, at_once(4)).await;
        pulled.expect("all of it is there");
        for (digest, (_, bytes)) in &image.blobs {
            assert_eq!(digest, sha256(bytes).as_ref());
            let pulled = store.read(&layer(bytes), u64::MAX).await;
            assert_eq!(pulled.expect("it was pulled"), bytes);
        }
    }
}

#[tokio::test]
async fn what_is_pushed_is_what_skopeo_reads() {
    let real = Real::start().await;
    let docker = ImageBuilder::new().docker().layer(Layer::new().file("f", 0o644, b"x")).build();
    for (image, all) in [(image(), false), (docker, false), (index(), true)] {
        real.push(&image).await;

        let raw = real.skopeo(&["inspect", "--raw"], None).await;
        assert_eq!(Bytes::from(raw), image.blob(image.root.digest()));
        if !all {
            let inspected = real.skopeo(&["inspect"], None).await;
            let inspected: Value = serde_json::from_slice(&inspected).expect("it is JSON");
            assert_eq!(inspected["Digest"], image.root.digest().to_string());
            let layers: Vec<_> = image.layers().iter().map(|layer| layer.digest().to_string()).collect();
            assert_eq!(inspected["Layers"], serde_json::json!(layers));
        }
        let copies = tempfile::tempdir().expect("there is room");
        let (dir, oci) = (copies.path().join("dir"), copies.path().join("oci"));
        let arguments: &[&str] = match all {
            true => &["copy", "--all", "--preserve-digests"],
            false => &["copy", "--preserve-digests"],
        };
        let expected: BTreeSet<_> = image.blobs.keys().cloned().collect();
        real.skopeo(arguments, Some(&format!("dir:{}", dir.display()))).await;
        assert!(digests_in(&dir).is_superset(&expected), "{image:?}");
        // A layout takes OCI's media types only.
        if image.root.media_type().to_string().contains("vnd.oci") {
            real.skopeo(arguments, Some(&format!("oci:{}:v1", oci.display()))).await;
            assert_eq!(digests_in(&oci.join("blobs/sha256")), expected);
        }
    }
}

#[tokio::test]
async fn a_large_blob_goes_in_chunks_and_comes_back_whole() {
    let real = Real::start().await;
    let client = real.builder().upload_chunk(at_once(4 << 20)).build().expect("the settings are good");
    let content: Bytes = bytes((40 << 20) + 1);
    let blob = layer(&content);
    let pusher = client.pusher(&app(&real.host(), ""), blob.digest()).await.expect("it may be pushed to");
    let pieces = futures::stream::iter(
        content.chunks(1 << 20).map(|piece| Ok(content.slice_ref(piece))).collect::<Vec<_>>(),
    );

    let pushed = pusher.push(&blob, Box::pin(pieces)).await;

    assert_eq!(pushed.expect("nothing is in its way"), Pushed::Uploaded);
    let name = app(&real.host(), &format!("@{}", blob.digest()));
    let fetcher = client.resolve(&name).await.expect("it is there").fetcher;
    let chunks: Vec<_> =
        fetcher.fetch(&blob, 0).await.expect("it is there").try_collect().await.expect("whole");
    assert_eq!(sha256(&chunks.concat()), *blob.digest());
    let again = pusher.push(&blob, untouched()).await;
    assert_eq!(again.expect("it is there"), Pushed::Existed);
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted_and_one_that_is_in_none_is_sent() {
    let real = Real::start().await;
    let (client, there, new) = (real.client(), bytes(2500), bytes(1500));
    let pusher = async |repository: &str| {
        let name = format!("{}/{repository}", real.host()).parse().expect("it is a reference");
        client.pusher(&name, &sha256(b"no manifest")).await.expect("it may be pushed to")
    };
    pusher("base/os").await.push(&layer(&there), stream(&there)).await.expect("nothing is in its way");

    let app = pusher("app").await.mount_from("base/os");
    let mounted = app.push(&layer(&there), untouched()).await;
    let sent = app.push(&layer(&new), stream(&new)).await;

    assert_eq!(mounted.expect("it is there"), Pushed::Mounted);
    assert_eq!(sent.expect("nothing is in its way"), Pushed::Uploaded);
}

#[tokio::test]
async fn an_empty_blob_can_be_pushed() {
    let real = Real::start().await;
    let empty = layer(b"");
    let pusher = real.client().pusher(&app(&real.host(), ""), &sha256(b"no manifest")).await;

    let pushed = pusher.expect("it may be pushed to").push(&empty, stream(&Bytes::new())).await;

    assert_eq!(pushed.expect("it is a blob as any other"), Pushed::Uploaded);
}

#[tokio::test]
async fn wrong_content_is_refused_in_the_registrys_words() {
    let real = Real::start().await;
    for length in [500, 1500] {
        let pusher = real.client().pusher(&app(&real.host(), ""), &sha256(b"no manifest")).await;
        let pusher = pusher.expect("it may be pushed to");

        let pushed = pusher.push(&layer(&bytes(length)), stream(&vec![7; length].into())).await;

        let error = pushed.expect_err("these are not the bytes").to_string();
        assert!(error.contains("DIGEST_INVALID: "), "{error}");
    }
}

#[tokio::test]
async fn tags_and_repositories_are_listed() {
    let real = Real::start().await;
    let (client, image) = (real.client(), ImageBuilder::new().build());
    let (_folder, store) = store(&[&image]).await;
    let names: Vec<_> = (0..12).map(|it| format!("v{it:02}")).collect();
    for tag in &names {
        let pusher = client.pusher(&app(&real.host(), &format!(":{tag}")), image.root.digest()).await;
        let (source, pusher) =
            (Arc::new(from_provider(store.clone())), Arc::new(pusher.expect("it may be pushed to")));
        push(source, pusher, &image.root, at_once(4), &Progress::default()).await.expect("it is taken");
    }

    let mut tags: Vec<_> = client.tags(&app(&real.host(), "")).try_collect().await.expect("they are listed");
    let repositories: Vec<_> = client.catalog(&real.host()).try_collect().await.expect("they are listed");

    tags.sort();
    assert_eq!((tags, repositories), (names, vec!["app".to_owned()]));
}

#[tokio::test]
async fn an_artifact_is_found_by_what_it_is_about() {
    let real = Real::start().await;
    let image = image();
    real.push(&image).await;
    let kind = "application/vnd.example.sbom";
    let artifact = Artifact::new(kind).blob("text/plain", "text").subject(&image.root).build();
    let (_folder, store) = store(&[&artifact]).await;
    let name = app(&real.host(), &format!("@{}", artifact.root.digest()));
    let pusher = real.client().pusher(&name, artifact.root.digest()).await.expect("it may be pushed to");

    let source = Arc::new(from_provider(store));
    push(source, Arc::new(pusher), &artifact.root, at_once(4), &Progress::default())
        .await
        .expect("it is taken");

    let subject = app(&real.host(), &format!("@{}", image.root.digest()));
    let found = real.client().referrers(&subject, Some(kind)).await.expect("they are listed");
    let digests: Vec<_> = found.iter().map(Descriptor::digest).collect();
    assert_eq!(digests, [artifact.root.digest()]);
}

#[tokio::test]
async fn who_is_not_known_is_told_so() {
    let real = Real::start().await;
    let (blob, host) = (bytes(10), real.host());
    let nobody = real.stranger();
    for client in [nobody.clone(), nobody.credentials(&host, USER, "wrong-secret")] {
        let client = client.build().expect("the settings are good");
        let pusher = client.pusher(&app(&host, ""), &sha256(b"no manifest")).await.expect("nobody was asked");

        let error = pusher.push(&layer(&blob), stream(&blob)).await.expect_err("it is closed");

        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().starts_with(&format!("unauthorized: registry {host} denies access to ")));
        assert!(!format!("{error:?}").contains("wrong-secret"));
    }
}

#[tokio::test]
async fn a_registry_that_is_not_trusted_is_an_error_about_its_certificate() {
    let (real, stranger) = (Real::start().await, RealRegistry::builder().tls().start().await);
    let (_folder, hosts) = trusting(&real.host(), &stranger.ca_pem());
    let client = builder().hosts(hosts).build().expect("the settings are good");

    let error = client.resolve(&app(&real.host(), ":v1")).await.expect_err("it is not trusted");

    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_push_whose_connection_breaks_succeeds() {
    // This registry forgets an upload that broke within a chunk.
    let registry = RealRegistry::start().await;
    let layer = Layer::new().file("f", 0o644, &bytes(5 << 20)).plain();
    let image = ImageBuilder::new().layer(layer).build();
    let (_folder, store) = store(&[&image]).await;
    for cut in [100_000, 2_500_000, 4_500_000] {
        let host = cut_once(registry.host(), cut).await;
        let client = builder().upload_chunk(at_once(2 << 20)).build().expect("the settings are good");
        let name: Reference = format!("{host}/app{cut}:v1").parse().expect("it is a reference");
        let pusher = client.pusher(&name, image.root.digest()).await.expect("it may be pushed to");
        let source = Arc::new(from_provider(store.clone()));

        let pushed = push(source, Arc::new(pusher), &image.root, at_once(1), &Progress::default()).await;

        pushed.unwrap_or_else(|error| panic!("it goes on after {cut} bytes: {error}"));
        let resolved = client.resolve(&name).await.expect("it is there");
        assert_eq!(resolved.descriptor.digest(), image.root.digest());
    }
}

/// A way to a host that breaks once, after so many bytes have gone there.
async fn cut_once(host: String, after: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port is free");
    let here = listener.local_addr().expect("it is bound").to_string();
    tokio::spawn(async move {
        let mut left = Some(after);
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&host).await.expect("it listens");
            if let Some(bytes) = left.take() {
                let (mut answers, mut requests) = server.split();
                let (client_in, mut client_out) = client.split();
                let mut client_in = client_in.take(bytes);
                tokio::select! {
                    _ = tokio::io::copy(&mut client_in, &mut requests) => {}
                    _ = tokio::io::copy(&mut answers, &mut client_out) => {}
                }
                continue;
            }
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
        }
    });
    here
}
