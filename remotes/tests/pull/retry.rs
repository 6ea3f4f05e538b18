//! What is tried again, for how long, and what is said in the end.

use std::{
    error::Error as _,
    time::{Duration, Instant, SystemTime},
};

use futures::{StreamExt, future::join_all};
use windlass_remotes::{Error, ParallelFetch, Resolver};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    Gate, Script, app, attempts, builder, built, bytes, chain, client, count, fetcher, impatient, latest,
    layer, many, named, read, reply, serve,
};

#[tokio::test]
async fn what_passes_is_tried_again() {
    let image = app();
    for status in [408, 429, 500, 502, 503, 504] {
        for path in ["/manifests/", "/blobs/"] {
            let server = serve(&image).await;
            server.fault(Fault::status(path, status).times(2));

            let came = layer(&client(), &server, &image, 0).await.expect("the third attempt succeeds");

            assert!(came == bytes(&image), "{status}");
        }
    }
}

#[tokio::test]
async fn a_connection_without_an_answer_is_tried_again() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::hang_up("/manifests/").times(2));
    server.fault(Fault::hang_up("/blobs/").times(2));
    server.fault(Fault::delay("/blobs/", Duration::from_secs(60)).once());

    let client = built(impatient().connect_timeout(Duration::from_millis(500)));
    let came = layer(&client, &server, &image, 0).await.expect("another attempt succeeds");

    assert!(came == bytes(&image));
}

#[tokio::test]
async fn what_does_not_pass_is_not_tried_again() {
    let image = app();
    for status in [400, 401, 403, 404, 405, 410, 451, 501, 505] {
        let server = serve(&image).await;
        server.fault(Fault::status("/blobs/", status));

        layer(&client(), &server, &image, 0).await.expect_err("it never succeeds");

        assert_eq!(count(&server, "GET", "/blobs/"), 1, "{status}");
    }
}

#[tokio::test]
async fn a_registry_is_not_asked_again_before_it_wants_to_be() {
    let image = app();
    let digest = format!("@{}", image.root.digest());
    let cases = [("/manifests/", ":latest"), ("/manifests/", &*digest), ("/blobs/", ":latest")];
    let run = |(path, object, status, dated): (&'static str, String, u16, bool)| {
        let image = &image;
        async move {
            let server = serve(image).await;
            let wish = if dated { httpdate(Duration::from_secs(3)) } else { "2".to_owned() };
            server.fault(Fault::answer(path, status, &[("retry-after", &wish)], "").once());
            let started = Instant::now();

            let fetcher = fetcher(&client(), &named(&server.host(), &object)).await;
            read(&*fetcher, &image.layers()[0], 0).await.expect("the second attempt succeeds");

            // A date has no fractions of seconds.
            let least = Duration::from_millis(1500);
            assert!(started.elapsed() >= least, "{path}{object} {status} {wish}: {:?}", started.elapsed());
        }
    };
    let cases = cases.into_iter().flat_map(|(path, object)| {
        [(429, true), (429, false), (503, false)]
            .map(|(status, dated)| (path, object.to_owned(), status, dated))
    });
    join_all(cases.map(run)).await;
}

