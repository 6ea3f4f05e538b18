//! Manifests: what is put, and what is refused before.

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::hash::{Hasher, sha256};
use windlass_remotes::{Error, Pushed, Pusher, Registry, Result};
use windlass_testkit::{Fault, Image, ImageBuilder, Registry as Server};

use crate::support::{app, builder, client, count, image, log, stream, untouched};

/// A registry that has all blobs of an image, but not its manifest.
async fn blobs_of(image: &Image) -> Server {
    let server = Server::start().await;
    for descriptor in image.layers().iter().chain([&image.config()]) {
        server.push_blob("app", image.blob(descriptor.digest()));
    }
    server
}

/// Pushes a manifest as the root, under a tag.
async fn push(client: &Registry, server: &Server, manifest: &Descriptor, bytes: &Bytes) -> Result<Pushed> {
    let pusher = client.pusher(&app(&server.host(), ":v1"), manifest.digest()).await?;
    pusher.push(manifest, stream(bytes)).await
}

fn bytes_of(image: &Image) -> Bytes {
    image.blob(image.root.digest())
}

#[tokio::test]
async fn only_the_root_is_put_under_the_tag() {
    let image = image();
    for (root, tagged) in [(image.root.digest().clone(), true), (sha256(b"an index above"), false)] {
        let server = blobs_of(&image).await;
        let pusher = client().pusher(&app(&server.host(), ":v1"), &root).await.expect("it may be pushed to");

        let pushed = pusher.push(&image.root, stream(&bytes_of(&image))).await;

        assert_eq!(pushed.expect("its blobs are there"), Pushed::Uploaded);
        let there = server.manifest("app", image.root.digest());
        assert_eq!(there, Some((image.root.media_type().to_string(), bytes_of(&image))));
        assert_eq!(server.tags("app").contains_key("v1"), tagged);
    }
}

#[tokio::test]
async fn a_reference_without_a_tag_puts_the_root_by_its_digest() {
    let image = image();
    for object in [String::new(), format!("@{}", image.root.digest())] {
        let server = blobs_of(&image).await;
        let pusher = client().pusher(&app(&server.host(), &object), image.root.digest()).await;

        let pushed = pusher.expect("it may be pushed to").push(&image.root, stream(&bytes_of(&image))).await;

        assert_eq!(pushed.expect("its blobs are there"), Pushed::Uploaded);
        let tags = server.tags("app");
        // A reference without any object means `latest`.
        assert_eq!(tags.keys().collect::<Vec<_>>(), if object.is_empty() { vec!["latest"] } else { vec![] });
    }
}

#[tokio::test]
async fn a_manifest_that_is_there_is_not_put_again() {
    let image = image();
    let server = blobs_of(&image).await;
    let client = client();
    push(&client, &server, &image.root, &bytes_of(&image)).await.expect("its blobs are there");

    let pushed = push(&client, &server, &image.root, &bytes_of(&image)).await;

    assert_eq!(pushed.expect("it is there"), Pushed::Existed);
    assert_eq!(count(&server, "PUT"), 1);
}

#[tokio::test]
async fn a_tag_that_means_something_else_is_moved() {
    let (image, other) = (image(), ImageBuilder::new().build());
    let server = blobs_of(&image).await;
    server.push(&other, "app", "v1");

    let pushed = push(&client(), &server, &image.root, &bytes_of(&image)).await;

    assert_eq!(pushed.expect("its blobs are there"), Pushed::Uploaded);
    assert_eq!(server.tags("app")["v1"], image.root.digest().to_string());
}

