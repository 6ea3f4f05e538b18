//! Artifacts about other manifests, and how they are found.

use bytes::Bytes;
use futures::future::join_all;
use oci_spec::image::{Descriptor, MediaType};
use serde_json::{Value, json};
use windlass_content::hash::sha256;
use windlass_remotes::{Error, Pushed, Pusher, Registry, hosts::HostsDir};
use windlass_testkit::{Artifact, Fault, Image, Registry as Server};

use crate::support::{app, at_once, builder, client, count, image, stream};

const SBOM: &str = "application/vnd.example.sbom";

/// A registry that has an image, and the image.
async fn with_image(builder: windlass_testkit::RegistryBuilder) -> (Server, Image) {
    let (server, image) = (builder.start().await, image());
    server.push(&image, "app", "v1");
    (server, image)
}

fn sbom(image: &Image, name: &str) -> Image {
    Artifact::new(SBOM).subject(&image.root).annotation("name", name).build()
}

/// Pushes an artifact, whose blobs are made to be there.
async fn push(client: &Registry, server: &Server, artifact: &Image) -> windlass_remotes::Result<Pushed> {
    server.push_blob("app", "{}");
    let root = &artifact.root;
    let pusher = client.pusher(&app(&server.host(), &format!("@{}", root.digest())), root.digest()).await?;
    pusher.push(root, stream(&artifact.blob(root.digest()))).await
}

async fn referrers(server: &Server, image: &Image, kind: Option<&str>) -> Vec<Descriptor> {
    let reference = app(&server.host(), &format!("@{}", image.root.digest()));
    client().referrers(&reference, kind).await.expect("they can be listed")
}

fn names(referrers: &[Descriptor]) -> Vec<&str> {
    let mut names: Vec<_> = referrers
        .iter()
        .map(|it| it.annotations().as_ref().and_then(|all| all.get("name")).map_or("", String::as_str))
        .collect();
    names.sort_unstable();
    names
}

/// The index that stands for what refers to the image.
fn fallback(server: &Server, image: &Image) -> Option<Value> {
    let (media_type, bytes) = server.manifest("app", tag(image))?;
    assert_eq!(media_type, "application/vnd.oci.image.index.v1+json");
    Some(serde_json::from_slice(&bytes).expect("it is JSON"))
}

fn tag(image: &Image) -> String {
    image.root.digest().to_string().replace(':', "-")
}

#[tokio::test]
async fn a_registry_that_knows_of_referrers_lists_what_is_pushed() {
    let (server, image) = with_image(Server::builder()).await;

    let pushed = push(&client(), &server, &sbom(&image, "1")).await;

    assert_eq!(pushed.expect("its blobs are there"), Pushed::Uploaded);
    assert_eq!(names(&referrers(&server, &image, None).await), ["1"]);
    assert_eq!((count(&server, "PUT"), fallback(&server, &image)), (1, None));
}

#[tokio::test]
async fn where_a_registry_knows_nothing_of_referrers_an_index_lists_them() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    let (client, artifact) = (client(), sbom(&image, "1"));

    push(&client, &server, &artifact).await.expect("its blobs are there");

    let entry = json!({
        "mediaType": artifact.root.media_type(),
        "digest": artifact.root.digest(),
        "size": artifact.root.size(),
        "artifactType": SBOM,
        "annotations": { "name": "1" },
    });
    let index = fallback(&server, &image).expect("it is there");
    assert_eq!((&index["schemaVersion"], &index["manifests"]), (&json!(2), &json!([entry])));
    assert_eq!(names(&referrers(&server, &image, Some(SBOM)).await), ["1"]);
}

#[tokio::test]
async fn an_index_keeps_all_that_it_has_and_lists_nothing_twice() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    let (client, first) = (client(), sbom(&image, "1"));
    // What somebody else wrote has more than we know of.
    let known = json!({ "mediaType": "a/b", "digest": image.root.digest(), "size": 1, "future": [1] });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [known], "annotations": { "a": "b" },
    });
    let media_type = "application/vnd.oci.image.index.v1+json";
    server.push_raw("app", &tag(&image), media_type, index.to_string());

    for artifact in [&first, &sbom(&image, "2"), &first] {
        push(&client, &server, artifact).await.expect("its blobs are there");
    }

    let index = fallback(&server, &image).expect("it is there");
    assert_eq!((&index["manifests"][0], &index["annotations"]), (&known, &json!({ "a": "b" })));
    let digests: Vec<_> =
        index["manifests"].as_array().expect("a list").iter().map(|it| &it["digest"]).collect();
    assert_eq!(digests.len(), 3);
    assert_eq!(digests[1], &json!(first.root.digest()));
}

