//! Whole images and indexes, from a store or from another registry.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};
use windlass_content::{ByteStream, LocalStore, hash::sha256};
use windlass_images::progress::{Event, Progress, channel};
use windlass_remotes::{
    Error, Fetcher, Pushed, Pusher, Registry, RegistryPusher, Resolver, Result, from_fn, from_provider,
    push as push_all,
};
use windlass_testkit::{Artifact, Fault, Image, ImageBuilder, Index, Layer, Registry as Server};

use crate::support::{app, at_once, builder, bytes, client, count, image, paths, soon, store, stream};

const LIMIT: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// An index of two images, which have a layer in common.
fn index() -> Image {
    let of = |platform: &str| {
        let layer = |name: &str, length| Layer::new().file(name, 0o644, &bytes(length)).plain();
        ImageBuilder::new().platform(platform).layer(layer("base", 3000)).layer(layer(platform, 50)).build()
    };
    Index::of(&[of("linux/amd64"), of("linux/arm64")])
}

async fn push_from(
    source: impl Fetcher + 'static,
    client: &Registry,
    server: &Server,
    root: &Descriptor,
) -> Result<()> {
    let pusher = client.pusher(&app(&server.host(), ":v1"), root.digest()).await?;
    push_all(Arc::new(source), Arc::new(pusher), root, LIMIT, &Progress::default()).await
}

async fn push(store: &LocalStore, server: &Server, root: &Descriptor) -> Result<()> {
    push_from(from_provider(store.clone()), &client(), server, root).await
}

/// Whether the registry has all of the image, under the tag.
fn is_whole(server: &Server, repository: &str, image: &Image) -> bool {
    let has = |digest: &String, bytes: &Bytes| {
        let manifest = server.manifest(repository, digest).map(|(_, bytes)| bytes);
        manifest.or_else(|| server.blob(repository, digest)).as_ref() == Some(bytes)
    };
    image.blobs.iter().all(|(digest, (_, bytes))| has(digest, bytes))
        && server.tags(repository).get("v1") == Some(&image.root.digest().to_string())
}

#[tokio::test]
async fn images_of_all_kinds_are_pushed_from_a_store() {
    let docker = ImageBuilder::new().docker().layer(Layer::new().file("f", 0o644, b"x")).build();
    let empty = ImageBuilder::new().build();
    let artifact = Artifact::new("a/b").blob("text/plain", "text").subject(&docker.root).build();
    let list = Index::of(std::slice::from_ref(&docker));
    let mut above = Index::listing(&[index().root]);
    above.blobs.extend(index().blobs);
    for image in [image(), index(), above, docker, list, empty, artifact] {
        let (_folder, store) = store(&[&image]).await;
        let server = Server::start().await;

        push(&store, &server, &image.root).await.expect("all of it is there");

        assert!(is_whole(&server, "app", &image), "{image:?}");
        assert_eq!(server.uploads(), 0);
    }
}

#[tokio::test]
async fn what_is_listed_is_put_before_what_lists_it() {
    let mut whole = Index::listing(&[index().root, image().root]);
    whole.blobs.extend(index().blobs);
    whole.blobs.extend(image().blobs);
    let (_folder, store) = store(&[&whole]).await;
    let server = Server::start().await;

    push(&store, &server, &whole.root).await.expect("all of it is there");

    // Given the place of each node's last request in the log.
    let requests = paths(&server);
    let place = |digest: &str, tag: bool| {
        let name = if tag { "manifests/v1" } else { &digest.replace(':', "%3A") };
        let is_put = |it: &&String| it.starts_with("PUT") && (it.contains(name) || it.contains(digest));
        requests.iter().position(|it| is_put(&it)).unwrap_or_else(|| panic!("{digest} in {requests:?}"))
    };
    for (digest, (_, bytes)) in &whole.blobs {
        let manifest: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let children = ["manifests", "layers"].into_iter().filter_map(|field| manifest[field].as_array());
        for child in children.flatten().chain(manifest.get("config").filter(|it| it.get("digest").is_some()))
        {
            let child = child["digest"].as_str().expect("it has a digest");
            let above = place(digest, digest == whole.root.digest().as_ref());
            assert!(place(child, false) < above, "{child} is put before {digest}: {requests:?}");
        }
    }
    assert!(requests.last().is_some_and(|it| it == "PUT /v2/app/manifests/v1"), "the root comes last");
}

