//! From a reference to a descriptor.

use oci_spec::image::{Descriptor, Digest, MediaType};
use reqwest::{
    Method, Response,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde_json::Value;
use url::Url;
use windlass_content::hash::{Hasher, sha256};
use windlass_images::media_type::{DOCKER_SCHEMA_1, ROOTS};
use windlass_reference::Reference;

use super::{Repository, host::shown, request};
use crate::{Error, Result};

/// The header in which a registry says what a manifest's digest is.
const DIGEST: &str = "docker-content-digest";

pub(super) async fn resolve(repository: &Repository, reference: &Reference) -> Result<Descriptor> {
    let url = repository.host.url(&repository.name, "manifests", reference.object());
    let headers = accept();
    let head_request = || repository.request(Method::HEAD, &url, &headers);
    let first = match reference.digest() {
        None => head_request().await,
        Some(digest) => match repository.request_up_to(1, Method::HEAD, &url, &headers).await {
            // CNCF's registry answers 500 when a layer is asked for as a manifest. If it has the blob, that is the answer.
            Err(Error::Status { status: 500.., .. }) => match blob(repository, reference, digest).await {
                Ok(found) => return Ok(found),
                Err(_) => head_request().await,
            },
            Err(error) if error.is_transient() => head_request().await,
            answer => answer,
        },
    };
    let answer = match first {
        Ok(response) => head(repository, reference, &url, &response),
        // Some registries refuse this method; what they say to GET counts.
        Err(Error::Status { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(None) => get(repository, reference, &url).await,
        Ok(Some(descriptor)) => Ok(descriptor),
        Err(error) => Err(error),
    };
    match (answer, reference.digest()) {
        (Err(Error::NotFound { .. }), Some(digest)) => blob(repository, reference, digest).await,
        (Err(Error::NotFound { url, .. }), None) => Err(Error::NotFound { name: reference.to_string(), url }),
        (answer, _) => answer,
    }
}

/// The `Accept` header for all manifests and indexes.
pub(super) fn accept() -> HeaderMap {
    let value = HeaderValue::from_str(&ROOTS.join(", ")).expect("media types are printable ASCII");
    HeaderMap::from_iter([(ACCEPT, value)])
}

/// What the headers of an answer say. `None` if they do not say everything.
fn head(
    repository: &Repository,
    reference: &Reference,
    url: &Url,
    response: &Response,
) -> Result<Option<Descriptor>> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    let digest =
        header(DIGEST).and_then(|text| text.parse::<Digest>().ok()).filter(|d| Hasher::new(d).is_ok());
    let size = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse::<u64>().ok());
    let kind = content_type(response).filter(|kind| ROOTS.contains(&kind.as_str()));
    let (Some(digest), Some(size), Some(kind)) = (digest, size, kind) else {
        return Ok(None);
    };
    if let Some(expected) = reference.digest().filter(|expected| **expected != digest) {
        return Err(Error::DigestMismatch { url: shown(url), expected: expected.clone(), actual: digest });
    }
    let limit = repository.inner.settings.max_manifest_size;
    if size > limit {
        return Err(Error::TooLarge { url: shown(url), limit });
    }
    Ok(Some(Descriptor::new(MediaType::from(kind.as_str()), size, digest)))
}

/// Reads the whole manifest: its digest is what its bytes hash to.
async fn get(repository: &Repository, reference: &Reference, url: &Url) -> Result<Descriptor> {
    let response = repository.request(Method::GET, url, &accept()).await?;
    let header = content_type(&response);
    let limit = repository.inner.settings.max_manifest_size;
    let bytes = request::body(&repository.inner, &repository.host.name, url, response, limit).await?;
    let digest = match reference.digest() {
        None => sha256(&bytes),
        Some(expected) => {
            let mut hasher = Hasher::new(expected)
                .map_err(|error| Error::Config { reason: format!("cannot check {reference}: {error}") })?;
            hasher.update(&bytes);
            let actual = hasher.finish();
            if actual != *expected {
                return Err(Error::DigestMismatch { url: shown(url), expected: expected.clone(), actual });
            }
            actual
        }
    };
    let kind = kind(header.as_deref(), &bytes).map_err(|what| match what {
        Unusable::SchemaOne => Error::SchemaOne { name: reference.to_string() },
        Unusable::NoManifest => {
            Error::BadResponse { url: shown(url), reason: "it is not an image manifest".into() }
        }
    })?;
    Ok(Descriptor::new(MediaType::from(kind.as_str()), bytes.len() as u64, digest))
}

/// Something else that a digest may name: a layer, a config.
async fn blob(repository: &Repository, reference: &Reference, digest: &Digest) -> Result<Descriptor> {
    let url = repository.host.url(&repository.name, "blobs", digest.as_ref());
    let response =
        repository.request(Method::HEAD, &url, &HeaderMap::new()).await.map_err(|error| match error {
            Error::NotFound { url, .. } => Error::NotFound { name: reference.to_string(), url },
            error => error,
        })?;
    let length =
        response.headers().get(CONTENT_LENGTH).and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    let size = length.ok_or_else(|| Error::BadResponse {
        url: shown(&url),
        reason: "it does not say how long it is".into(),
    })?;
    Ok(Descriptor::new(MediaType::from("application/octet-stream"), size, digest.clone()))
}

/// The media type without its parameters.
fn content_type(response: &Response) -> Option<String> {
    let header = response.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    Some(header.split(';').next()?.trim().to_ascii_lowercase())
}

#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    NoManifest,
    SchemaOne,
}

/// What a manifest is: by the header, if that says it, else by the bytes.
fn kind(header: Option<&str>, bytes: &[u8]) -> Result<String, Unusable> {
    let one = |kind: &str| DOCKER_SCHEMA_1.contains(&kind);
    let json: Value = serde_json::from_slice(bytes).map_err(|_| Unusable::NoManifest)?;
    let own = json.get("mediaType").and_then(Value::as_str);
    if header.is_some_and(one) || own.is_some_and(one) || json.get("schemaVersion") == Some(&Value::from(1)) {
        return Err(Unusable::SchemaOne);
    }
    let known = [header, own].into_iter().flatten().find(|kind| ROOTS.contains(kind));
    match known {
        Some(kind) => Ok(kind.to_owned()),
        None if own.is_some() => Err(Unusable::NoManifest),
        None if json.get("manifests").is_some() => Ok(MediaType::ImageIndex.to_string()),
        None if json.get("layers").is_some() => Ok(MediaType::ImageManifest.to_string()),
        None => Err(Unusable::NoManifest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_known_by_its_header_or_by_its_bytes() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        for (header, bytes, expected) in [
            (Some(oci), "{}", Ok(oci)),
            (Some("text/plain"), r#"{"layers":[]}"#, Ok(oci)),
            (None, r#"{"manifests":[]}"#, Ok("application/vnd.oci.image.index.v1+json")),
            (None, r#"{"schemaVersion":1}"#, Err(Unusable::SchemaOne)),
            (Some("text/html"), "<html>", Err(Unusable::NoManifest)),
            (None, r#"{"mediaType":"image/png"}"#, Err(Unusable::NoManifest)),
        ] {
            assert_eq!(kind(header, bytes.as_bytes()), expected.map(str::to_owned), "{bytes}");
        }
    }
}
