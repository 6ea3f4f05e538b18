//! From a reference to a descriptor.

use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass_content::hash::{Hasher, sha256};
use windlass_reference::Reference;
use windlass_remotes::{Error, Resolver};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    Script, app, attempts, builder, built, client, count, fetcher, latest, named, reply, serve,
};

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

async fn resolve(reference: &Reference) -> windlass_remotes::Result<Descriptor> {
    client().resolve(reference).await.map(|resolved| resolved.descriptor)
}

/// A registry that has this as `library/app:latest`, and does not know `HEAD`.
async fn raw(media_type: &str, bytes: &str) -> Server {
    let server = Server::start().await;
    server.push_raw("library/app", "latest", media_type, bytes.to_owned());
    server.fault(Fault::no_head("/manifests/"));
    server
}

#[tokio::test]
async fn a_name_stands_for_the_same_content_by_tag_and_by_digest() {
    let image = app();
    let server = serve(&image).await;
    for object in [":latest".to_owned(), format!("@{}", image.root.digest())] {
        let reference = named(&server.host(), &object);

        let resolved = client().resolve(&reference).await.expect("it is there");

        assert_eq!(resolved.descriptor, image.root);
        assert_eq!(resolved.name, reference.to_string());
    }
}

#[tokio::test]
async fn one_head_that_takes_all_kinds_of_manifests_is_enough() {
    let server = serve(&app()).await;

    resolve(&latest(&server)).await.expect("it is there");

    let requests = server.requests();
    let [request] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!(request.method, "HEAD");
    for kind in [
        OCI,
        INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ] {
        assert!(request.headers["accept"].contains(kind), "{request:?}");
    }
    assert_eq!(request.headers["accept-encoding"], "identity");
    assert!(request.headers["user-agent"].starts_with("windlass/"), "{request:?}");
}