#[tokio::test]
async fn a_null_list_of_referrers_is_an_empty_one() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    let media_type = "application/vnd.oci.image.index.v1+json";
    server.push_raw("app", &tag(&image), media_type, r#"{"schemaVersion":2,"manifests":null}"#);

    push(&client(), &server, &sbom(&image, "1")).await.expect("its blobs are there");

    assert_eq!(names(&referrers(&server, &image, None).await), ["1"]);
}

#[tokio::test]
async fn what_was_put_but_not_listed_is_listed_by_the_next_push() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    let (client, artifact) = (client(), sbom(&image, "1"));
    let path = format!("/manifests/{}", tag(&image));
    server.fault(Fault::status(&path, 403).method("PUT").once());
    push(&client, &server, &artifact).await.expect_err("the index is refused");
    assert!(server.manifest("app", artifact.root.digest()).is_some(), "but the artifact was taken");

    let pushed = push(&client, &server, &artifact).await;

    assert_eq!(pushed.expect("it is there"), Pushed::Existed);
    assert_eq!(names(&referrers(&server, &image, None).await), ["1"]);
}

#[tokio::test]
async fn one_client_loses_none_of_what_it_lists_at_once() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    let client = client();
    let artifacts: Vec<_> = (0..8).map(|it| sbom(&image, &it.to_string())).collect();

    let pushed = join_all(artifacts.iter().map(|artifact| push(&client, &server, artifact))).await;

    assert!(pushed.iter().all(Result::is_ok), "{pushed:?}");
    assert_eq!(referrers(&server, &image, None).await.len(), 8);
}

#[tokio::test]
async fn an_artifact_is_what_it_says_or_what_its_config_says() {
    let (server, image) = with_image(Server::builder().without_referrers()).await;
    for (fields, expected) in [
        (json!({ "artifactType": "a/b" }), "a/b"),
        (json!({ "config": { "mediaType": "c/d" } }), "c/d"),
        (json!({ "artifactType": "", "config": { "mediaType": "e/f" } }), "e/f"),
        (json!({ "artifactType": "g/h", "config": { "mediaType": "c/d" } }), "g/h"),
    ] {
        let mut manifest = json!({ "schemaVersion": 2, "layers": [], "subject": image.root });
        manifest.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        if let Some(config) = manifest.get_mut("config") {
            config["digest"] = json!(sha256(b"{}"));
            config["size"] = json!(2);
        }
        server.push_blob("app", "{}");
        let bytes = Bytes::from(manifest.to_string());
        let kind = MediaType::ImageManifest;
        let root = Descriptor::new(kind, bytes.len() as u64, sha256(&bytes));
        let pusher = client().pusher(&app(&server.host(), ""), image.root.digest()).await;

        pusher.expect("it may be pushed to").push(&root, stream(&bytes)).await.expect("its blob is there");

        let listed = referrers(&server, &image, Some(expected)).await;
        assert!(listed.iter().any(|it| it.digest() == root.digest()), "{fields}: {listed:?}");
    }
}

#[tokio::test]
async fn referrers_of_one_type_are_asked_for_wherever_they_are_filtered() {
    let builders = [
        Server::builder(),
        Server::builder().page_limit(at_once(1)).relative_locations(),
        Server::builder().without_referrers_filter(),
        Server::builder().without_referrers(),
        Server::builder().token_auth(),
    ];
    for builder in builders {
        let (server, image) = with_image(builder).await;
        let client = client();
        for name in ["1", "2"] {
            push(&client, &server, &sbom(&image, name)).await.expect("its blobs are there");
        }
        let signature = Artifact::new("a/signature").subject(&image.root).annotation("name", "3").build();
        push(&client, &server, &signature).await.expect("its blobs are there");

        assert_eq!(names(&referrers(&server, &image, None).await), ["1", "2", "3"]);
        assert_eq!(names(&referrers(&server, &image, Some(SBOM)).await), ["1", "2"]);
        assert_eq!(names(&referrers(&server, &image, Some("a/none")).await), [""; 0]);
    }
}

