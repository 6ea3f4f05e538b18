//! Bodies that break, stall, or are not what was asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use oci_spec::image::{Descriptor, MediaType};
use windlass_content::{ProviderExt, hash::sha256};
use windlass_images::Handler;
use windlass_remotes::{Error, FetchHandler, Registry};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    Config, Outcome, Script, app, attempts, builder, built, bytes, chain, client, count, cut, fetcher,
    headers, impatient, latest, layer, named, push, read, reply, serve, store,
};

const LAYER: &[u8] = b"the bytes of a layer";

fn small() -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, LAYER.len() as u64, sha256(LAYER))
}

/// Reads [`LAYER`] from a server that answers all requests for blobs so.
async fn scripted(
    client: &Registry,
    from: u64,
    answer: impl Fn(&crate::support::Seen) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> (Outcome<Vec<u8>>, Script) {
    let script = Script::start(move |seen| match seen.target.contains("/manifests/") {
        true => reply(200, &[], br#"{"layers":[]}"#),
        false => answer(seen),
    })
    .await;
    let fetcher = fetcher(client, &named(&script.host, ":1")).await;
    let outcome = read(&*fetcher, &small(), from).await;
    (outcome, script)
}

#[tokio::test]
async fn a_body_that_breaks_goes_on_where_it_broke() {
    let image = app();
    let whole = bytes(&image);
    let size = whole.len();
    for at in [0, 1, size / 2, size - 1] {
        for fault in [Fault::truncate_at("/blobs/", at), Fault::reset("/blobs/", at)] {
            let server = serve(&image).await;
            server.fault(fault.clone().once());

            let came = layer(&client(), &server, &image, 0).await.expect("the rest comes");

            assert!(came == whole, "{fault:?}");
            let (ranges, conditions) =
                (headers(&server, "/blobs/", "range"), headers(&server, "/blobs/", "if-range"));
            assert_eq!(count(&server, "GET", "/blobs/"), 2, "{fault:?}");
            if at == 0 {
                assert_eq!((ranges.len(), conditions.len()), (0, 0), "{fault:?}");
            } else {
                assert_eq!(ranges, [format!("bytes={at}-{}", size - 1)], "{fault:?}");
                assert_eq!(conditions, [format!("\"{}\"", image.layers()[0].digest())], "{fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_asked_for_anew() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::stall("/blobs/", Duration::from_secs(60)).once());

    let came = layer(&built(impatient()), &server, &image, 0).await.expect("the rest comes");

    assert!(came == bytes(&image));
    let range = format!("bytes={}-{}", came.len() / 2, came.len() - 1);
    assert_eq!(headers(&server, "/blobs/", "range"), [range]);
}

#[tokio::test]
async fn streams_and_connections_of_http_2_may_break_too() {
    let image = app();
    let server = Server::builder().http2().start().await;
    push(&server, &image);
    let text = format!("server = '{}'\nca = 'ca.pem'", server.url());
    let config = Config::new(&server.host(), &text);
    config.put(&format!("{}/ca.pem", server.host()), &server.ca_pem());
    for fault in [Fault::truncate_at("/blobs/", 20_000), Fault::reset("/blobs/", 20_000)] {
        server.fault(fault.clone().once());
        let before = count(&server, "GET", "/blobs/");

        let came = layer(&config.client(), &server, &image, 0).await.expect("the rest comes");

        assert!(came == bytes(&image), "{fault:?}");
        assert_eq!(count(&server, "GET", "/blobs/"), before + 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_registry_that_does_not_know_ranges_gives_all_and_what_is_not_wanted_is_left_out() {
    let image = app();
    let whole = bytes(&image);
    let size = whole.len();
    let wrong = |range: String| Fault::wrong_content_range("/blobs/", &range);
    for fault in [
        Fault::ignore_range("/blobs/"),
        Fault::status_416("/blobs/"),
        Fault::partial_without_range("/blobs/"),
        wrong(format!("bytes 0-{}/{size}", size - 1)),
        wrong(format!("bytes 29999-{}/{size}", size - 1)),
        wrong(format!("bytes 30001-{}/{size}", size - 1)),
        wrong(format!("bytes 30000-{size}/{}", size + 1)),
        wrong(format!("bytes 30000-{}/{}", size - 1, size + 1)),
        wrong(format!("bytes */{size}")),
        wrong(format!("30000-{}/{size}", size - 1)),
        wrong("bytes 30000-99999999999999999999999/*".to_owned()),
        wrong(String::new()),
    ] {
        let server = serve(&image).await;
        server.fault(fault.clone());

        let came = layer(&client(), &server, &image, 30_000).await.expect("it is there");

        assert!(came == whole[30_000..], "{fault:?}");
    }
}

#[tokio::test]
async fn a_body_may_begin_at_any_byte() {
    let image = app();
    let whole = bytes(&image);
    let server = serve(&image).await;
    for from in [0, 1, 30_000, whole.len() as u64 - 1, whole.len() as u64, u64::MAX] {
        let came = layer(&client(), &server, &image, from).await.expect("it is there");

        let rest = whole.get(usize::try_from(from).expect("64 bits")..).unwrap_or_default();
        assert!(came == rest, "{from}");
    }
    assert_eq!(count(&server, "GET", "/blobs/"), 4, "nobody asks for nothing");
}

#[tokio::test]
async fn there_are_never_more_bytes_than_the_descriptor_says() {
    let image = app();
    let whole = bytes(&image);
    for fault in [
        Fault::too_long("/blobs/", 1),
        Fault::too_long("/blobs/", 100_000),
        Fault::endless_body("/blobs/"),
        Fault::no_content_length("/blobs/"),
    ] {
        let server = serve(&image).await;
        server.fault(fault.clone());
        for from in [0, 30_000] {
            let came = layer(&client(), &server, &image, from).await.expect("it is there");
            assert!(came == whole[from as usize..], "{fault:?}, {from}");
        }
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_that_ends_early_goes_on() {
    // What is chunked and ends well, and what ends as the connection does.
    let tail = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nthe ".to_vec();
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nthe \r\n0\r\n\r\n".to_vec();
    for first in [tail, chunked] {
        let answer = move |seen: &crate::support::Seen| match seen.header("range") {
            None => Some(first.clone()),
            Some("bytes=4-19") => reply(206, &[("content-range", "bytes 4-19/20")], &LAYER[4..]),
            Some(_) => None,
        };

        let (came, _) = scripted(&client(), 0, answer).await;

        assert_eq!(came.expect("the rest comes"), LAYER);
    }
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused() {
    let image = app();
    let server = serve(&image).await;
    let fetcher = fetcher(&client(), &latest(&server)).await;
    for size in [10, image.layers()[0].size() + 1, u64::MAX] {
        let mut other = image.layers()[0].clone();
        other.set_size(size);

        let Err(error) = fetcher.fetch(&other, 0).await else { panic!("the blob has another length") };

        assert!(matches!(error, Error::BadResponse { .. }), "{size}: {error:?}");
    }
}

#[tokio::test]
async fn content_that_has_changed_is_read_from_its_start() {
    let answer = |seen: &crate::support::Seen| match (seen.header("range"), seen.header("if-range")) {
        (None, _) => cut(200, &[("etag", "\"one\"")], LAYER.len(), &LAYER[..7]),
        (Some(_), Some("\"one\"")) => reply(200, &[("etag", "\"two\"")], LAYER),
        (Some(_), _) => None,
    };

    let (came, script) = scripted(&client(), 0, answer).await;

    assert_eq!(came.expect("the rest comes"), LAYER);
    assert_eq!(script.seen().last().expect("there were requests").header("if-range"), Some("\"one\""));
}

#[tokio::test]
async fn a_weak_etag_is_no_condition() {
    let answer = |seen: &crate::support::Seen| match seen.header("range") {
        None => cut(200, &[("etag", "W/\"one\"")], LAYER.len(), &LAYER[..7]),
        Some(_) if seen.header("if-range").is_some() => None,
        Some(_) => reply(206, &[("content-range", "bytes 7-19/*")], &LAYER[7..]),
    };

    let (came, _) = scripted(&client(), 0, answer).await;

    assert_eq!(came.expect("the rest comes"), LAYER);
}

#[tokio::test]
async fn a_part_of_the_part_that_was_asked_for_is_followed_by_the_rest() {
    let answer = |seen: &crate::support::Seen| match seen.header("range") {
        Some("bytes=4-19") => reply(206, &[("content-range", "bytes 4-9/20")], &LAYER[4..10]),
        Some("bytes=10-19") => reply(206, &[("content-range", "bytes 10-19/20")], &LAYER[10..]),
        _ => None,
    };

    let (came, _) = scripted(&client(), 4, answer).await;

    assert_eq!(came.expect("the rest comes"), &LAYER[4..]);
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    for (encoding, good) in [("gzip", false), ("zstd, gzip", false), ("identity", true), ("Identity", true)] {
        let (came, script) =
            scripted(&client(), 0, move |_| reply(200, &[("content-encoding", encoding)], LAYER)).await;

        assert_eq!(came.is_ok(), good, "{encoding}");
        if let Err(error) = came {
            let text = format!("it is encoded as {encoding:?}, which was not asked for");
            assert!(error.to_string().ends_with(&text), "{error}");
        }
        for seen in script.seen() {
            assert_eq!(seen.header("accept-encoding"), Some("identity"), "{seen:?}");
        }
    }
}

#[tokio::test]
async fn a_body_goes_on_as_long_as_bytes_come() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::truncate_at("/blobs/", 10_000));

    let came = layer(&built(builder().attempts(attempts(2))), &server, &image, 0).await;

    assert!(came.expect("each request gives some") == bytes(&image));
    assert_eq!(count(&server, "GET", "/blobs/"), bytes(&image).len().div_ceil(10_000));
}

#[tokio::test]
async fn a_body_that_gives_nothing_is_given_up() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::truncate_at("/blobs/", 0));

    let error = layer(&built(builder().attempts(attempts(3))), &server, &image, 0).await;

    let text = chain(&*error.expect_err("nothing ever comes"));
    assert_eq!(count(&server, "GET", "/blobs/"), 3, "{text}");
}

#[tokio::test]
async fn wrong_bytes_are_discarded_and_do_not_fail_the_next_pull() {
    let image = app();
    let server = serve(&image).await;
    let (_folder, store) = store();
    let node = &image.layers()[0];
    let client = built(builder().attempts(attempts(1)));
    let handler = FetchHandler::new(fetcher(&client, &latest(&server)).await, store.clone());

    // All bytes came, and the first is wrong.
    server.fault(Fault::wrong_bytes("/blobs/").once());
    let error = handler.handle(node).await.expect_err("the first byte is wrong");
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(store.read(node, u64::MAX).await.is_err(), "nothing is visible");
    handler.handle(node).await.expect("the bytes are right now");
    assert_eq!(store.read(node, u64::MAX).await.expect("it is there"), bytes(&image));
}

#[tokio::test]
async fn content_without_bytes_is_not_asked_for() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let script = Script::start(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        reply(200, &[], br#"{"layers":[]}"#)
    })
    .await;
    let fetcher = fetcher(&client(), &named(&script.host, ":1")).await;
    let before = asked.load(Ordering::Relaxed);
    let empty = Descriptor::new(MediaType::ImageLayer, 0, sha256(b""));

    assert_eq!(read(&*fetcher, &empty, 0).await.expect("there is nothing to read"), b"");
    assert_eq!(asked.load(Ordering::Relaxed), before);
}