/// A date so far from now, as HTTP writes it.
fn httpdate(from_now: Duration) -> String {
    httpdate::fmt_http_date(SystemTime::now() + from_now)
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/manifests/", 503));
    let client = built(builder().attempts(attempts(2)));

    let error = client.resolve(&latest(&server)).await.expect_err("it never succeeds");

    assert!(matches!(error, Error::Status { status: 503, .. }), "{error:?}");
    assert_eq!(server.requests().len(), 4, "two of HEAD and two of GET");
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_not_begun() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::answer("/blobs/", 429, &[("retry-after", "30")], ""));
    let client = built(builder().retry_for(Duration::from_secs(2)));
    let started = Instant::now();

    let error = layer(&client, &server, &image, 0).await.expect_err("it never succeeds");

    assert!(chain(&*error).contains("answered 429"), "{error}");
    assert_eq!(count(&server, "GET", "/blobs/"), 1);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_registry_that_is_not_there_says_so_soon() {
    let server = Server::start().await;
    let mut gate = Gate::to(&server).await;
    gate.close().await;
    let nobody = named(&gate.host, ":latest");
    let started = Instant::now();

    let error = client().resolve(&nobody).await.expect_err("nobody listens");

    assert_eq!(error.to_string(), format!("registry {} does not answer", nobody.host()));
    assert!(error.source().expect("it has a cause").to_string().contains("refused"), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_registry_that_restarts_in_the_middle_of_a_body_goes_on() {
    let image = app();
    let whole = bytes(&image);
    let first = serve(&image).await;
    first.fault(Fault::stall("/blobs/", Duration::from_secs(60)));
    let mut gate = Gate::to(&first).await;
    let fetcher = fetcher(&client(), &named(&gate.host, ":latest")).await;
    let mut body = fetcher.fetch(&image.layers()[0], 0).await.expect("it is there");
    let mut came = Vec::new();
    while came.len() < whole.len() / 2 {
        came.extend(body.next().await.expect("there is more").expect("half of it comes"));
    }

    let restart = async {
        gate.close().await;
        drop(first);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let second = serve(&image).await;
        gate.open(&second).await;
        second
    };
    let rest = async {
        while let Some(chunk) = body.next().await {
            came.extend(chunk.expect("the rest comes from the one that is there now"));
        }
    };
    let (second, ()) = tokio::join!(restart, rest);

    assert!(came == whole);
    assert_eq!(count(&second, "GET", "/blobs/"), 1);
}

#[tokio::test]
async fn a_pull_that_is_dropped_asks_for_nothing_more() {
    let image = app();
    let parts = ParallelFetch { connections: many(4), part_size: 4096.try_into().expect("it is not zero") };
    let cases = [
        (Fault::answer("/blobs/", 503, &[("retry-after", "1")], ""), builder()),
        (Fault::delay("/blobs/", Duration::from_millis(1500)), builder()),
        (Fault::slow("/blobs/", 10_000), builder()),
        (Fault::slow("/blobs/", 10_000), builder().parallel_fetch(parts)),
        (Fault::truncate_at("/blobs/", 10), builder()),
    ];
    let run = |(fault, builder): (Fault, _)| {
        let image = &image;
        async move {
            let server = serve(image).await;
            server.fault(fault.clone());
            let client = built(builder);
            let pull = layer(&client, &server, image, 0);

            tokio::time::timeout(Duration::from_millis(800), pull).await.expect_err("it takes longer");
            // What was sent before may still arrive.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let before = server.requests().len();
            tokio::time::sleep(Duration::from_millis(1500)).await;

            assert!(before > 1, "{fault:?}: it had begun");
            assert_eq!(server.requests().len(), before, "{fault:?}");
        }
    };
    join_all(cases.map(run)).await;
}

#[tokio::test]
async fn errors_say_who_answered_what_to_which_request() {
    let image = app();
    let json = |errors: &str| format!(r#"{{"errors":[{errors}]}}"#);
    for (status, body, end) in [
        (400, json(r#"{"code":"UNSUPPORTED","message":"not today"}"#), ": UNSUPPORTED: not today"),
        (400, json(r#"{"code":"ODD_ONE","message":"a\nb","detail":{"x":1}}"#), ": ODD_ONE: a b"),
        (400, json(r#"{"code":"A"},{"message":"b"},{}"#), ": A; b"),
        (400, r#"{"errors":7}"#.to_owned(), ""),
        (451, "<html>go away</html>".to_owned(), ""),
        (400, String::new(), ""),
        (500, json(r#"{"code":"UNKNOWN"}"#), ": UNKNOWN"),
    ] {
        let server = serve(&image).await;
        server.fault(Fault::answer("/blobs/", status, &[], &body));
        let client = built(builder().attempts(attempts(1)));

        let error = layer(&client, &server, &image, 0).await.expect_err("it is refused");

        let (host, digest) = (server.host(), image.layers()[0].digest().clone());
        let url = format!("http://{host}/v2/library/app/blobs/{digest}");
        assert_eq!(error.to_string(), format!("registry {host} answered {status} to {url}{end}"), "{body}");
    }
}

#[tokio::test]
async fn a_blob_that_is_not_there_is_named() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/blobs/", 404));

    let error = layer(&client(), &server, &image, 0).await.expect_err("it is not there");

    let digest = image.layers()[0].digest().clone();
    assert_eq!(
        error.to_string(),
        format!("{}/library/app@{digest} not found in the registry", server.host())
    );
}

#[tokio::test]
async fn huge_endless_and_slow_error_bodies_are_cut_off() {
    let image = app();
    for faults in [
        vec![Fault::error_body("/blobs/", 400, 8 << 20)],
        vec![Fault::error_body("/blobs/", 400, 5000)],
        vec![Fault::status("/blobs/", 400), Fault::endless_body("/blobs/")],
        vec![Fault::error_body("/blobs/", 400, 5000), Fault::slow("/blobs/", 20)],
        vec![Fault::error_body("/blobs/", 400, 5000), Fault::reset("/blobs/", 50)],
    ] {
        let server = serve(&image).await;
        for fault in &faults {
            server.fault(fault.clone());
        }
        let started = Instant::now();

        let error = layer(&built(impatient()), &server, &image, 0).await.expect_err("it is refused");

        let text = error.to_string();
        assert!(text.contains("answered 400"), "{text}");
        assert!(text.len() < 1000, "{} bytes", text.len());
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn answers_that_are_no_http_are_errors() {
    for answer in [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/1.1 999999 OK\r\n\r\n",
    ] {
        let script = Script::start(move |_| Some(answer.as_bytes().to_vec())).await;
        let client = built(builder().attempts(attempts(2)));

        let error = client.resolve(&named(&script.host, ":1")).await.expect_err("it is no answer");

        assert!(matches!(error, Error::Transport { .. }), "{answer:?}: {error:?}");
        let end = format!(
            "the connection to registry {0} broke during http://{0}/v2/library/app/manifests/1",
            script.host
        );
        assert_eq!(error.to_string(), end);
    }
}

#[tokio::test]
async fn a_body_falls_back_on_nothing_that_was_wrong() {
    // A registry that gives another part than the one that was asked for, and then nothing at all.
    let script = Script::start(|seen| match seen.target.contains("/manifests/") {
        true => reply(200, &[], br#"{"layers":[]}"#),
        false if seen.header("range").is_some() => reply(206, &[("content-range", "bytes 0-3/20")], b"the "),
        false => reply(200, &[], b"the "),
    })
    .await;
    let fetcher = fetcher(&client(), &named(&script.host, ":1")).await;
    let node = oci_spec::image::Descriptor::new(
        oci_spec::image::MediaType::ImageLayer,
        20,
        windlass_content::hash::sha256(b"the bytes of a layer"),
    );

    let error = read(&*fetcher, &node, 4).await.expect_err("it is another part");

    assert!(error.to_string().ends_with("it has 4 bytes instead of 20"), "{error}");
}