#[tokio::test]
async fn nothing_refers_to_what_is_not_there() {
    for builder in [Server::builder(), Server::builder().without_referrers()] {
        let (server, image) = with_image(builder).await;
        assert_eq!(referrers(&server, &image, None).await, []);
        let nowhere = format!("{}/nowhere@{}", server.host(), image.root.digest());
        let listed = client().referrers(&nowhere.parse().expect("it is a reference"), None).await;
        assert_eq!(listed.expect("it is empty"), []);
    }
}

#[tokio::test]
async fn registries_that_never_heard_of_referrers_say_so_in_many_ways() {
    for status in [400, 404, 405, 406, 501] {
        let (server, image) = with_image(Server::builder().without_referrers()).await;
        push(&client(), &server, &sbom(&image, "1")).await.expect("its blobs are there");
        server.fault(Fault::status("/referrers/", status));

        assert_eq!(names(&referrers(&server, &image, None).await), ["1"], "{status}");
    }
}

#[tokio::test]
async fn a_list_of_referrers_that_cannot_be_used_is_an_error() {
    let reference =
        |server: &Server, image: &Image| app(&server.host(), &format!("@{}", image.root.digest()));
    let entry = json!({ "mediaType": "a/b", "digest": image().root.digest(), "size": 1 });
    let many = json!({ "schemaVersion": 2, "manifests": vec![entry; 4000] }).to_string();
    let next = |last| format!("<?last={last}>; rel=next");
    for (answers, why) in [
        (vec![("<html>", None)], "it is not a list of referrers"),
        (vec![(r#"{"manifests":[{}]}"#, None)], "it is not a list of referrers"),
        (vec![("{}", Some(next(1))), ("{}", Some(next(1)))], "its pages lead in a circle, or have no end"),
        (
            vec![(&*many, Some(next(1))), (&*many, Some(next(2))), (&*many, None)],
            "more than 10000 manifests refer to",
        ),
    ] {
        let (server, image) = with_image(Server::builder()).await;
        for (body, link) in &answers {
            let headers: Vec<_> = link.iter().map(|link| ("link", &**link)).collect();
            server.fault(Fault::answer("/referrers/", 200, &headers, body).once());
        }

        let error = client().referrers(&reference(&server, &image), None).await.expect_err(why);

        assert!(matches!(error, Error::BadResponse { .. }) && error.to_string().contains(why), "{error}");
    }
    let (server, image) = with_image(Server::builder()).await;
    server.fault(Fault::status("/referrers/", 403));
    let error = client().referrers(&reference(&server, &image), None).await.expect_err("it is refused");
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let error = client().referrers(&app(&server.host(), ":v1"), None).await.expect_err("it has no digest");
    assert!(error.to_string().ends_with("/app:v1 has no digest, so nothing can refer to it"), "{error}");
}

#[tokio::test]
async fn a_page_that_is_not_there_is_not_the_end() {
    let (server, image) = with_image(Server::builder()).await;
    let headers = [("link", "<?last=1>; rel=next")];
    server.fault(Fault::answer("/referrers/", 200, &headers, r#"{"manifests":[]}"#).once());
    server.fault(Fault::status("/referrers/", 404).once());
    let reference = app(&server.host(), &format!("@{}", image.root.digest()));

    let error = client().referrers(&reference, None).await.expect_err("a page is missing");

    assert!(error.to_string().ends_with("a page of the list is not there"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_knows_nothing_of_referrers_is_not_the_last_word() {
    let (mirror, image) = with_image(Server::builder().without_referrers()).await;
    let (server, _) = with_image(Server::builder()).await;
    server.push(&sbom(&image, "1"), "app", "sbom");
    let folder = tempfile::tempdir().expect("there is room");
    std::fs::create_dir(folder.path().join(server.host())).expect("the folder is new");
    let text = format!("server = \"{}\"\n[host.\"{}\"]\n", server.url(), mirror.url());
    std::fs::write(folder.path().join(server.host()).join("hosts.toml"), text).expect("there is room");
    let hosts = HostsDir::new(folder.path());
    let client = builder().hosts(hosts).build().expect("the settings are good");

    let reference = app(&server.host(), &format!("@{}", image.root.digest()));
    let listed = client.referrers(&reference, None).await.expect("the registry lists them");

    assert_eq!(names(&listed), ["1"]);
    assert!(!mirror.requests().is_empty(), "which was asked first");
}