#[tokio::test]
async fn progress_tells_how_each_node_came_to_be_there() {
    let image = image();
    let layers = image.layers();
    let (_folder, store) = store(&[&image]).await;
    let server = Server::start().await;
    server.push_blob("app", image.blob(layers[0].digest()));
    server.push_blob("base", image.blob(layers[2].digest()));
    let (progress, mut events) = channel();
    let pusher = client().pusher(&app(&server.host(), ":v1"), image.root.digest()).await;
    let pusher = pusher.expect("it may be pushed to").mount_from("base");

    let source = Arc::new(from_provider(store));
    push_all(source, Arc::new(pusher), &image.root, LIMIT, &progress).await.expect("all of it is there");

    drop(progress);
    let mut seen: BTreeMap<String, Vec<Event>> = BTreeMap::new();
    while let Some(event) = events.recv().await {
        let (Event::Waiting { descriptor }
        | Event::Exists { descriptor }
        | Event::Mounted { descriptor }
        | Event::Uploading { descriptor, .. }
        | Event::Uploaded { descriptor, .. }) = &event
        else {
            panic!("{event:?} is not of a push")
        };
        seen.entry(descriptor.digest().to_string()).or_default().push(event);
    }
    let of = |node: &Descriptor| seen[node.digest().as_ref()].clone();
    let waiting = |node: &Descriptor| Event::Waiting { descriptor: node.clone() };
    let (existed, mounted) = (layers[0].clone(), layers[2].clone());
    assert_eq!(of(&existed), [waiting(&existed), Event::Exists { descriptor: existed }]);
    assert_eq!(of(&mounted), [waiting(&mounted), Event::Mounted { descriptor: mounted }]);
    for node in [&layers[1], &image.config(), &image.root] {
        let offset = node.size();
        assert_eq!(
            of(node),
            [
                waiting(node),
                Event::Uploading { descriptor: node.clone(), offset },
                Event::Uploaded { descriptor: node.clone(), transferred: offset },
            ]
        );
    }
}

#[tokio::test]
async fn bytes_that_are_sent_twice_are_counted_twice() {
    let server = Server::start().await;
    let image = ImageBuilder::new().layer(Layer::new().file("f", 0o644, &bytes(3000)).plain()).build();
    let large = image.layers().remove(0);
    let (_folder, store) = store(&[&image]).await;
    // The only upload of several chunks loses its second one.
    server.fault(Fault::lose_upload("_state=1").method("PATCH").once());
    let (progress, mut events) = channel();

    let pusher = client().pusher(&app(&server.host(), ":v1"), image.root.digest()).await;
    let (source, pusher) = (Arc::new(from_provider(store)), Arc::new(pusher.expect("it may be pushed to")));
    push_all(source, pusher, &image.root, LIMIT, &progress).await.expect("it is begun again");

    assert!(is_whole(&server, "app", &image));
    drop(progress);
    let mut transferred = None;
    while let Some(event) = events.recv().await {
        if let Event::Uploaded { descriptor, transferred: bytes } = event
            && descriptor == large
        {
            transferred = Some(bytes);
        }
    }
    // A store gives such a blob at once.
    assert_eq!(transferred, Some(2 * large.size()));
}

#[tokio::test]
async fn a_blob_that_is_lost_again_and_again_is_an_error() {
    let (image, server) = (image(), Server::start().await);
    let (_folder, store) = store(&[&image]).await;
    server.fault(Fault::lose_upload("_state=1").method("PATCH"));

    let error = push(&store, &server, &image.root).await.expect_err("it is always lost");

    assert!(matches!(error, Error::UploadLost { .. }), "{error:?}");
    assert!(server.tags("app").is_empty());
}

