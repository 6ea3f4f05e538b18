//! What is bounded, whoever sends it.

use std::time::{Duration, Instant};

use futures::{StreamExt, future::join_all};
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::hash::sha256;
use windlass_images::{ChildrenHandler, Handler};
use windlass_remotes::{Error, FetchHandler, Resolver};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    app, attempts, builder, built, bytes, chain, client, count, fetcher, impatient, latest, layer, many,
    named, read, serve, store,
};

#[tokio::test]
async fn no_more_is_in_flight_than_there_may_be() {
    let image = app();
    for (total, per_host) in [(64, 3), (3, 16), (2, 2), (1, 1)] {
        let server = serve(&image).await;
        server.fault(Fault::delay("/blobs/", Duration::from_millis(10)));
        let client = built(builder().in_flight(many(total)).in_flight_per_host(many(per_host)));
        let fetcher = fetcher(&client, &latest(&server)).await;

        let node = &image.layers()[0];
        let came = join_all((0..50).map(|_| read(&*fetcher, node, 0))).await;

        assert!(came.into_iter().all(|came| came.expect("it is there") == bytes(&image)));
        assert!(server.peak() <= total.min(per_host), "{total} {per_host}: {}", server.peak());
        assert!(server.connections() <= total.min(per_host) + 1, "{} connections", server.connections());
    }
}

#[tokio::test]
async fn in_flight_counts_all_hosts_and_in_flight_per_host_each() {
    let image = app();
    let (first, second) = (serve(&image).await, serve(&image).await);
    for server in [&first, &second] {
        server.fault(Fault::stall("/blobs/", Duration::from_millis(100)));
    }
    let client = built(builder().in_flight(many(3)).in_flight_per_host(many(2)));
    let (one, two) = (fetcher(&client, &latest(&first)).await, fetcher(&client, &latest(&second)).await);
    let node = &image.layers()[0];

    let came = join_all((0..12).map(|at| read(if at % 2 == 0 { &*one } else { &*two }, node, 0))).await;

    assert!(came.into_iter().all(|came| came.is_ok()));
    for server in [&first, &second] {
        assert!(server.peak() <= 2, "{}", server.peak());
    }
}

#[tokio::test]
async fn a_slow_host_does_not_hold_up_another() {
    let image = app();
    let (slow, fast) = (serve(&image).await, serve(&image).await);
    slow.fault(Fault::delay("/blobs/", Duration::from_secs(60)));
    let client = built(builder().in_flight(many(3)).in_flight_per_host(many(2)));
    let (one, two) = (fetcher(&client, &latest(&slow)).await, fetcher(&client, &latest(&fast)).await);
    let node = &image.layers()[0];

    let waiting = join_all((0..10).map(|_| read(&*one, node, 0)));
    let going = join_all((0..10).map(|_| read(&*two, node, 0)));

    tokio::select! {
        _ = waiting => panic!("the slow host takes a minute"),
        came = going => assert!(came.into_iter().all(|came| came.is_ok())),
    }
}

#[tokio::test]
async fn a_body_that_is_dropped_gives_its_turn_back() {
    let image = app();
    let server = serve(&image).await;
    let client = built(builder().in_flight(many(1)));
    let fetcher = fetcher(&client, &latest(&server)).await;
    for _ in 0..5 {
        let mut body = fetcher.fetch(&image.layers()[0], 0).await.expect("it is there");
        body.next().await.expect("there is more").expect("it comes");
    }
    client.resolve(&latest(&server)).await.expect("it is there");
}

#[tokio::test]
async fn many_and_huge_headers_are_an_error() {
    let image = app();
    for fault in [Fault::many_headers("", 5000), Fault::huge_header("", 4 << 20)] {
        for tls in [false, true] {
            let server = if tls { Server::builder().http2() } else { Server::builder() }.start().await;
            server.push(&image, "library/app", "latest");
            server.fault(fault.clone());
            let scheme = format!("server = '{}'\nskip_verify = true", server.url());
            let config = crate::support::Config::new(&server.host(), &scheme);
            let client = built(builder().hosts(config.hosts()).attempts(attempts(2)));
            let started = Instant::now();

            let error = client.resolve(&latest(&server)).await.expect_err("it is too much");

            assert!(matches!(error, Error::Transport { .. }), "{fault:?}: {error:?}");
            assert!(chain(&error).len() < 1000, "{fault:?}: {}", chain(&error));
            assert!(started.elapsed() < Duration::from_secs(20), "{fault:?}: {:?}", started.elapsed());
        }
    }
}

#[tokio::test]
async fn a_token_server_that_never_ends_is_left() {
    let image = app();
    let server = Server::builder().token_auth().start().await;
    server.push(&image, "library/app", "latest");
    for (fault, why) in [
        (Fault::endless_body("/token"), "has more than 1048576 bytes"),
        (Fault::delay("/token", Duration::from_secs(60)), "nothing came for too long"),
        (Fault::stall("/token", Duration::from_secs(60)), "nothing came for too long"),
    ] {
        server.fault(fault.clone().times(2));
        let client = built(impatient().connect_timeout(Duration::from_millis(100)).attempts(attempts(1)));

        let error = client.resolve(&latest(&server)).await.expect_err("it never ends");

        assert!(chain(&error).contains(why), "{fault:?}: {}", chain(&error));
        // The other fault of the pair is for the GET that never came.
        while client.resolve(&latest(&server)).await.is_err() {}
        server.revoke_tokens();
    }
}

