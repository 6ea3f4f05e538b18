use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use windlass_reference::Reference;
use windlass_remotes::{Error, Fetcher, Registry, from_provider, local::Source};
use windlass_testkit::Index;

use crate::fixtures::{Both, app, assert_has, layout, other, pulled, tag};

#[tokio::test]
async fn an_image_of_a_layout_is_pulled_byte_for_byte() {
    let both = Both::of(&layout(&[(&app(), tag("v1")), (&other(), tag("v2"))]));
    for resolved in both.resolve_tag(Some("v1")).await {
        let resolved = resolved.expect("there is such a tag");

        let (_folder, store) = pulled(&resolved).await;

        assert_eq!(resolved.name, "localhost/layout:v1");
        assert_eq!(resolved.descriptor, app().root);
        assert_has(&store, &app()).await;
    }
}

#[tokio::test]
async fn the_root_may_be_an_index_in_an_index() {
    let index = Index::of(&[app(), other()]);
    let both = Both::of(&layout(&[(&index, json!(null))]));
    for resolved in both.resolve_tag(None).await {
        let resolved = resolved.expect("it is the only one");

        let (_folder, store) = pulled(&resolved).await;

        assert_eq!((&*resolved.name, &resolved.descriptor), ("localhost/layout:latest", &index.root));
        assert_has(&store, &index).await;
    }
}

#[tokio::test]
async fn a_reference_is_found_by_its_tag_or_its_whole_name() {
    let whole = json!({
        "io.containerd.image.name": "docker.io/library/redis:7",
        "org.opencontainers.image.ref.name": "7",
    });
    let both = Both::of(&layout(&[(&app(), tag("v1")), (&other(), whole)]));
    let pinned = format!("anything@{}", other().root.digest());
    for resolver in both.resolvers() {
        for (text, want) in [
            ("r.example/app:v1", Some(app().root)),
            ("redis:7", Some(other().root)),
            (&pinned, Some(other().root)),
            ("r.example/redis:7", None),
            ("redis:6", None),
        ] {
            let reference: Reference = text.parse().expect(text);

            let resolved = resolver.resolve(&reference).await;

            match (resolved, want) {
                (Ok(resolved), Some(root)) => {
                    assert_eq!((resolved.name, resolved.descriptor), (reference.to_string(), root), "{text}");
                }
                (Err(Error::NotFound { .. }), None) => {}
                (resolved, _) => panic!("{text}: {resolved:?}"),
            }
        }
    }
}

#[tokio::test]
async fn several_images_are_listed_for_the_caller_to_choose() {
    let both = Both::of(&layout(&[(&app(), tag("v1")), (&other(), json!(null))]));
    let id = other().root.digest().to_string();
    for (resolved, file) in both.resolve_tag(None).await.into_iter().zip(["layout", "layout.tar"]) {
        let error = resolved.expect_err("there are two");

        assert!(matches!(error, Error::Ambiguous { .. }), "{error:?}");
        let end = format!("/{file} has several images; choose one of v1, {id}");
        assert!(error.to_string().ends_with(&end), "{error}");
    }
    for resolved in both.resolve_tag(Some(&id)).await {
        assert_eq!(resolved.expect("a digest will do").descriptor, other().root);
    }
}

#[tokio::test]
async fn a_stream_starts_where_it_should_and_ends_with_the_blob() {
    let image = app();
    let both = Both::of(&layout(&[(&image, json!(null))]));
    let layer = &image.layers()[0];
    let whole = image.blob(layer.digest());
    for resolved in both.resolve_tag(None).await {
        let fetcher = resolved.expect("it is the only one").fetcher;
        for from in [0, 1, 1_000_000, layer.size() - 1, layer.size(), layer.size() + 1, u64::MAX] {
            let mut body = fetcher.fetch(layer, from).await.expect("it is there");
            let mut read = Vec::new();
            while let Some(chunk) = body.next().await {
                let chunk = chunk.expect("the file is whole");
                assert!(chunk.len() <= 1 << 20, "memory is bounded");
                read.extend_from_slice(&chunk);
            }
            assert!(read == whole[whole.len().min(from as usize)..], "from {from}");
        }
    }
}

#[tokio::test]
async fn a_source_goes_where_its_text_says() {
    let both = Both::of(&layout(&[(&app(), tag("v1"))]));
    let registry = Registry::new().expect("the settings are good");
    let root = both.temporary.path().display();
    for text in [format!("oci:{root}/layout:v1"), format!("oci-archive:{root}/layout.tar")] {
        let source: Source = text.parse().expect(&text);

        let resolved = source.resolve(&registry).await.expect(&text);

        assert_eq!((&*resolved.name, resolved.descriptor), ("localhost/layout:v1", app().root));
    }
    let missing: Source = format!("oci:{root}/missing:v1").parse().expect("it is a source");
    let error = missing.resolve(&registry).await.expect_err("there is nothing");
    assert_eq!(error.to_string(), format!("cannot open {root}/missing"));
}

#[tokio::test]
async fn a_store_is_a_fetcher_too() {
    let both = Both::of(&layout(&[(&app(), json!(null))]));
    let resolved = both.folder.resolve_tag(None).await.expect("it is the only one");
    let (_folder, store) = pulled(&resolved).await;
    let fetcher = from_provider(store);
    let layer = &app().layers()[1];

    let rest: Vec<_> =
        fetcher.fetch(layer, 5).await.expect("it is there").try_collect().await.expect("it is whole");
    let missing = fetcher.fetch(&other().root, 0).await.map(drop).expect_err("it is not there");

    assert_eq!(rest.concat(), app().blob(layer.digest())[5..]);
    let digest = other().root.digest().clone();
    assert_eq!(missing.to_string(), format!("{digest} not found in the content store"));
}
