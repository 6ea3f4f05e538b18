//! Whole images, walked as a pull walks them.

use std::sync::Arc;

use windlass_content::{LocalStore, ProviderExt};
use windlass_images::{ChildrenHandler, HandlerExt, MAX_DEPTH, dispatch};
use windlass_remotes::{FetchHandler, Registry, Resolver};
use windlass_testkit::{Image, Index, Registry as Server};

use crate::support::{
    Outcome, app, attempts, builder, built, bytes, chain, client, count, latest, many, serve, store,
};

async fn pull(client: &Registry, server: &Server, store: &Arc<LocalStore>) -> Outcome<()> {
    let image = client.resolve(&latest(server)).await?;
    let fetch = FetchHandler::new(image.fetcher, store.clone());
    let handler = fetch.then(ChildrenHandler::new(store.clone()));
    Ok(dispatch(handler, image.descriptor, many(8)).await?)
}

/// An index of these, with all that they need.
fn index(children: &[Image], times: usize) -> Image {
    let listed: Vec<_> =
        children.iter().map(|it| it.root.clone()).cycle().take(children.len() * times).collect();
    let mut index = Index::listing(&listed);
    for child in children {
        index.blobs.extend(child.blobs.clone());
    }
    index
}

#[tokio::test]
async fn an_image_is_pulled_with_all_that_it_needs() {
    let image = app();
    let server = serve(&image).await;
    let (_folder, store) = store();

    pull(&client(), &server, &store).await.expect("it is there");

    assert_eq!(store.read(&image.layers()[0], u64::MAX).await.expect("it is there"), bytes(&image));
    assert_eq!(
        store.read(&image.config(), u64::MAX).await.expect("it is there"),
        image.blob(image.config().digest())
    );
    assert_eq!(server.requests().len(), 4, "HEAD and GET of the manifest, config, layer");
}

#[tokio::test]
async fn an_index_that_names_a_manifest_a_thousand_times_has_it_fetched_once() {
    let image = app();
    let index = index(std::slice::from_ref(&image), 1000);
    let server = serve(&index).await;
    let (_folder, store) = store();

    pull(&client(), &server, &store).await.expect("it is there");

    assert_eq!(count(&server, "GET", "/manifests/"), 2);
    assert_eq!(count(&server, "GET", "/blobs/"), 2);
}

#[tokio::test]
async fn an_index_that_lists_itself_is_not_what_its_digest_says() {
    let server = Server::start().await;
    let (_folder, store) = store();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let lie = format!("sha256:{}", "5".repeat(64));
    let text = |size: usize| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media_type}","digest":"{lie}","size":{size}}}]}}"#
        )
    };
    let bytes = text(text(100).len());
    server.push_raw("library/app", "latest", media_type, bytes.clone());
    server.push_raw("library/app", &lie, media_type, bytes);

    let error = pull(&client(), &server, &store).await.expect_err("it is a lie");

    let text = chain(&*error);
    assert!(text.contains(&format!("blob {lie} is damaged")), "{text}");
    assert_eq!(count(&server, "GET", "/manifests/"), 2);
}

#[tokio::test]
async fn indexes_in_indexes_come_to_an_end() {
    for (depth, good) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
        let leaf = Index::listing(&[]);
        let nested = (0..depth).fold(leaf, |child, _| index(&[child], 1));
        let server = serve(&nested).await;
        let (_folder, store) = store();

        let outcome = pull(&client(), &server, &store).await;

        assert_eq!(outcome.is_ok(), good, "{depth}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(chain(&*error).ends_with("is more than 32 steps below the image's root"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_pull_that_failed_goes_on_where_it_was() {
    let image = app();
    let server = serve(&image).await;
    let (_folder, store) = store();
    server.fault(windlass_testkit::Fault::truncate_at("/blobs/", 20_000).once());
    let client = built(builder().attempts(attempts(1)));
    pull(&client, &server, &store).await.ok();

    pull(&client, &server, &store).await.expect("the rest comes");
    let before = server.requests().len();
    pull(&client, &server, &store).await.expect("all is there");

    assert_eq!(server.requests().len(), before + 1, "only the tag was asked for");
}
