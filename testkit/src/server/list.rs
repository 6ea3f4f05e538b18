//! Lists of tags, of repositories, and of what refers to a manifest, in pages.

use std::num::NonZeroUsize;

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{answer::Answer, call::Call, pull::unknown_name};
use crate::image::OCI;

/// The tags of a repository.
pub(crate) fn tags(call: &Call, repository: &str) -> Answer {
    let shared = call.state.lock();
    let Some(known) = shared.repositories.get(repository) else { return unknown_name() };
    let page = page(call, known.tags.keys().map(|it| (&**it, json!(it))).collect());
    page.answer(call, |tags| Answer::json(StatusCode::OK, &json!({ "name": repository, "tags": tags })))
}

/// The repositories.
pub(crate) fn catalog(call: &Call) -> Answer {
    let shared = call.state.lock();
    let page = page(call, shared.repositories.keys().map(|it| (&**it, json!(it))).collect());
    page.answer(call, |names| Answer::json(StatusCode::OK, &json!({ "repositories": names })))
}

/// An index of the manifests whose subject has this digest.
pub(crate) fn referrers(call: &Call, repository: &str, digest: &str) -> Answer {
    let settings = &call.state.settings;
    if settings.without_referrers {
        return Answer::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint");
    }
    let filter = call.parameter("artifactType").filter(|_| !settings.without_referrers_filter);
    let shared = call.state.lock();
    let Some(known) = shared.repositories.get(repository) else { return unknown_name() };
    let mut entries = Vec::new();
    for (key, (media_type, bytes)) in &known.manifests {
        let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else { continue };
        if manifest["subject"]["digest"] != digest {
            continue;
        }
        let entry = entry(key, media_type, bytes.len(), &manifest);
        if filter.is_none_or(|it| entry["artifactType"] == it) {
            entries.push((&**key, entry));
        }
    }
    page(call, entries).answer(call, |manifests| {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI.index, "manifests": manifests });
        let answer = Answer::json(StatusCode::OK, &index).header("content-type", OCI.index);
        if filter.is_some() { answer.header("oci-filters-applied", "artifactType") } else { answer }
    })
}

/// The descriptor of a manifest in the index of what refers to something.
fn entry(digest: &str, media_type: &str, size: usize, manifest: &Value) -> Value {
    let mut entry = json!({ "mediaType": media_type, "digest": digest, "size": size });
    let artifact_type = manifest.get("artifactType").or_else(|| manifest["config"].get("mediaType"));
    for (name, value) in [("artifactType", artifact_type), ("annotations", manifest.get("annotations"))] {
        if let Some(value) = value {
            entry[name] = value.clone();
        }
    }
    entry
}

/// A part of a list.
enum Page {
    Malformed,
    Part {
        entries: Vec<Value>,
        /// The query of the next page.
        next: Option<String>,
    },
}

impl Page {
    fn answer(self, call: &Call, render: impl FnOnce(Vec<Value>) -> Answer) -> Answer {
        match self {
            Self::Malformed => {
                let message = "the number of results is not one";
                Answer::error(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message)
            }
            Self::Part { entries, next: None } => render(entries),
            Self::Part { entries, next: Some(query) } => {
                let url = call.location(&format!("{}?{query}", call.path));
                render(entries).header("link", format!("<{url}>; rel=\"next\""))
            }
        }
    }
}

/// What the query asks for of these entries, which are in the order of their keys.
fn page(call: &Call, mut entries: Vec<(&str, Value)>) -> Page {
    let limit = call.state.settings.page_limit.map_or(usize::MAX, NonZeroUsize::get);
    let size = match call.parameter("n").map(str::parse::<usize>) {
        None => limit,
        Some(Ok(size)) => size.min(limit),
        Some(Err(_)) => return Page::Malformed,
    };
    if let Some(last) = call.parameter("last") {
        entries.retain(|(key, _)| *key > last);
    }
    let is_last = entries.len() <= size || size == 0;
    entries.truncate(size);
    let next = entries.last().filter(|_| !is_last).map(|(last, _)| {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        // What else was asked for, such as a filter, holds for the next page as well.
        query.extend_pairs(call.query.iter().filter(|(name, _)| name != "n" && name != "last"));
        query.append_pair("n", &size.to_string()).append_pair("last", last).finish()
    });
    Page::Part { entries: entries.into_iter().map(|(_, entry)| entry).collect(), next }
}

#[cfg(test)]
mod tests {
    use crate::{
        Artifact, Image, Registry, RegistryBuilder,
        http::{self, Response},
        sample,
    };

    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");

    /// Where the next page is.
    fn next(registry: &Registry, answer: &Response) -> Option<String> {
        let link = answer.header("link")?;
        let url = link.strip_prefix('<').and_then(|it| it.strip_suffix(">; rel=\"next\""));
        let url = url.unwrap_or_else(|| panic!("{link} is a link"));
        Some(url.strip_prefix(&registry.url()).unwrap_or(url).to_owned())
    }

    /// All pages that start with this one, each as text.
    async fn pages(registry: &Registry, path: &str, field: &str) -> Vec<String> {
        let (mut pages, mut path) = (Vec::new(), Some(path.to_owned()));
        while let Some(here) = path {
            let answer = http::get(&registry.host(), &here).await;
            assert_eq!(answer.status, 200, "{here}");
            pages.push(http::json(&answer)[field].to_string());
            path = next(registry, &answer);
        }
        pages
    }