#[tokio::test]
async fn a_registry_that_says_little_is_put_the_manifest() {
    let image = image();
    for fault in [Fault::no_head("/manifests/"), Fault::no_digest_header("/manifests/")] {
        let server = blobs_of(&image).await;
        server.push(&image, "app", "v1");
        server.fault(fault.clone());

        let pushed = push(&client(), &server, &image.root, &bytes_of(&image)).await;

        assert_eq!(pushed.expect("it is taken"), Pushed::Uploaded, "{fault:?}");
        assert_eq!(count(&server, "PUT"), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_registry_that_took_something_else_is_found_out() {
    let image = image();
    let server = blobs_of(&image).await;
    server.fault(Fault::wrong_digest_header("/manifests/").method("PUT"));

    let error = push(&client(), &server, &image.root, &bytes_of(&image)).await.expect_err("it says so");

    let Error::DigestMismatch { expected, actual, .. } = &error else { panic!("{error:?}") };
    assert_eq!(expected, image.root.digest());
    assert_ne!(actual, expected);
}

#[tokio::test]
async fn a_manifest_may_have_a_digest_that_the_registry_does_not_use() {
    let image = image();
    let server = blobs_of(&image).await;
    let any: Digest = format!("sha512:{}", "0".repeat(128)).parse().expect("it is a digest");
    let mut hasher = Hasher::new(&any).expect("it is supported");
    hasher.update(&bytes_of(&image));
    let root = Descriptor::new(MediaType::ImageManifest, image.root.size(), hasher.finish());

    let pushed = push(&client(), &server, &root, &bytes_of(&image)).await;

    assert_eq!(pushed.expect("both digests are right"), Pushed::Uploaded);
    assert_eq!(server.tags("app")["v1"], image.root.digest().to_string(), "which is the registry's choice");
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_said_is_never_put() {
    let image = image();
    let right = bytes_of(&image);
    let length = right.len();
    let mut wrong = right.to_vec();
    wrong[length / 2] ^= 1;
    for (bytes, why) in [
        (wrong.into(), "gave content of digest"),
        (right.slice(1..), "cannot read"),
        ([&right[..], b" "].concat().into(), "cannot read"),
    ] {
        let server = blobs_of(&image).await;

        let error = push(&client(), &server, &image.root, &bytes).await.expect_err("it is not what was said");

        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(log(&server), ["HEAD"]);
    }
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_refused_unread() {
    let server = Server::start().await;
    let manifest = Descriptor::new(MediaType::ImageManifest, 1001, sha256(b""));
    let client = builder().max_manifest_size(1000).build().expect("the settings are good");
    let pusher = client.pusher(&app(&server.host(), ":v1"), manifest.digest()).await;

    let error =
        pusher.expect("it may be pushed to").push(&manifest, untouched()).await.expect_err("it is large");

    assert!(matches!(error, Error::TooLarge { limit: 1000, .. }), "{error:?}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn what_the_registry_says_of_a_manifest_is_repeated() {
    let server = Server::start().await;
    let image = image();

    let error = push(&client(), &server, &image.root, &bytes_of(&image)).await.expect_err("it has no blobs");

    let Error::Status { status: 400, message, .. } = &error else { panic!("{error:?}") };
    let missing = message.strip_prefix("MANIFEST_BLOB_UNKNOWN: ").expect("it is the registry's error");
    assert!(missing.starts_with("sha256:"), "{missing}");
}

#[tokio::test]
async fn a_registry_that_fails_once_is_put_the_manifest_again() {
    let image = image();
    for fault in
        [Fault::status("/manifests/", 503), Fault::hang_up("/manifests/"), Fault::lose_answer("/manifests/")]
    {
        for method in ["HEAD", "PUT"] {
            let server = blobs_of(&image).await;
            server.fault(fault.clone().method(method).once());

            let pushed = push(&client(), &server, &image.root, &bytes_of(&image)).await;

            assert_eq!(pushed.expect("it was only once"), Pushed::Uploaded, "{method} {fault:?}");
            assert!(server.tags("app").contains_key("v1"));
        }
    }
}

#[tokio::test]
async fn a_reference_with_another_digest_is_no_place_for_a_manifest() {
    let (image, other) = (image(), sha256(b"other"));
    let name = app("r.example", &format!(":v1@{other}"));

    let error = client().pusher(&name, image.root.digest()).await.expect_err("the digests differ");

    let why = format!("{} cannot be pushed as {name}, which has another digest", image.root.digest());
    assert_eq!(error.to_string(), format!("cannot use the registry settings: {why}"));
}
