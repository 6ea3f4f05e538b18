//! Blobs: how they are sent, and which ones are not.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream};
use oci_spec::image::{Descriptor, MediaType};
use windlass_content::{ByteStream, hash::sha256};
use windlass_remotes::{Error, Pushed, Pusher, Registry, hosts::HostsDir};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    CHUNK, app, at_once, builder, bytes, client, count, has, layer, log, push_blob, pusher, stream, trusting,
    untouched,
};

#[tokio::test]
async fn a_blob_that_is_there_is_not_even_read() {
    let (server, blob) = (Server::start().await, bytes(5000));
    server.push_blob("app", blob.clone());

    let pushed = pusher(&client(), &server).await.push(&layer(&blob), untouched()).await;

    assert_eq!(pushed.expect("it is there"), Pushed::Existed);
    assert_eq!(log(&server), ["HEAD"]);
}

#[tokio::test]
async fn a_blob_goes_in_one_request_if_it_fits_and_else_in_chunks() {
    for (length, requests) in [
        (0, &["HEAD", "POST 0", "PUT 0"][..]),
        (1, &["HEAD", "POST 0", "PUT 1"]),
        (CHUNK, &["HEAD", "POST 0", "PUT 1000"]),
        (CHUNK + 1, &["HEAD", "POST 0", "PATCH 0-999", "PATCH 1000-1000", "PUT 0"]),
        (3 * CHUNK, &["HEAD", "POST 0", "PATCH 0-999", "PATCH 1000-1999", "PATCH 2000-2999", "PUT 0"]),
    ] {
        for builder in [Server::builder(), Server::builder().relative_locations()] {
            let (server, blob) = (builder.start().await, bytes(length));

            let pushed = push_blob(&client(), &server, &blob).await;

            assert_eq!(pushed.expect("nothing is in its way"), Pushed::Uploaded, "{length}");
            assert!(has(&server, &blob), "{length}");
            assert_eq!(log(&server), requests, "{length}");
            assert_eq!(server.uploads(), 0, "{length}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_knows_no_head_is_sent_the_blob() {
    let (server, blob) = (Server::start().await, bytes(10));
    server.fault(Fault::no_head("/blobs/"));

    push_blob(&client(), &server, &blob).await.expect("it takes blobs all the same");

    assert!(has(&server, &blob));
}

#[tokio::test]
async fn chunks_are_as_long_as_the_registry_wants_them() {
    let (server, blob) = (Server::builder().chunk_min(1700).start().await, bytes(4000));

    push_blob(&client(), &server, &blob).await.expect("nothing is in its way");

    assert!(has(&server, &blob));
    assert_eq!(log(&server)[2..], ["PATCH 0-1699", "PATCH 1700-3399", "PATCH 3400-3999", "PUT 0"]);
}

#[tokio::test]
async fn a_registry_that_wants_chunks_which_fit_no_memory_is_refused() {
    let server = Server::start().await;
    let headers = [("location", "/v2/app/blobs/uploads/x"), ("oci-chunk-min-length", "1000000000000")];
    server.fault(Fault::answer("/uploads/", 202, &headers, ""));
    let large = Descriptor::new(MediaType::ImageLayer, 100 << 20, sha256(b""));

    let error = pusher(&client(), &server)
        .await
        .push(&large, stream(&bytes(CHUNK)))
        .await
        .expect_err("it is too much");

    let url = format!("{}/v2/app/blobs/uploads/", server.url());
    let why = "it wants chunks of 1000000000000 bytes; 67108864 is the limit";
    assert_eq!(error.to_string(), format!("{url} gave an answer that cannot be used: {why}"));
}

#[tokio::test]
async fn an_upload_that_goes_on_at_another_host_does_so_without_credentials() {
    for large in [false, true] {
        let server = Server::builder().password("user", "secret").start().await;
        let other = Server::start().await;
        let there = format!("{}/storage/1?_state=a%2Fb", other.url());
        server.fault(Fault::answer("/uploads/", 202, &[("location", &there)], "").method("POST"));
        other.fault(Fault::answer("/storage/", 202, &[("location", "2?_state=x")], "").method("PATCH"));
        other.fault(Fault::status("/storage/", 201).method("PUT"));
        let client = builder().credentials(server.host(), "user", "secret").build().expect("they are good");

        push_blob(&client, &server, &bytes(if large { 1500 } else { 500 })).await.expect("it is taken there");

        let requests = other.requests();
        assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
        let last = requests.last().expect("it ended there");
        let state =
            if large { "/storage/2?_state=x&digest=sha256" } else { "/storage/1?_state=a%2Fb&digest=sha256" };
        assert!(last.path.starts_with(state), "{}", last.path);
        assert!(server.requests().iter().any(|request| request.headers.contains_key("authorization")));
    }
}

#[tokio::test]
async fn a_location_that_cannot_be_used_is_refused() {
    let server = Server::builder().tls().start().await;
    let plain = Server::start().await;
    let (_folder, hosts) = trusting(&server.host(), &server.ca_pem());
    let client = builder().hosts(hosts).build().expect("the settings are good");
    let insecure = format!("{}/v2/app/blobs/uploads/x", plain.url());
    for (headers, why) in [
        (vec![], "it does not say where the upload goes on"),
        (vec![("location", "http://")], "it does not say where the upload goes on"),
        (vec![("location", "mailto:nobody")], "it does not say where the upload goes on"),
        (vec![("location", &*insecure)], "it leads an upload from TLS to something else"),
    ] {
        server.fault(Fault::answer("/uploads/", 202, &headers, "").method("POST").once());

        let error = push_blob(&client, &server, &bytes(9)).await.expect_err("it cannot go on");

        let url = format!("{}/v2/app/blobs/uploads/", server.url());
        assert_eq!(error.to_string(), format!("{url} gave an answer that cannot be used: {why}"));
    }
    assert!(plain.requests().is_empty());
}

#[tokio::test]
async fn a_source_that_is_not_what_was_said_is_an_error_and_its_upload_is_cancelled() {
    let failing = |before: Bytes| -> ByteStream {
        let failure = stream::once(async { Err(io::Error::other("the disk is on fire")) });
        stream(&before).chain(failure).boxed()
    };
    for length in [500, 1500, 2500] {
        for (content, why) in [
            (stream(&bytes(length - 1)), format!("there are {} bytes instead of {length}", length - 1)),
            (stream(&Bytes::new()), format!("there are 0 bytes instead of {length}")),
            (stream(&bytes(length + 1)), format!("there are more than {length} bytes")),
            (failing(bytes(length - 1)), "the disk is on fire".to_owned()),
        ] {
            let (server, blob) = (Server::start().await, bytes(length));

            let error = pusher(&client(), &server).await.push(&layer(&blob), content).await;

            let error = error.expect_err("it is not what was said");
            let cause = std::error::Error::source(&error).expect("it has a cause").to_string();
            assert_eq!(
                (error.to_string(), cause),
                (format!("cannot read {} to push it", layer(&blob).digest()), why)
            );
            assert!(!error.is_transient());
            assert_eq!((count(&server, "PUT"), server.uploads()), (0, 0), "{:?}", log(&server));
        }
    }
}

#[tokio::test]
async fn a_digest_that_the_registry_refuses_is_an_error_with_its_words() {
    for length in [500, 1500] {
        let (server, blob) = (Server::start().await, bytes(length));
        let other = Bytes::from(vec![7; length]);

        let error = pusher(&client(), &server).await.push(&layer(&blob), stream(&other)).await;

        let error = error.expect_err("these are not the bytes").to_string();
        assert!(error.contains(" answered 400 to "), "{error}");
        assert!(error.ends_with(": DIGEST_INVALID: the digest is not that of the content"), "{error}");
        assert_eq!(count(&server, "PUT"), 1, "asking again does not help");
    }
}

#[tokio::test]
async fn a_refusal_is_an_error_with_the_registrys_words() {
    let body = r#"{"errors":[{"code":"DENIED","message":"not on a Sunday"}]}"#;
    for (status, text) in [
        (401, "unauthorized: registry {host} denies access to {url}: DENIED: not on a Sunday"),
        (403, "unauthorized: registry {host} denies access to {url}: DENIED: not on a Sunday"),
        (404, "{host}/app not found in the registry"),
        (413, "registry {host} answered 413 to {url}: DENIED: not on a Sunday"),
    ] {
        for method in ["POST", "PATCH", "PUT"] {
            let server = Server::start().await;
            server.fault(Fault::answer("/uploads/", status, &[], body).method(method));

            let error = push_blob(&client(), &server, &bytes(1500)).await.expect_err("it is refused");

            if status == 404 && method != "POST" {
                // This is what a lost upload looks like.
                assert!(matches!(error, Error::UploadLost { .. }), "{method}: {error}");
                continue;
            }
            let upload = if method == "POST" { "" } else { "upload-0" };
            let url = format!("{}/v2/app/blobs/uploads/{upload}", server.url());
            assert_eq!(error.to_string(), text.replace("{host}", &server.host()).replace("{url}", &url));
            assert_eq!((count(&server, method), server.uploads()), (1, 0), "{status} {method}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_asks_to_wait_is_waited_for() {
    let wait = async |method: &'static str, status, length| {
        let (server, blob) = (Server::start().await, bytes(length));
        server.fault(Fault::answer("/blobs/", status, &[("retry-after", "1")], "").method(method).once());
        let started = Instant::now();

        push_blob(&client(), &server, &blob).await.expect("it is only busy");

        let (took, tries) = (started.elapsed(), log(&server));
        assert!(took >= Duration::from_secs(1), "{method} {status}: {took:?}");
        assert!(has(&server, &blob), "{method} {status}: {tries:?}");
    };
    let cases = [("HEAD", 503, 10), ("POST", 429, 10), ("PATCH", 429, 1500), ("PATCH", 503, 1500)];
    let more = [("PUT", 429, 1500), ("PUT", 503, 10), ("PUT", 503, 1500)];
    join_all(cases.into_iter().chain(more).map(|(method, status, length)| wait(method, status, length)))
        .await;
}

#[tokio::test]
async fn what_stays_broken_is_an_error_after_so_many_attempts() {
    for (method, length) in [("HEAD", 10), ("POST", 10), ("PATCH", 1500), ("PUT", 10), ("PUT", 1500)] {
        let server = Server::start().await;
        server.fault(Fault::status("/uploads/", 500).method(method));
        server.fault(Fault::status("/blobs/sha256", 500).method(method));
        let client = builder().attempts(std::num::NonZeroU32::new(2).expect("two is not zero")).build();

        let error = push_blob(&client.expect("the settings are good"), &server, &bytes(length)).await;

        let error = error.expect_err("it stays broken");
        assert!(matches!(error, Error::Status { status: 500, .. }), "{method}: {error}");
        assert_eq!(count(&server, method), 2, "{method}: {:?}", log(&server));
    }
}

#[tokio::test]
async fn a_large_blob_is_never_in_memory() {
    // Given a source that notes how far ahead of the registry it is whenever it is asked for more.
    let (chunk, piece, pieces) = (1 << 20, Bytes::from(vec![7; 256 << 10]), 256);
    let server = std::sync::Arc::new(Server::start().await);
    let blob = layer(&vec![7; 64 << 20]);
    let (handed, ahead) = <(AtomicU64, std::sync::Arc<AtomicU64>)>::default();
    let (most, log, length) = (ahead.clone(), server.clone(), piece.len() as u64);
    let source = stream::repeat(piece).take(pieces).map(move |piece| {
        let arrived: u64 = log.requests().iter().map(|request| request.body_length).sum();
        let handed = handed.fetch_add(length, Ordering::Relaxed) + length;
        most.fetch_max(handed - arrived, Ordering::Relaxed);
        Ok(piece)
    });
    let client = builder().upload_chunk(at_once(chunk)).build().expect("the settings are good");

    let pushed = pusher(&client, &server).await.push(&blob, source.boxed()).await;

    assert_eq!(pushed.expect("nothing is in its way"), Pushed::Uploaded);
    let ahead = ahead.load(Ordering::Relaxed);
    assert!((1..=2 * chunk as u64).contains(&ahead), "{ahead} bytes were in memory");
}

#[tokio::test]
async fn a_registry_that_may_not_be_pushed_to_is_a_mistake_in_the_settings() {
    let folder = tempfile::tempdir().expect("there is room");
    let host = folder.path().join("r.example");
    std::fs::create_dir(&host).expect("the folder is new");
    std::fs::write(host.join("hosts.toml"), "capabilities = [\"pull\", \"resolve\"]\n")
        .expect("there is room");
    let hosts = HostsDir::new(folder.path());
    let client: Registry = builder().hosts(hosts).build().expect("the settings are good");

    let error = client.pusher(&app("r.example", ""), layer(b"").digest()).await.expect_err("it may not");

    let why = "no server that is configured for r.example may take content in";
    assert_eq!(error.to_string(), format!("cannot use the registry settings: {why}"));
}

#[tokio::test]
async fn a_registry_may_take_its_time_to_store_a_large_blob() {
    let (server, blob) = (Server::start().await, bytes(48 << 20));
    server.fault(Fault::delay("digest=", Duration::from_millis(1500)).method("PUT"));
    let patience = Duration::from_millis(500);
    let client = builder().idle_timeout(patience).connect_timeout(patience).upload_chunk(at_once(8 << 20));

    push_blob(&client.build().expect("the settings are good"), &server, &blob).await.expect("it is stored");

    assert!(has(&server, &blob));
    assert_eq!(count(&server, "PUT"), 1);
}

#[tokio::test]
async fn uploads_go_over_http_2_as_well() {
    for length in [0, 500, 300_000] {
        let (server, blob) = (Server::builder().http2().start().await, bytes(length));
        let (_folder, hosts) = trusting(&server.host(), &server.ca_pem());
        let client = builder().hosts(hosts).upload_chunk(at_once(100_000)).build();
        server.fault(Fault::drop_upload_after("_state=1", 70_000).method("PATCH").once());

        push_blob(&client.expect("the settings are good"), &server, &blob).await.expect("it is sent");

        assert!(has(&server, &blob), "{length}");
    }
}

#[tokio::test]
async fn a_refusal_is_heard_before_all_is_sent() {
    let body = r#"{"errors":[{"code":"DENIED","message":"too much"}]}"#;
    let (server, blob) = (Server::start().await, bytes(8 << 20));
    server.fault(Fault::answer("/uploads/", 403, &[], body).method("PUT"));
    server.fault(Fault::unread("/uploads/").method("PUT"));
    let client = builder().upload_chunk(at_once(8 << 20)).build().expect("the settings are good");

    let error = push_blob(&client, &server, &blob).await.expect_err("it is refused");

    assert!(error.to_string().ends_with(": DENIED: too much"), "{error}");
}