/// A pusher that counts.
#[derive(Debug)]
struct Counted {
    inner: RegistryPusher,
    now: AtomicUsize,
    most: AtomicUsize,
}

#[async_trait]
impl Pusher for Counted {
    async fn push(&self, descriptor: &Descriptor, content: ByteStream) -> Result<Pushed> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        let pushed = self.inner.push(descriptor, content).await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        pushed
    }
}

#[tokio::test]
async fn a_blob_that_is_damaged_in_the_store_is_named_and_not_put() {
    let image = image();
    for layer in image.layers() {
        let (_folder, store) = store(&[&image]).await;
        let server = Server::start().await;
        let mut wrong = image.blob(layer.digest()).to_vec();
        wrong[0] ^= 1;
        std::fs::write(store.path(layer.digest()), wrong).expect("it is there");

        let err = push(&store, &server, &image.root).await.expect_err("its bytes are others");

        let text = err.to_string();
        assert!(
            text.starts_with(&format!("blob {} is damaged: its bytes hash to", layer.digest())),
            "{text}"
        );
        assert_eq!(server.blob("app", layer.digest()), None);
        assert!(server.tags("app").is_empty());
    }
}

#[tokio::test]
async fn as_many_as_the_limit_says_are_in_flight() {
    let layers = (0..12).fold(ImageBuilder::new(), |image, it: u8| {
        image.layer(Layer::new().file("f", 0o644, &[it; 10]).plain())
    });
    let image = layers.build();
    let (_folder, store) = store(&[&image]).await;
    for limit in [1, 3] {
        let server = Server::start().await;
        let inner = client().pusher(&app(&server.host(), ":v1"), image.root.digest()).await;
        let inner = inner.expect("it may be pushed to");
        let pusher = Arc::new(Counted { inner, now: AtomicUsize::new(0), most: AtomicUsize::new(0) });
        let source = Arc::new(from_provider(store.clone()));

        let pushed =
            push_all(source, pusher.clone(), &image.root, at_once(limit), &Progress::default()).await;

        pushed.expect("all of it is there");
        assert_eq!(pusher.most.load(Ordering::Relaxed), limit);
    }
}

#[tokio::test]
async fn layers_that_may_not_be_distributed_stay_where_they_are() {
    let text = Bytes::from_static(b"{}");
    for kind in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        // The store does not have that layer, either.
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "mediaType": "a/b", "digest": sha256(&text), "size": 2 },
            "layers": [
                { "mediaType": kind, "digest": sha256(b"far"), "size": 3, "urls": ["https://far.example/"] },
                { "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(&text), "size": 2 },
            ],
        });
        let manifest = Bytes::from(manifest.to_string());
        let root = Descriptor::new(MediaType::ImageManifest, manifest.len() as u64, sha256(&manifest));
        let served = manifest.clone();
        let source = from_fn(move |node: Descriptor, _| {
            let known = [Bytes::from_static(b"{}"), served.clone()]
                .into_iter()
                .find(|it| sha256(it) == *node.digest());
            async move { Ok(stream(&known.expect("nothing else is asked for"))) }
        });
        let server = Server::start().await;

        push_from(source, &client(), &server, &root).await.expect("it is left out");

        assert_eq!(server.manifest("app", "v1").map(|(_, bytes)| bytes), Some(manifest));
        assert!(server.blob("app", sha256(b"far")).is_none());
    }
}

#[tokio::test]
async fn a_blob_that_the_store_lacks_is_named() {
    let image = index();
    for missing in image.blobs.keys() {
        let mut rest = image.clone();
        rest.blobs.remove(missing);
        let (_folder, store) = store(&[&rest]).await;
        let server = Server::start().await;

        let error = push(&store, &server, &image.root).await.expect_err("it is not whole");

        assert_eq!(error.to_string(), format!("{missing} not found in the content store"));
        assert!(server.tags("app").is_empty(), "nothing shows an image that is not whole");
    }
}