#[tokio::test]
async fn what_the_answer_to_head_does_not_say_is_read() {
    let image = app();
    let path = "/manifests/";
    for fault in [
        Fault::no_head(path),
        Fault::status(path, 400).method("HEAD"),
        Fault::status(path, 403).method("HEAD"),
        Fault::status(path, 501).method("HEAD"),
        Fault::no_digest_header(path),
        Fault::wrong_content_type(path, "text/plain; charset=utf-8"),
        Fault::no_content_length(path).method("HEAD"),
    ] {
        for object in [":latest".to_owned(), format!("@{}", image.root.digest())] {
            let server = serve(&image).await;
            server.fault(fault.clone());

            let root = resolve(&named(&server.host(), &object)).await.expect("its bytes say all");

            assert_eq!(root, image.root, "{fault:?}");
            assert_eq!((count(&server, "GET", path), count(&server, "GET", "/blobs/")), (1, 0), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn what_no_manifest_can_be_is_not_believed_of_one() {
    // An empty one, and one that is not counted as it would be sent.
    let manifest = r#"{"config":{},"layers":[]}"#;
    for header in [("x", "x"), ("content-encoding", "gzip")] {
        let length = if header.0 == "x" { "" } else { "4" };
        let server = Script::start(move |seen| match seen.method.as_str() {
            "HEAD" => {
                let digest = sha256(b"{}").to_string();
                let headers = [("content-type", OCI), ("docker-content-digest", &*digest), header];
                reply(200, &headers, length.as_bytes())
            }
            _ => reply(200, &[("content-type", OCI)], manifest.as_bytes()),
        })
        .await;

        let root = resolve(&named(&server.host, ":1")).await.expect("its bytes say all");

        assert_eq!(root.digest(), &sha256(manifest.as_bytes()));
    }
}

#[tokio::test]
async fn the_digest_of_a_tag_is_what_the_bytes_hash_to() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::no_head("/manifests/"));
    server.fault(Fault::wrong_digest_header("/manifests/"));

    assert_eq!(resolve(&latest(&server)).await.expect("its bytes say all"), image.root);
}

#[tokio::test]
async fn a_digest_must_be_that_of_the_answer() {
    let image = app();
    for faults in [
        vec![Fault::wrong_digest_header("/manifests/")],
        vec![Fault::no_head("/manifests/"), Fault::wrong_bytes("/manifests/")],
    ] {
        let server = serve(&image).await;
        for fault in &faults {
            server.fault(fault.clone());
        }

        let reference = named(&server.host(), &format!("@{}", image.root.digest()));
        let error = resolve(&reference).await.expect_err("it is another");

        assert!(
            matches!(&error, Error::DigestMismatch { expected, .. } if expected == image.root.digest()),
            "{faults:?}: {error:?}",
        );
        assert_eq!(count(&server, "HEAD", "/blobs/"), 0, "{faults:?}");
    }
}

#[tokio::test]
async fn a_digest_of_another_algorithm_is_checked_against_the_bytes() {
    let manifest = r#"{"config":{},"layers":[]}"#;
    let mut hasher = Hasher::new(&format!("sha512:{}", "0".repeat(128)).parse().expect("a digest"))
        .expect("it is a known algorithm");
    hasher.update(manifest.as_bytes());
    let right = hasher.finish();
    let wrong: Digest = format!("sha512:{}", "5".repeat(128)).parse().expect("a digest");
    let server = Script::start(move |seen| {
        let digest = sha256(manifest.as_bytes()).to_string();
        let headers = [("content-type", OCI), ("docker-content-digest", &*digest)];
        // An answer to HEAD has no body.
        reply(200, &headers, if seen.method == "HEAD" { b"" } else { manifest.as_bytes() })
    })
    .await;

    let root = resolve(&named(&server.host, &format!("@{right}"))).await.expect("the bytes are right");
    let error = resolve(&named(&server.host, &format!("@{wrong}"))).await.expect_err("they are not");

    assert_eq!(root.digest(), &right);
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn a_digest_that_names_no_manifest_may_name_a_blob() {
    let image = app();
    let server = serve(&image).await;
    for blob in [image.config(), image.layers()[0].clone()] {
        let reference = named(&server.host(), &format!("@{}", blob.digest()));

        let found = resolve(&reference).await.expect("it is there");

        assert_eq!((found.digest(), found.size()), (blob.digest(), blob.size()));
        assert_eq!(found.media_type(), &MediaType::from("application/octet-stream"));
    }
    let methods: Vec<_> = server.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["HEAD"; 4], "nothing was read to find that out");
}

#[tokio::test]
async fn a_registry_that_breaks_when_a_layer_is_asked_for_as_a_manifest_has_it_as_a_blob() {
    let image = app();
    let server = serve(&image).await;
    server.fault(Fault::status("/manifests/", 500));
    let blob = &image.layers()[0];

    let found = resolve(&named(&server.host(), &format!("@{}", blob.digest()))).await.expect("it is there");

    assert_eq!((found.digest(), server.requests().len()), (blob.digest(), 2));
}

#[tokio::test]
async fn blobs_are_not_asked_for_unless_the_registry_knows_no_such_manifest() {
    let image = app();
    let object = format!("@{}", image.layers()[0].digest());
    for status in [400, 403, 405, 429, 502, 503] {
        let server = serve(&image).await;
        server.fault(Fault::status("/manifests/", status));

        let client = built(builder().attempts(attempts(1)));
        client.resolve(&named(&server.host(), &object)).await.expect_err("it never answers well");

        assert_eq!(count(&server, "HEAD", "/blobs/"), 0, "{status}");
    }
    let server = serve(&image).await;

    let error = resolve(&named(&server.host(), ":other")).await.expect_err("there is no such tag");

    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 1, "a tag is never a blob");
}

#[tokio::test]
async fn a_name_that_is_not_there_is_named() {
    let server = serve(&app()).await;
    for object in [":other".to_owned(), format!("@{}", sha256(b"other"))] {
        let reference = named(&server.host(), &object);

        let error = resolve(&reference).await.expect_err("there is no such thing");

        assert_eq!(error.to_string(), format!("{reference} not found in the registry"));
    }
}

#[tokio::test]
async fn images_of_schema_1_are_refused() {
    for (media_type, bytes) in [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", r#"{"schemaVersion":1}"#),
        ("application/vnd.docker.distribution.manifest.v1+json", "{}"),
        ("application/json", r#"{"schemaVersion":1,"fsLayers":[]}"#),
        (OCI, r#"{"schemaVersion":1,"layers":[]}"#),
    ] {
        let server = raw(media_type, bytes).await;

        let error = resolve(&latest(&server)).await.expect_err("it is too old");

        let name = latest(&server);
        let text = "is a Docker schema 1 image, which is not supported; push it again with a current tool";
        assert_eq!(error.to_string(), format!("{name} {text}"), "{bytes}");
    }
}

/// CVE-2021-41190
#[tokio::test]
async fn bytes_that_are_a_manifest_to_one_and_an_index_to_another_are_refused() {
    for (media_type, bytes) in [
        (OCI, r#"{"config":{},"layers":[],"manifests":[]}"#.to_owned()),
        (INDEX, r#"{"manifests":[],"layers":[]}"#.to_owned()),
        (INDEX, r#"{"manifests":[],"config":{}}"#.to_owned()),
        ("application/json", r#"{"manifests":[],"layers":[]}"#.to_owned()),
        (OCI, format!(r#"{{"mediaType":"{INDEX}","layers":[]}}"#)),
        (INDEX, format!(r#"{{"mediaType":"{OCI}","manifests":[]}}"#)),
        ("text/html", "<html>".to_owned()),
    ] {
        let server = raw(media_type, &bytes).await;

        let error = resolve(&latest(&server)).await.expect_err("it could be either");

        assert!(matches!(error, Error::BadResponse { .. }), "{bytes}: {error:?}");
        assert!(error.to_string().contains("it is not an image manifest"), "{bytes}: {error}");
    }
}

#[tokio::test]
async fn a_manifest_is_read_up_to_its_limit() {
    let image = app();
    let get = || Fault::no_head("/manifests/");
    for faults in [
        vec![],
        vec![get()],
        vec![get(), Fault::no_content_length("/manifests/")],
        vec![get(), Fault::endless_body("/manifests/")],
    ] {
        let endless = faults.len() == 2 && format!("{faults:?}").contains("Endless");
        for (limit, good) in [(image.root.size() - 1, false), (image.root.size(), !endless)] {
            let server = serve(&image).await;
            for fault in &faults {
                server.fault(fault.clone());
            }

            let outcome = built(builder().max_manifest_size(limit)).resolve(&latest(&server)).await;

            let refused = matches!(&outcome, Err(Error::TooLarge { limit: it, .. }) if *it == limit);
            assert_eq!((outcome.is_ok(), refused), (good, !good), "{faults:?}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn the_limit_of_manifests_is_4_mib_unless_told_otherwise() {
    for (size, good) in [(4 << 20, true), ((4 << 20) + 1, false)] {
        let manifest = format!(r#"{{"config":{{}},"layers":[],"x":"{}"}}"#, "x".repeat(size - 32));
        assert_eq!(manifest.len(), size);
        for head in [true, false] {
            let server = Server::start().await;
            server.push_raw("library/app", "latest", OCI, manifest.clone());
            if !head {
                server.fault(Fault::no_head("/manifests/"));
            }

            let outcome = resolve(&latest(&server)).await;

            assert_eq!(outcome.is_ok(), good, "{size}: {outcome:?}");
            assert!(good || matches!(outcome, Err(Error::TooLarge { .. })), "{size}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn a_huge_document_is_not_even_asked_for() {
    let image = app();
    let server = serve(&image).await;
    let fetcher = fetcher(&client(), &latest(&server)).await;
    let huge = Descriptor::new(MediaType::ImageManifest, 1 << 40, sha256(b"huge"));
    let before = server.requests().len();

    let Err(error) = fetcher.fetch(&huge, 0).await else { panic!("it is no manifest") };

    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    assert_eq!(server.requests().len(), before);
}

#[tokio::test]
async fn the_words_of_a_refusal_are_read_although_the_answer_to_head_has_none() {
    let server = serve(&app()).await;
    let body = r#"{"errors":[{"code":"DENIED","message":"the team's plan has ended"}]}"#;
    server.fault(Fault::answer("/manifests/", 403, &[], body));

    let error = resolve(&latest(&server)).await.expect_err("it is refused");

    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    assert!(error.to_string().ends_with("/manifests/latest: DENIED: the team's plan has ended"), "{error}");
}

#[tokio::test]
async fn an_encoded_manifest_is_refused() {
    let server = Script::start(|seen| match seen.method.as_str() {
        "HEAD" => reply(405, &[], b""),
        _ => reply(200, &[("content-type", OCI), ("content-encoding", "gzip")], b"\x1f\x8b"),
    })
    .await;

    let error = resolve(&named(&server.host, ":1")).await.expect_err("nobody asked for that");

    assert!(error.to_string().ends_with(r#"it is encoded as "gzip", which was not asked for"#), "{error}");
}

#[tokio::test]
async fn a_repository_may_have_a_long_path_and_a_tag_odd_characters() {
    let image = app();
    let server = Server::start().await;
    let name = "a/b-c/d__e/f.g";
    server.push(&image, name, "V1.0_-x");

    let reference = format!("{}/{name}:V1.0_-x", server.host()).parse().expect("it is a reference");

    assert_eq!(resolve(&reference).await.expect("it is there"), image.root);
}
