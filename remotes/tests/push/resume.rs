//! Uploads that break, and how they go on.

use std::time::Duration;

use futures::future::join_all;
use windlass_remotes::{Error, Pushed};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{CHUNK, builder, bytes, client, count, has, log, push_blob};

/// The requests after the upload began, but for questions where it is.
fn writes(server: &Server) -> Vec<String> {
    log(server).into_iter().filter(|entry| entry.starts_with('P')).skip(1).collect()
}

#[tokio::test]
async fn a_broken_chunk_goes_on_where_it_broke() {
    // The state in an upload's location counts the answers about it.
    let resumed = async |state: usize, after: usize, next: String| {
        let (server, blob) = (Server::start().await, bytes(2500));
        let fault = Fault::drop_upload_after(&format!("_state={state}"), after);
        server.fault(fault.method("PATCH").once());

        let pushed = push_blob(&client(), &server, &blob).await;

        assert_eq!(pushed.expect("it is resumed"), Pushed::Uploaded);
        assert!(has(&server, &blob), "{state} {after}");
        let writes = writes(&server);
        assert_eq!(writes[state + 1], next, "{state} {after}: {writes:?}");
        assert_eq!((count(&server, "POST"), server.uploads()), (1, 0), "{state} {after}");
    };
    let cases = [
        (0, 2, "PATCH 2-999"),
        (0, 500, "PATCH 500-999"),
        (0, 999, "PATCH 999-999"),
        (0, CHUNK, "PATCH 1000-1999"),
        (1, 0, "PATCH 1000-1999"),
        (1, 1, "PATCH 1001-1999"),
        (1, CHUNK, "PATCH 2000-2499"),
        (2, 500, "PUT 0"),
    ];
    join_all(cases.map(|(state, after, next)| resumed(state, after, next.to_owned()))).await;
}