#[tokio::test]
async fn a_source_that_gives_another_manifest_is_found_out() {
    let image = image();
    let wrong = Bytes::from(vec![b' '; usize::try_from(image.root.size()).expect("it is small")]);
    for (bytes, why) in [
        (wrong.clone(), "gave content of digest"),
        ([&wrong[..], b" "].concat().into(), "has more than"),
        (wrong.slice(1..), "gave content of digest"),
    ] {
        let source = from_fn(move |_, _| std::future::ready(Ok(stream(&bytes))));
        let server = Server::start().await;

        let error = push_from(source, &client(), &server, &image.root).await;

        let error = error.expect_err("it is another one").to_string();
        assert!(error.starts_with(image.root.digest().as_ref()) && error.contains(why), "{error}");
        assert!(server.requests().is_empty());
    }
}

#[tokio::test]
async fn a_manifest_that_says_to_be_huge_is_not_read() {
    let root = Descriptor::new(MediaType::ImageIndex, (4 << 20) + 1, sha256(b""));
    let source = from_fn(|_, _| async { panic!("nobody reads it") });
    let server = Server::start().await;

    let error = push_from(source, &client(), &server, &root).await;

    assert!(matches!(error, Err(Error::TooLarge { .. })), "{error:?}");
}

#[tokio::test]
async fn an_interrupted_push_goes_on_where_it_was() {
    let image = index();
    let (_folder, store) = store(&[&image]).await;
    let server = Server::start().await;
    server.fault(Fault::status("/manifests/", 403).method("PUT").once());
    push(&store, &server, &image.root).await.expect_err("it is interrupted");
    let (sent, posts) = (server.requests().len(), count(&server, "POST"));
    assert!(posts > 0, "but not before the blobs were there");

    push(&store, &server, &image.root).await.expect("nothing is in its way now");

    assert!(is_whole(&server, "app", &image));
    assert_eq!(count(&server, "POST"), posts, "no blob is sent again: {:?}", &paths(&server)[sent..]);
    push(&store, &server, &image.root).await.expect("all of it is there");
    let again: Vec<_> = server.requests().into_iter().skip(sent).filter(|it| it.method == "PUT").collect();
    assert!((2..=3).contains(&again.len()), "and no manifest is put twice: {again:?}");
}

#[tokio::test]
async fn a_push_that_is_dropped_stops() {
    let image = image();
    let (_folder, store) = store(&[&image]).await;
    let server = Server::start().await;
    server.fault(Fault::delay("/blobs/uploads/", Duration::from_millis(100)));

    let pushed = tokio::time::timeout(Duration::from_millis(150), push(&store, &server, &image.root)).await;

    assert!(pushed.is_err(), "it was dropped");
    // What was on the wire may still arrive.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let seen = server.requests().len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.requests().len(), seen);
    assert!(server.tags("app").is_empty());
    soon(push(&store, &server, &image.root)).await.expect("it goes on at the second try");
    assert!(is_whole(&server, "app", &image));
}

#[tokio::test]
async fn an_image_is_copied_from_registry_to_registry() {
    let image = index();
    let from = Server::builder().token_auth().password("reader", "r").start().await;
    let to = Server::builder().token_auth().password("writer", "w").start().await;
    from.push(&image, "app", "v1");
    let client = builder()
        .credentials(from.host(), "reader", "r")
        .credentials(to.host(), "writer", "w")
        // Each copy reads and writes at once, and must not wait for itself.
        .in_flight(at_once(1))
        .build()
        .expect("the settings are good");
    let resolved = client.resolve(&app(&from.host(), ":v1")).await.expect("it is there");

    let copied = push_from(resolved.fetcher, &client, &to, &resolved.descriptor);

    soon(copied).await.expect("nothing is in its way");
    assert!(is_whole(&to, "app", &image));
    let gets: Vec<_> =
        from.requests().into_iter().filter(|it| it.method == "GET").map(|it| it.path).collect();
    let fetched = gets.iter().filter(|path| path.starts_with("/v2/")).count();
    // One more is the first one of each, which is asked for a token.
    assert!((image.blobs.len()..=image.blobs.len() + 2).contains(&fetched), "each once: {gets:?}");
}