    #[tokio::test]
    async fn tags_and_repositories_come_in_pages_and_in_order() {
        let image = sample::image();
        let builders = [Registry::builder(), Registry::builder().page_limit(TWO).relative_locations()];
        for (builder, is_limited) in builders.into_iter().zip([false, true]) {
            let registry = builder.start().await;
            for name in ["c", "a", "b"] {
                registry.push(&image, "a", name);
                registry.push(&image, name, "latest");
            }
            registry.push(&image, "a", "latest");

            let whole = if is_limited {
                vec![r#"["a","b"]"#, r#"["c","latest"]"#]
            } else {
                vec![r#"["a","b","c","latest"]"#]
            };
            for (path, field, want) in [
                ("/v2/a/tags/list", "tags", whole),
                ("/v2/a/tags/list?n=1&last=b", "tags", vec![r#"["c"]"#, r#"["latest"]"#]),
                ("/v2/a/tags/list?n=2", "tags", vec![r#"["a","b"]"#, r#"["c","latest"]"#]),
                ("/v2/a/tags/list?n=0", "tags", vec!["[]"]),
                ("/v2/_catalog?n=2", "repositories", vec![r#"["a","b"]"#, r#"["c"]"#]),
            ] {
                assert_eq!(pages(&registry, path, field).await, want, "{path}, limited: {is_limited}");
            }
        }
    }

    #[tokio::test]
    async fn a_list_of_nothing_is_refused() {
        let (registry, _) = sample::registry().await;
        for (path, status, code) in [
            ("/v2/nobody/tags/list", 404, "NAME_UNKNOWN"),
            ("/v2/library/app/tags/list?n=many", 400, "PAGINATION_NUMBER_INVALID"),
            ("/v2/nobody/referrers/sha256:0", 404, "NAME_UNKNOWN"),
        ] {
            let answer = http::get(&registry.host(), path).await;
            assert_eq!((answer.status, &*answer.error_code()), (status, code), "{path}");
        }
    }

    #[tokio::test]
    async fn the_catalog_has_a_scope_of_its_own() {
        let registry = Registry::builder().token_auth().start().await;

        let refused = http::get(&registry.host(), "/v2/_catalog").await;

        let challenge = refused.header("www-authenticate").expect("a 401 has a challenge");
        assert!(challenge.contains("scope=\"registry:catalog:*\""), "{challenge}");
        let answer = http::json(&http::get(&registry.host(), "/token?scope=registry:catalog:*").await);
        let token = format!("Bearer {}", answer["token"].as_str().expect("it has a token"));
        let header = [("authorization", &*token)];
        assert_eq!(http::send(&registry.host(), "GET", "/v2/_catalog", &header, b"").await.status, 200);
    }

    /// A registry with an image, to which two SBOMs and a signature refer, and where they are listed.
    async fn referred(builder: RegistryBuilder) -> (Registry, Image, String) {
        let registry = builder.start().await;
        let image = sample::image();
        registry.push(&image, "app", "latest");
        for (kind, name) in [("a/sbom", "1"), ("a/sbom", "2"), ("a/signature", "3")] {
            let artifact = Artifact::new(kind).annotation("name", name).subject(&image.root).build();
            registry.push(&artifact, "app", name);
        }
        let path = format!("/v2/app/referrers/{}", image.root.digest());
        (registry, image, path)
    }

    #[tokio::test]
    async fn what_refers_to_a_manifest_is_listed() {
        let (registry, image, path) = referred(Registry::builder()).await;

        let answer = http::get(&registry.host(), &path).await;
        let list = http::json(&answer);
        let nothing = format!("/v2/app/referrers/{}", image.config().digest());
        let nothing = http::json(&http::get(&registry.host(), &nothing).await);

        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
        let entries = list["manifests"].as_array().expect("an index has manifests");
        let mut names: Vec<_> = entries.iter().map(|it| it["annotations"]["name"].as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, [Some("1"), Some("2"), Some("3")]);
        for entry in entries {
            let digest = entry["digest"].as_str().expect("a descriptor has a digest");
            let (media_type, bytes) = registry.manifest("app", digest).expect("it is there");
            assert_eq!((&entry["mediaType"], &entry["size"]), (&json!(media_type), &json!(bytes.len())));
        }
        assert_eq!(nothing["manifests"], json!([]));
    }

    #[tokio::test]
    async fn referrers_are_filtered_by_type_where_the_registry_can() {
        let both = Registry::builder;
        for (builder, applied, count) in
            [(both(), Some("artifactType"), 2), (both().without_referrers_filter(), None, 3)]
        {
            let (registry, _, path) = referred(builder).await;

            let answer = http::get(&registry.host(), &format!("{path}?artifactType=a%2Fsbom")).await;

            assert_eq!(answer.header("oci-filters-applied"), applied);
            assert_eq!(http::json(&answer)["manifests"].as_array().map(Vec::len), Some(count));
        }
        let (registry, _, path) = referred(Registry::builder().without_referrers()).await;
        assert_eq!(http::get(&registry.host(), &path).await.status, 404);
    }

    #[tokio::test]
    async fn a_filter_holds_for_every_page_of_referrers() {
        let one = NonZeroUsize::MIN;
        let (registry, _, path) = referred(Registry::builder().page_limit(one)).await;

        let pages = pages(&registry, &format!("{path}?artifactType=a%2Fsbom"), "manifests").await;

        assert_eq!(pages.len(), 2);
        assert!(pages.iter().all(|it| it.contains("a/sbom")), "{pages:?}");
    }
}
