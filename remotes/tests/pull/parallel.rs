//! Large blobs over several connections.

use std::time::Duration;

use futures::StreamExt;
use proptest::{prelude::*, test_runner::TestRunner};
use windlass_remotes::{Builder, ParallelFetch};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    app, builder, built, bytes, count, fetcher, headers, impatient, latest, layer, many, read, serve,
};

fn parallel(builder: Builder, connections: usize, part_size: u64) -> Builder {
    let part_size = part_size.try_into().expect("the test gives more than zero");
    builder.parallel_fetch(ParallelFetch { connections: many(connections), part_size })
}

#[tokio::test]
async fn a_blob_in_parts_is_the_same_blob() {
    let image = app();
    let whole = bytes(&image);
    let server = serve(&image).await;
    let size = whole.len() as u64;
    for (connections, part_size, from) in [
        (1, 7000, 0),
        (2, 25_000, 0),
        (4, 7000, 1),
        (4, 7000, size - 1),
        (4, 7000, size - 7000),
        (4, 7000, size - 7001),
        (8, 1000, 20_000),
        (3, size, 0),
        (3, size - 1, 0),
        (100, 4096, 0),
        (3, u64::MAX, 0),
    ] {
        let client = built(parallel(builder(), connections, part_size));

        let came = layer(&client, &server, &image, from).await.expect("it is there");

        assert!(came == whole[from as usize..], "{connections} {part_size} {from}");
    }
}

#[test]
fn any_part_of_a_blob_in_parts_of_any_size_is_right() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let image = app();
    let whole = bytes(&image);
    let server = runtime.block_on(serve(&image));
    let strategy = (1..9_usize, 500..60_000_u64, 0..whole.len() as u64, prop::bool::ANY);
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    let checked = TestRunner::new(config).run(&strategy, |(connections, part_size, from, broken)| {
        if broken {
            server.fault(Fault::truncate_at("/blobs/", 400).once());
        }
        let client = built(parallel(builder(), connections, part_size));
        let came = runtime.block_on(layer(&client, &server, &image, from)).expect("it is there");
        prop_assert!(came == whole[from as usize..]);
        Ok(())
    });
    checked.expect("each part is right");
}

#[tokio::test]
async fn parts_are_asked_for_once_and_at_the_same_time() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::delay("/blobs/", Duration::from_millis(100)));
    let client = built(parallel(builder(), 4, 5000));

    let came = layer(&client, &server, &image, 0).await.expect("it is there");

    assert!(came == bytes(&image));
    let mut ranges = headers(&server, "/blobs/", "range");
    ranges.sort();
    ranges.dedup();
    assert_eq!((ranges.len(), count(&server, "GET", "/blobs/")), (11, 11), "{ranges:?}");
    assert!((2..=4).contains(&server.peak()), "{}", server.peak());
    assert!(server.connections() <= 5, "{} connections", server.connections());
}

#[tokio::test]
async fn whoever_does_not_read_on_has_few_parts_waiting() {
    let image = app();
    let server = serve(&image).await;
    let client = built(parallel(builder(), 3, 1000));
    let fetcher = fetcher(&client, &latest(&server)).await;
    let mut body = fetcher.fetch(&image.layers()[0], 0).await.expect("it is there");
    let mut read = 0;
    for _ in 0..5 {
        read += body.next().await.expect("there is more").expect("it comes").len();
        tokio::time::sleep(Duration::from_millis(200)).await;

        // The part that is being read, and one for each further connection.
        let asked = count(&server, "GET", "/blobs/");
        assert!(asked <= read.div_ceil(1000) + 3, "{asked} parts after {read} bytes");
    }
}

#[tokio::test]
async fn parts_give_way_to_others_who_wait() {
    let image = app();
    let server = serve(&image).await;
    // Two in flight, and three blobs with four connections each.
    let client = built(parallel(builder(), 4, 5000).in_flight_per_host(many(2)));
    let fetcher = fetcher(&client, &latest(&server)).await;
    let node = &image.layers()[0];

    let came = tokio::join!(read(&*fetcher, node, 0), read(&*fetcher, node, 1), read(&*fetcher, node, 2));

    for (from, came) in [came.0, came.1, came.2].into_iter().enumerate() {
        assert!(came.expect("it is there") == bytes(&image)[from..]);
    }
    assert!(server.peak() <= 2, "{}", server.peak());
}

#[tokio::test]
async fn who_gives_no_parts_gives_all_over_one_connection() {
    let image = app();
    for fault in [
        Fault::ignore_range("/blobs/"),
        Fault::status_416("/blobs/"),
        Fault::partial_without_range("/blobs/"),
        Fault::wrong_content_range("/blobs/", "bytes 0-9/10"),
    ] {
        for times in [1, 2, usize::MAX] {
            let server = serve(&image).await;
            server.fault(fault.clone().times(times));
            let client = built(parallel(builder(), 4, 9000));

            let came = layer(&client, &server, &image, 0).await.expect("it is there");

            assert!(came == bytes(&image), "{fault:?} {times}");
        }
    }
}

#[tokio::test]
async fn parts_that_fail_do_not_fail_the_blob() {
    let image = app();
    for (fault, builder) in [
        (Fault::truncate_at("/blobs/", 3000).times(4), builder()),
        (Fault::reset("/blobs/", 3000).times(4), builder()),
        (Fault::hang_up("/blobs/").times(3), builder()),
        (Fault::status("/blobs/", 503).times(3), builder()),
        (Fault::status("/blobs/", 400).times(1), builder().attempts(crate::support::attempts(1))),
        (Fault::stall("/blobs/", Duration::from_secs(60)).times(3), impatient()),
    ] {
        let server = serve(&image).await;
        let client = built(parallel(builder, 3, 9000));
        let fetcher = fetcher(&client, &latest(&server)).await;
        let mut body = fetcher.fetch(&image.layers()[0], 0).await.expect("it is there");
        server.fault(fault.clone());
        let mut came = Vec::new();
        while let Some(chunk) = body.next().await {
            came.extend(chunk.unwrap_or_else(|error| panic!("{fault:?}: {error}")));
        }

        assert!(came == bytes(&image), "{fault:?}");
    }
}

#[tokio::test]
async fn parts_come_from_the_storage_that_the_first_was_sent_to() {
    let image = app();
    let server = serve(&image).await;
    let storage = Server::start().await;
    server.redirect_blobs_to(&storage);

    let came = layer(&built(parallel(builder(), 4, 9000)), &server, &image, 0).await.expect("it is there");

    assert!(came == bytes(&image));
    assert_eq!((count(&server, "GET", "/blobs/"), count(&storage, "GET", "/cdn/")), (1, 6));
}
