//! What the registry client promises, against a registry in this process that goes wrong on demand.

use std::{error::Error as _, num::NonZeroU32, time::Duration};

use futures::TryStreamExt;
use windlass_reference::Reference;
use windlass_remotes::{Error, Registry, Resolved, Resolver};
use windlass_testkit::{Fault, Image, ImageBuilder, Layer, Registry as Server};

fn app() -> Image {
    ImageBuilder::new().layer(Layer::new().file("file", 0o644, &[7; 50_000]).plain()).build()
}

/// A client with a provider, which every client needs, and little patience.
fn client() -> Registry {
    // An error says that another test was faster.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Registry::builder().idle_timeout(Duration::from_millis(300)).build().expect("the settings are good")
}

fn reference(server: &Server, object: &str) -> Reference {
    format!("{}/library/app{object}", server.host()).parse().expect("it is a reference")
}

async fn serve(image: &Image) -> Server {
    let server = Server::start().await;
    server.push(image, "library/app", "latest");
    server
}

/// Resolves the image, and reads its layer from a byte on.
async fn layer(server: &Server, image: &Image, from: u64) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let Resolved { fetcher, .. } = client().resolve(&reference(server, ":latest")).await?;
    let chunks: Vec<_> = fetcher.fetch(&image.layers()[0], from).await?.try_collect().await?;
    Ok(chunks.concat())
}

#[tokio::test]
async fn a_name_stands_for_the_same_content_by_tag_and_by_digest() {
    let image = app();
    let server = serve(&image).await;
    for object in [":latest".to_owned(), format!("@{}", image.root.digest())] {
        let resolved = client().resolve(&reference(&server, &object)).await.expect("it is there");

        assert_eq!(resolved.descriptor.digest(), image.root.digest());
        assert_eq!(resolved.descriptor.size(), image.root.size());
        assert_eq!(resolved.name, reference(&server, &object).to_string());
    }
}

#[tokio::test]
async fn a_blob_is_resolved_by_its_digest() {
    let image = app();
    let server = serve(&image).await;
    let blob = &image.layers()[0];

    let resolved =
        client().resolve(&reference(&server, &format!("@{}", blob.digest()))).await.expect("it is there");

    assert_eq!((resolved.descriptor.digest(), resolved.descriptor.size()), (blob.digest(), blob.size()));
}

#[tokio::test]
async fn a_registry_without_head_or_digest_is_read() {
    let image = app();
    for fault in [Fault::no_head("/manifests/"), Fault::no_digest_header("/manifests/")] {
        let server = serve(&image).await;
        server.fault(fault.clone());

        let resolved = client().resolve(&reference(&server, ":latest")).await.expect("its bytes say all");

        assert_eq!(resolved.descriptor.digest(), image.root.digest(), "{fault:?}");
    }
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::no_head("/manifests/"));
    server.fault(Fault::wrong_bytes("/manifests/"));

    let object = format!("@{}", image.root.digest());
    let error = client().resolve(&reference(&server, &object)).await.expect_err("the bytes are wrong");

    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_name_that_is_not_there_is_named() {
    let server = serve(&app()).await;

    let error = client().resolve(&reference(&server, ":other")).await.expect_err("there is no such tag");

    let name = reference(&server, ":other").to_string();
    assert_eq!(error.to_string(), format!("{name} not found in the registry"));
}

#[tokio::test]
async fn a_registry_that_is_not_there_says_so_soon() {
    // Given a port on which nobody listens.
    let server = Server::start().await;
    let nobody = reference(&server, ":latest");
    drop(server);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let client = client();
    let started = std::time::Instant::now();

    let error = client.resolve(&nobody).await.expect_err("nobody listens");

    assert_eq!(error.to_string(), format!("registry {} does not answer", nobody.host()));
    assert!(error.source().expect("it has a cause").to_string().contains("refused"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[tokio::test]
async fn an_anonymous_token_is_got_once_and_used_for_all() {
    let image = app();
    let server = Server::builder().token_auth().start().await;
    server.push(&image, "library/app", "latest");

    let bytes = layer(&server, &image, 0).await.expect("a token opens it");

    assert_eq!(bytes, image.blob(image.layers()[0].digest()));
    let requests = server.requests();
    let asked: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(asked.len(), 1, "{requests:?}");
    assert!(asked[0].path.contains("repository%3Alibrary%2Fapp%3Apull"), "{}", asked[0].path);
}

#[tokio::test]
async fn a_password_opens_what_is_closed_and_is_in_no_error() {
    let image = app();
    let server = Server::builder().password("user", "hunter2").start().await;
    server.push(&image, "library/app", "latest");
    let with = |password: &str| {
        client();
        Registry::builder()
            .credentials(server.host(), "user", password)
            .build()
            .expect("the settings are good")
    };

    with("hunter2").resolve(&reference(&server, ":latest")).await.expect("the password is right");
    let error = with("wrong-secret").resolve(&reference(&server, ":latest")).await.expect_err("it is wrong");

    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let shown = format!("{error} {error:?} {:?}", with("wrong-secret"));
    assert!(!shown.contains("wrong-secret"), "{shown}");
}

#[tokio::test]
async fn a_body_that_breaks_or_stalls_is_resumed() {
    let image = app();
    let whole = image.blob(image.layers()[0].digest());
    for fault in [Fault::truncate_at("/blobs/", 20_000), Fault::stall("/blobs/", Duration::from_secs(5))] {
        let server = serve(&image).await;
        server.fault(fault.clone().once());

        let bytes = layer(&server, &image, 0).await.expect("the rest comes with another request");

        assert_eq!(bytes, whole, "{fault:?}");
        let ranges =
            server.requests().into_iter().filter_map(|request| request.headers.get("range").cloned());
        assert_eq!(ranges.count(), 1, "only the rest was asked for: {fault:?}");
    }
}

#[tokio::test]
async fn what_comes_before_the_first_byte_wanted_is_left_out() {
    let image = app();
    let whole = image.blob(image.layers()[0].digest());
    for ignored in [false, true] {
        let server = serve(&image).await;
        if ignored {
            server.fault(Fault::ignore_range("/blobs/"));
        }
        for from in [1, 30_000, whole.len() as u64 - 1, whole.len() as u64] {
            let bytes = layer(&server, &image, from).await.expect("it is there");
            assert_eq!(bytes, whole[from as usize..], "{from}, ignored: {ignored}");
        }
    }
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/blobs/", 500).times(2));
    server.fault(Fault::answer("/manifests/", 429, &[("retry-after", "1")], "").once());
    let started = std::time::Instant::now();

    layer(&server, &image, 0).await.expect("the third attempt succeeds");

    assert!(started.elapsed() >= Duration::from_secs(1), "the registry's wish was honoured");
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/manifests/", 503));
    client();
    let two = NonZeroU32::new(2).expect("two is not zero");
    let client = Registry::builder().attempts(two).build().expect("the settings are good");

    let error = client.resolve(&reference(&server, ":latest")).await.expect_err("it never succeeds");

    assert!(matches!(error, Error::Status { status: 503, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 4, "two of HEAD and two of GET");
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused() {
    let image = app();
    let server = serve(&image).await;
    let Resolved { fetcher, .. } =
        client().resolve(&reference(&server, ":latest")).await.expect("it is there");
    let mut short = image.layers()[0].clone();
    short.set_size(10);

    let Err(error) = fetcher.fetch(&short, 0).await else { panic!("the blob is longer") };

    assert!(matches!(error, Error::BadResponse { .. }), "{error:?}");
}