#[tokio::test]
async fn an_upload_of_which_nearly_nothing_arrived_is_begun_anew() {
    // Registries say `0-0` of one byte as well as of none.
    for after in [0, 1] {
        let (server, blob) = (Server::start().await, bytes(1500));
        server.fault(Fault::drop_upload_after("_state=0", after).method("PATCH").once());

        push_blob(&client(), &server, &blob).await.expect("it is begun anew");

        assert!(has(&server, &blob), "{after}");
        assert_eq!((count(&server, "POST"), server.uploads()), (2, 0), "the first one is cancelled");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_again_and_again_gets_on_as_long_as_bytes_arrive() {
    let (server, blob) = (Server::start().await, bytes(1500));
    // More often than a request is tried.
    server.fault(Fault::drop_upload_after("/uploads/", 100).method("PATCH").times(7));
    let client = builder().attempts(std::num::NonZeroU32::new(2).expect("two is not zero")).build();

    push_blob(&client.expect("the settings are good"), &server, &blob).await.expect("it gets on");

    assert!(has(&server, &blob));
    assert_eq!(count(&server, "POST"), 1);
}

#[tokio::test]
async fn what_a_registry_answers_to_a_chunk_does_not_end_the_upload() {
    let resumed = async |state: usize, fault: fn(&str) -> Fault| {
        let (server, blob) = (Server::start().await, bytes(2500));
        let fault = fault(&format!("_state={state}"));
        server.fault(fault.clone().method("PATCH").once());

        push_blob(&client(), &server, &blob).await.expect("it goes on");

        assert!(has(&server, &blob), "{state} {fault:?}");
        assert_eq!(server.uploads(), 0, "{state} {fault:?}");
    };
    let faults: [fn(&str) -> Fault; 5] = [
        |path| Fault::status(path, 500),
        |path| Fault::status(path, 416),
        |path| Fault::status(path, 429),
        Fault::hang_up,
        Fault::lose_answer,
    ];
    let cases = faults.into_iter().flat_map(|fault| [(0, fault), (1, fault)]);
    join_all(cases.map(|(state, fault)| resumed(state, fault))).await;
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_asked_how_far_it_is() {
    let (server, blob) = (Server::start().await, bytes(1500));
    server.fault(Fault::delay("_state=0", Duration::from_secs(60)).method("PATCH").once());
    let patience = Duration::from_millis(300);
    let client = builder().idle_timeout(patience).connect_timeout(patience).build();

    push_blob(&client.expect("the settings are good"), &server, &blob).await.expect("it goes on");

    assert!(has(&server, &blob));
}

#[tokio::test]
async fn an_upload_that_is_lost_in_its_first_chunk_is_begun_anew() {
    for length in [500, 1500] {
        let (server, blob) = (Server::start().await, bytes(length));
        server.fault(Fault::lose_upload("_state=0").once());

        push_blob(&client(), &server, &blob).await.expect("it is begun anew");

        assert!(has(&server, &blob), "{length}");
        assert_eq!(count(&server, "POST"), 2, "{length}");
    }
}

#[tokio::test]
async fn an_upload_that_is_lost_later_is_an_error_that_says_so() {
    for (state, method) in [(1, "PATCH"), (2, "PUT")] {
        let (server, blob) = (Server::start().await, bytes(1500));
        server.fault(Fault::lose_upload(&format!("_state={state}")).method(method).once());

        let error = push_blob(&client(), &server, &blob).await.expect_err("its first bytes are gone");

        assert!(matches!(&error, Error::UploadLost { digest, .. } if digest.as_ref().starts_with("sha256:")));
        assert!(error.is_transient(), "{error}");
        assert!(!has(&server, &blob), "{state}");
    }
}

#[tokio::test]
async fn a_blob_whose_last_answer_was_lost_is_there() {
    for (length, requests) in [
        (500, &["HEAD", "POST 0", "PUT 500", "HEAD"][..]),
        (1500, &["HEAD", "POST 0", "PATCH 0-999", "PATCH 1000-1499", "PUT 0", "HEAD"]),
    ] {
        let (server, blob) = (Server::start().await, bytes(length));
        server.fault(Fault::lose_answer("/uploads/").method("PUT").once());

        let pushed = push_blob(&client(), &server, &blob).await;

        assert_eq!(pushed.expect("it was committed"), Pushed::Uploaded);
        assert!(has(&server, &blob));
        assert_eq!(log(&server), requests);
    }
}

#[tokio::test]
async fn a_last_request_that_fails_is_sent_again_without_the_chunks() {
    for fault in [Fault::status("/uploads/", 500), Fault::hang_up("/uploads/")] {
        let (server, blob) = (Server::start().await, bytes(1500));
        server.fault(fault.clone().method("PUT").once());

        push_blob(&client(), &server, &blob).await.expect("it is completed");

        assert!(has(&server, &blob), "{fault:?}");
        assert_eq!(writes(&server), ["PATCH 0-999", "PATCH 1000-1499", "PUT 0", "PUT 0"], "{fault:?}");
    }
}

#[tokio::test]
async fn a_blob_of_one_request_is_sent_again_as_a_whole() {
    for after in [1, 250, 500] {
        let (server, blob) = (Server::start().await, bytes(500));
        server.fault(Fault::drop_upload_after("/uploads/", after).method("PUT").once());

        push_blob(&client(), &server, &blob).await.expect("it is sent again");

        assert!(has(&server, &blob), "{after}");
        assert_eq!(server.uploads(), 0, "{after}: the first one is cancelled");
    }
}

#[tokio::test]
async fn a_resumed_chunk_is_not_shorter_than_the_registry_wants() {
    for (state, after, lengths) in [
        (0, 600, &["PATCH 0-999", "PATCH 600-1599", "PATCH 1600-2599", "PATCH 2600-2999"][..]),
        (1, 400, &["PATCH 0-999", "PATCH 1000-1999", "PATCH 1400-2399", "PATCH 2400-2999"]),
        (2, 1, &["PATCH 0-999", "PATCH 1000-1999", "PATCH 2000-2999", "PATCH 2001-2999"]),
    ] {
        let (server, blob) = (Server::builder().chunk_min(CHUNK).start().await, bytes(3000));
        server.fault(Fault::drop_upload_after(&format!("_state={state}"), after).method("PATCH").once());

        push_blob(&client(), &server, &blob).await.expect("it is resumed");

        assert!(has(&server, &blob), "{state}");
        let writes = writes(&server);
        assert_eq!(writes[..writes.len() - 1], *lengths, "{state}");
    }
}

#[tokio::test]
async fn a_token_that_ends_during_an_upload_is_renewed() {
    let server = Server::builder().token_auth().start().await;
    let blob = bytes(2500);
    server.fault(Fault::delay("_state=1", Duration::from_millis(300)).method("PATCH").once());
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.revoke_tokens();
    };

    let client = client();
    let (pushed, ()) = tokio::join!(push_blob(&client, &server, &blob), revoke);

    assert_eq!(pushed.expect("a new token is got"), Pushed::Uploaded);
    assert!(has(&server, &blob));
}