#[tokio::test]
async fn a_copy_resumes_what_breaks_at_its_source() {
    let (image, from, to) = (image(), Server::start().await, Server::start().await);
    from.push(&image, "app", "v1");
    from.fault(Fault::truncate_at("/blobs/", 1700).once());
    let client = client();
    let resolved = client.resolve(&app(&from.host(), ":v1")).await.expect("it is there");

    let copied = push_from(resolved.fetcher, &client, &to, &resolved.descriptor);

    copied.await.expect("it is resumed");
    assert!(is_whole(&to, "app", &image));
}

#[tokio::test]
async fn what_the_source_of_a_copy_lacks_is_not_found_there() {
    let (image, from, to) = (image(), Server::start().await, Server::start().await);
    from.push(&image, "app", "v1");
    from.fault(Fault::status(image.layers()[1].digest().as_ref(), 404));
    let client = client();
    let resolved = client.resolve(&app(&from.host(), ":v1")).await.expect("it is there");

    let copied = push_from(resolved.fetcher, &client, &to, &resolved.descriptor);

    let error = copied.await.expect_err("a layer is missing");
    let name = format!("{}/app@{}", from.host(), image.layers()[1].digest());
    assert_eq!(error.to_string(), format!("{name} not found in the registry"));
}

#[tokio::test]
async fn a_copy_within_a_registry_sends_no_blobs() {
    let image = index();
    let server = Server::builder().token_auth().start().await;
    server.push(&image, "base/os", "v1");
    let client = client();
    let name = format!("{}/base/os:v1", server.host()).parse().expect("it is a reference");
    let resolved = client.resolve(&name).await.expect("it is there");
    let pusher = client.pusher(&app(&server.host(), ":v1"), image.root.digest()).await;
    let pusher = Arc::new(pusher.expect("it may be pushed to").mount_from(name.repository()));

    let copied = push_all(resolved.fetcher, pusher, &resolved.descriptor, LIMIT, &Progress::default()).await;

    copied.expect("nothing is in its way");
    assert!(is_whole(&server, "app", &image));
    let requests = server.requests();
    assert!(!requests.iter().any(|it| it.method == "PATCH" || it.path.starts_with("/v2/base/os/blobs/")));
}

#[tokio::test]
async fn a_slow_source_does_not_hold_up_the_others() {
    // Given an image one of whose layers comes only when all others are there.
    let image = image();
    let server = Arc::new(Server::start().await);
    let (slow, others) = (image.layers().remove(1), [image.layers().remove(0), image.layers().remove(2)]);
    let (blobs, seen) = (image.clone(), server.clone());
    let source = from_fn(move |node: Descriptor, _| {
        let (bytes, seen, others) = (blobs.blob(node.digest()), seen.clone(), others.clone());
        let is_slow = node.digest() == slow.digest();
        async move {
            let all_there = move || others.iter().all(|other| seen.blob("app", other.digest()).is_some());
            while is_slow && !all_there() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(stream(&bytes).boxed())
        }
    });

    soon(push_from(source, &client(), &server, &image.root)).await.expect("it comes");

    assert!(is_whole(&server, "app", &image));
}

#[tokio::test]
async fn an_index_of_far_too_much_is_refused() {
    let children = |numbers: std::ops::Range<u32>| {
        let child = |it: u32| Descriptor::new(MediaType::ImageLayer, 1, sha256(&it.to_le_bytes()));
        Index::listing(&numbers.map(child).collect::<Vec<_>>())
    };
    let halves = [children(0..25_000), children(25_000..50_000)];
    let mut image = Index::listing(&halves.clone().map(|half| half.root));
    halves.into_iter().for_each(|half| image.blobs.extend(half.blobs));
    let root = image.root.clone();
    let source = from_fn(move |node: Descriptor, _| {
        let bytes = image.blob(node.digest());
        async move { Ok(futures::stream::once(async { Ok(bytes) }).boxed()) }
    });
    let server = Server::start().await;

    let error = push_from(source, &client(), &server, &root).await.expect_err("it is too much").to_string();

    assert!(error.ends_with("it is part of more than 50000 blobs and manifests"), "{error}");
    assert!(server.requests().is_empty());
}
