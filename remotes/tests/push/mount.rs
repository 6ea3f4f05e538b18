//! Blobs that the registry has in another repository.

use windlass_remotes::{Pushed, Pusher};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{builder, bytes, client, has, layer, log, pusher, stream, untouched};

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted_and_not_read() {
    let (server, blob) = (Server::start().await, bytes(5000));
    server.push_blob("base/os", blob.clone());
    let pusher = pusher(&client(), &server).await.mount_from("other").mount_from("app").mount_from("base/os");

    let pushed = pusher.push(&layer(&blob), untouched()).await;

    assert_eq!(pushed.expect("it is there"), Pushed::Mounted);
    assert!(has(&server, &blob));
    let requests = server.requests();
    let from: Vec<_> = requests.iter().filter_map(|request| request.parameter("from")).collect();
    assert_eq!(from, ["other", "base/os"], "nothing can be mounted from where it is to go");
    assert_eq!(server.uploads(), 0, "what `other` began is cancelled");
}

#[tokio::test]
async fn a_blob_that_cannot_be_mounted_is_uploaded() {
    let body = r#"{"errors":[{"code":"DENIED"}]}"#;
    let post = |status| Some(Fault::answer("mount=", status, &[], body).method("POST"));
    for (fault, source) in [
        (None, "elsewhere"),
        (post(403), "base"),
        (post(404), "base"),
        (post(405), "base"),
        (post(501), "base"),
        // Neither mounted nor begun.
        (post(202), "base"),
    ] {
        let (server, blob) = (Server::builder().without_mount().start().await, bytes(500));
        server.push_blob("base", blob.clone());
        fault.clone().into_iter().for_each(|fault| server.fault(fault));
        let pusher = pusher(&client(), &server).await.mount_from(source);

        let pushed = pusher.push(&layer(&blob), stream(&blob)).await;

        assert_eq!(pushed.expect("it is sent"), Pushed::Uploaded, "{fault:?}");
        assert!(has(&server, &blob), "{fault:?}");
        assert_eq!(server.uploads(), 0, "{fault:?}: no upload is left over: {:?}", log(&server));
    }
}

#[tokio::test]
async fn a_mount_asks_for_a_token_for_both_repositories() {
    let server = Server::builder().token_auth().password("user", "secret").start().await;
    let blob = bytes(500);
    server.push_blob("base", blob.clone());
    let client = builder().credentials(server.host(), "user", "secret").build().expect("they are good");

    let pushed = pusher(&client, &server).await.mount_from("base").push(&layer(&blob), untouched()).await;

    assert_eq!(pushed.expect("the token is good for both"), Pushed::Mounted);
    let requests = server.requests();
    let last =
        requests.iter().rfind(|request| request.path.starts_with("/token")).expect("there was a token");
    let scopes: Vec<_> =
        last.query.iter().filter(|(name, _)| name == "scope").map(|(_, scope)| &**scope).collect();
    assert_eq!(scopes, ["repository:app:pull,push", "repository:base:pull"]);
}

#[tokio::test]
async fn who_may_not_read_the_other_repository_sends_the_bytes() {
    // The token server gives none for both.
    let server = Server::builder().token_auth().start().await;
    let blob = bytes(500);
    server.push_blob("base", blob.clone());
    server.fault(Fault::status("repository%3Abase", 401));

    let pushed = pusher(&client(), &server).await.mount_from("base").push(&layer(&blob), stream(&blob)).await;

    assert_eq!(pushed.expect("it is sent"), Pushed::Uploaded);
    assert!(has(&server, &blob));
}
