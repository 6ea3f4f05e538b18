//! Manifests that a client brings.

use std::io;

use axum::http::{StatusCode, header};
use serde_json::Value;

use super::{answer::Answer, call::Call};
use crate::{
    image::{is_digest_of, sha256},
    state::Repository,
};

/// Makes a manifest readable, if it is what it says, and all that it needs is there.
pub(crate) async fn put(call: &mut Call, repository: &str, reference: &str) -> io::Result<Answer> {
    let bytes = call.body.all().await?;
    let Some(media_type) = call.header(header::CONTENT_TYPE) else {
        return Ok(invalid("a manifest has a Content-Type"));
    };
    let Ok(manifest) = serde_json::from_slice::<Value>(&bytes) else {
        return Ok(invalid("a manifest is JSON"));
    };
    if manifest.get("mediaType").is_some_and(|it| it != media_type) {
        return Ok(invalid("the Content-Type is not the manifest's mediaType"));
    }
    let is_tag = !reference.contains(':');
    if !is_tag && !is_digest_of(reference, &bytes) {
        let message = "the digest is not that of the manifest";
        return Ok(Answer::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message));
    }

    let mut shared = call.state.lock();
    let known = shared.repositories.get(repository);
    if let Some(missing) = needs(&manifest).find(|digest| !known.is_some_and(|it| has(it, digest))) {
        let message = format!("{missing} is unknown to registry");
        return Ok(Answer::error(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", &message));
    }
    let digest = if is_tag { sha256(&bytes).to_string() } else { reference.to_owned() };
    let known = shared.repositories.entry(repository.to_owned()).or_default();
    known.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
    if is_tag {
        known.tags.insert(reference.to_owned(), digest.clone());
    }
    let answer = Answer::new(StatusCode::CREATED)
        .header("location", call.location(&format!("/v2/{repository}/manifests/{digest}")))
        .header("docker-content-digest", digest);
    Ok(match manifest["subject"]["digest"].as_str() {
        Some(subject) if !call.state.settings.without_referrers => answer.header("oci-subject", subject),
        _ => answer,
    })
}

/// The digests of what must be there before the manifest. Its subject may come later, and what has URLs may never
/// come.
fn needs(manifest: &Value) -> impl Iterator<Item = &str> {
    let lists = ["layers", "manifests"].into_iter().filter_map(|name| manifest[name].as_array());
    let children = lists.flatten().chain(manifest.get("config"));
    let children = children.filter(|it| it["urls"].as_array().is_none_or(Vec::is_empty));
    children.filter_map(|it| it["digest"].as_str())
}

fn has(repository: &Repository, digest: &str) -> bool {
    repository.blobs.contains_key(digest) || repository.manifests.contains_key(digest)
}

fn invalid(message: &str) -> Answer {
    Answer::error(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        Artifact, Image, Index, Registry,
        http::{self, Response},
        image::sha256,
        sample,
    };

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    async fn put(registry: &Registry, reference: &str, media_type: &str, bytes: &[u8]) -> Response {
        let path = format!("/v2/app/manifests/{reference}");
        http::send(&registry.host(), "PUT", &path, &[("content-type", media_type)], bytes).await
    }

    async fn put_root(registry: &Registry, image: &Image, reference: &str) -> Response {
        let bytes = image.blob(image.root.digest());
        put(registry, reference, image.root.media_type().as_ref(), &bytes).await
    }

    #[tokio::test]
    async fn a_manifest_is_readable_by_what_it_was_pushed_as() {
        let image = sample::image();
        let digest = image.root.digest().to_string();
        for reference in ["v1", &digest] {
            let registry = Registry::start().await;
            for (_, bytes) in image.blobs.values() {
                registry.push_blob("app", bytes.clone());
            }

            let answer = put_root(&registry, &image, reference).await;

            assert_eq!((answer.status, answer.header("docker-content-digest")), (201, Some(&*digest)));
            let location = format!("{}/v2/app/manifests/{digest}", registry.url());
            assert_eq!(answer.header("location"), Some(&*location));
            let got = http::get(&registry.host(), &format!("/v2/app/manifests/{reference}")).await;
            assert_eq!(got.header("content-type"), Some(IMAGE));
            assert_eq!(got.body, image.blob(image.root.digest()));
            assert_eq!(registry.tags("app").contains_key("v1"), reference == "v1");
        }
    }

    #[tokio::test]
    async fn what_a_manifest_needs_must_be_there_but_for_its_subject() {
        let registry = Registry::start().await;
        let image = sample::image();
        let index = Index::of(std::slice::from_ref(&image));
        let about = Artifact::new("a/b").subject(&image.root).build();
        for digest in [about.config().digest(), about.layers()[0].digest()] {
            registry.push_blob("app", about.blob(digest));
        }

        for root in [&image, &index] {
            let refused = put_root(&registry, root, "latest").await;
            assert_eq!((refused.status, &*refused.error_code()), (400, "MANIFEST_BLOB_UNKNOWN"));
        }
        let taken = put_root(&registry, &about, "about").await;
        registry.push_blob("app", image.blob(image.config().digest()));
        assert_eq!(put_root(&registry, &image, "latest").await.status, 400, "its layer is missing");

        assert_eq!((taken.status, taken.header("oci-subject")), (201, Some(image.root.digest().as_ref())));
        assert_eq!(registry.tags("app").into_keys().collect::<Vec<_>>(), ["about"]);
    }

    #[tokio::test]
    async fn layers_with_urls_need_not_be_there() {
        let registry = Registry::start().await;
        let layer = json!({ "digest": sha256(b"far away"), "urls": ["https://far.example/away"] });
        let manifest = json!({ "layers": [layer] }).to_string();

        assert_eq!(put(&registry, "latest", IMAGE, manifest.as_bytes()).await.status, 201);
    }

    #[tokio::test]
    async fn a_registry_without_referrers_does_not_tell_the_subject() {
        let registry = Registry::builder().without_referrers().start().await;
        let manifest = json!({ "subject": sample::image().root }).to_string();

        let answer = put(&registry, "latest", IMAGE, manifest.as_bytes()).await;

        assert_eq!((answer.status, answer.header("oci-subject")), (201, None));
    }

    #[tokio::test]
    async fn a_manifest_that_is_not_what_it_says_is_refused() {
        let registry = Registry::start().await;
        let other = sha256(b"other").to_string();
        for (reference, bytes, code) in [
            ("latest", "not JSON", "MANIFEST_INVALID"),
            ("latest", "{\"mediaType\":\"text/html\"}", "MANIFEST_INVALID"),
            (&other, "{}", "DIGEST_INVALID"),
        ] {
            let answer = put(&registry, reference, IMAGE, bytes.as_bytes()).await;

            assert_eq!((answer.status, &*answer.error_code()), (400, code), "{bytes}");
        }
        let bare = http::send(&registry.host(), "PUT", "/v2/app/manifests/latest", &[], b"{}").await;
        assert_eq!((bare.status, &*bare.error_code()), (400, "MANIFEST_INVALID"));
    }
}