#[test]
fn what_is_no_digest_never_comes_near_a_path() {
    for text in [
        "sha256:../../../etc/passwd",
        "sha256:../aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "sha256:",
        "sha256",
        "",
        ":abc",
        "../x:abc",
        "x/y:abc",
        "other:a/b",
        "other:a?b=c",
        "other:a#b",
        "other:a%2fb",
        "other:a\\b",
        "other:a\0b",
        "other:..",
        "SHA256:0000000000000000000000000000000000000000000000000000000000000000",
    ] {
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_manifest_with_a_digest_that_is_none_is_refused() {
    let server = Server::start().await;
    let (_folder, store) = store();
    for digest in ["sha256:../../../etc/passwd", "other:a/../../b", "other:a?ns=b"] {
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x/y","digest":"{digest}","size":1}},"layers":[]}}"#
        );
        server.push_raw("library/app", "latest", "application/vnd.oci.image.manifest.v1+json", manifest);
        let resolved = client().resolve(&latest(&server)).await.expect("it is there");
        let fetch = FetchHandler::new(resolved.fetcher, store.clone());
        fetch.handle(&resolved.descriptor).await.expect("it can be stored");

        let error = ChildrenHandler::new(store.clone()).handle(&resolved.descriptor).await;

        let text = chain(&*error.expect_err("it names nothing"));
        assert!(text.contains("is not a valid manifest"), "{text}");
    }
}

#[tokio::test]
async fn content_whose_digest_nobody_can_check_is_not_asked_for() {
    let image = app();
    let server = serve(&image).await;
    let (_folder, store) = store();
    let fetch = FetchHandler::new(fetcher(&client(), &latest(&server)).await, store);
    let before = server.requests().len();
    for digest in ["other:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256+b64u:Zm9v"] {
        let digest: Digest = digest.parse().expect("it is a digest");
        let node = Descriptor::new(MediaType::ImageLayer, 3, digest);

        fetch.handle(&node).await.expect_err("nobody can check it");
    }
    assert_eq!(server.requests().len(), before);
}

fn foreign(image: &windlass_testkit::Image, url: &str) -> Descriptor {
    let mut node = image.layers()[0].clone();
    node.set_urls(Some(vec!["not a url".into(), "file:///etc/passwd".into(), url.into()]));
    node
}

#[tokio::test]
async fn urls_of_foreign_layers_are_asked_only_on_request_and_without_credentials() {
    let image = app();
    let server = Server::builder().password("user", "hunter2").start().await;
    server.push(&image, "library/app", "latest");
    server.fault(Fault::status(&format!("/library/app/blobs/{}", image.layers()[0].digest()), 404));
    let other = serve(&image).await;
    let closed = Server::builder().password("user", "hunter2").start().await;
    closed.push(&image, "library/app", "latest");
    // At another host, at the registry itself, and at a host that we could log in to.
    for (at, wanted, good) in
        [(&other, true, true), (&other, false, false), (&server, true, false), (&closed, true, false)]
    {
        let path = format!("/v2/library/app/blobs/{}?x=1", image.layers()[0].digest());
        let path = if std::ptr::eq(at, &server) { "/v2/foreign".to_owned() } else { path };
        let node = foreign(&image, &format!("{}{path}", at.url()));
        let config = crate::support::Config::new(
            &server.host(),
            &format!("server = '{}'\n[header]\nx-secret = 'blue'", server.url()),
        );
        let builder = builder().credentials(server.host(), "user", "hunter2").hosts(config.hosts());
        let client = built(builder.credentials(closed.host(), "user", "hunter2").foreign_urls(wanted));
        let fetcher = fetcher(&client, &latest(&server)).await;
        let before = other.requests().len();

        let came = read(&*fetcher, &node, 30_000).await;

        assert_eq!(came.is_ok(), good, "{}: {came:?}", at.host());
        assert_eq!(other.requests().len() > before, good && wanted, "{}", at.host());
    }
    let asked = [other.requests(), closed.requests(), server.requests()].concat();
    let asked: Vec<_> =
        asked.iter().filter(|it| it.path.contains("?x=1") || it.path.contains("/foreign")).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    for request in asked {
        for name in ["authorization", "x-secret"] {
            assert!(!request.headers.contains_key(name), "{request:?}");
        }
    }
}

#[tokio::test]
async fn foreign_urls_off_tls_are_not_asked() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/blobs/", 404));
    let client = built(builder().foreign_urls(true));
    let fetcher = fetcher(&client, &latest(&server)).await;
    let node = foreign(&image, "http://192.0.2.1/blob");

    let error = read(&*fetcher, &node, 0).await.expect_err("it is nowhere");

    assert!(matches!(error.downcast_ref(), Some(Error::NotFound { .. })), "{error:?}");
}

#[tokio::test]
async fn a_registry_that_has_a_foreign_layer_is_asked_first() {
    let image = app();
    let (server, other) = (serve(&image).await, serve(&image).await);
    let client = built(builder().foreign_urls(true));
    let fetcher = fetcher(&client, &named(&server.host(), ":latest")).await;
    let node = foreign(&image, &format!("{}/blob", other.url()));

    assert!(read(&*fetcher, &node, 0).await.expect("it is there") == bytes(&image));
    assert_eq!((count(&server, "GET", "/blobs/"), other.requests().len()), (1, 0));
    assert_eq!(sha256(&layer(&client, &server, &image, 0).await.expect("it is there")), *node.digest());
}
