//! From a reference to a descriptor.

use http::{
    HeaderMap, HeaderValue, Method,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::Value;
use url::Url;
use windlass_content::hash::{Hasher, sha256};
use windlass_images::media_type::{DOCKER_SCHEMA_1, ROOTS, is_index};
use windlass_reference::Reference;

use super::{
    Server,
    auth::Scopes,
    exchange::{Answer, Call},
    limits::Direction,
    request::line,
    server::Repository,
};
use crate::{Error, Result, url::shown};

/// The header in which a registry says what a manifest's digest is.
pub(super) const DIGEST: &str = "docker-content-digest";

/// Asks one server after another what a reference stands for.
pub(super) async fn resolve(repository: &Repository, reference: &Reference) -> Result<Descriptor> {
    // What a digest stands for can be checked, so any server may say it.
    let servers = match reference.digest() {
        Some(_) => repository.able("pull", |may| may.pull || may.resolve)?,
        None => repository.able("resolve tags", |may| may.resolve)?,
    };
    let _turn = servers[0].turn(Direction::Download).await;
    let name = &repository.name;
    let ask = |server| async move { Question { server: &server, name, reference }.ask().await };
    repository.first(servers, ask).await.map_err(|error| match error {
        Error::NotFound { url, .. } => Error::NotFound { name: reference.to_string(), url },
        error => error,
    })
}

/// The `Accept` header for all manifests and indexes.
pub(super) fn accept() -> HeaderMap {
    let value = HeaderValue::from_str(&ROOTS.join(", ")).expect("media types are printable ASCII");
    HeaderMap::from_iter([(ACCEPT, value)])
}

/// What one server is asked.
struct Question<'a> {
    server: &'a Server,
    /// The repository.
    name: &'a str,
    reference: &'a Reference,
}

impl Question<'_> {
    async fn ask(&self) -> Result<Descriptor> {
        let url = self.server.url(&format!("{}/manifests/{}", self.name, self.reference.object()));
        let head = Call::new(Method::HEAD, url.clone()).headers(accept());
        let scopes = Scopes::pull(self.name);
        let first = match self.reference.digest() {
            None => self.server.request(&head, &scopes).await,
            Some(digest) => match self.server.request_unless(500, &head, &scopes).await {
                // CNCF's registry answers 500 when a layer is asked for as a manifest. If it has the blob, that is the answer.
                Err(Error::Status { status: 500, .. }) => match self.blob(digest).await {
                    Ok(found) => return Ok(found),
                    Err(_) => self.server.request(&head, &scopes).await,
                },
                answer => answer,
            },
        };
        let answer = match first {
            Ok(answer) => self.head(&url, &answer),
            // Some registries refuse this method; what they say to GET counts.
            Err(Error::Status { .. }) => Ok(None),
            // An answer to HEAD has no words. Those to GET may say why.
            Err(Error::Unauthorized { message, .. }) if message.is_empty() => Ok(None),
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(None) => self.get(&url).await,
            Ok(Some(descriptor)) => Ok(descriptor),
            Err(error) => Err(error),
        };
        match (answer, self.reference.digest()) {
            (Err(Error::NotFound { .. }), Some(digest)) => self.blob(digest).await,
            (answer, _) => answer,
        }
    }

    /// What the headers of an answer say. `None` if they do not say everything.
    fn head(&self, url: &Url, answer: &Answer) -> Result<Option<Descriptor>> {
        let expected = self.reference.digest();
        let digest = answer
            .header(DIGEST)
            .and_then(|text| text.parse::<Digest>().ok())
            .filter(|digest| Hasher::new(digest).is_ok())
            // The same bytes may have a digest of another algorithm too.
            .filter(|digest| expected.is_none_or(|expected| expected.algorithm() == digest.algorithm()));
        let size = answer.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        // No manifest is empty: who says so counts the bytes of the answer to HEAD.
        let size = size.filter(|size| *size > 0 && answer.encoded().is_ok());
        let kind = content_type(answer).filter(|kind| ROOTS.contains(&kind.as_str()));
        let (Some(digest), Some(size), Some(kind)) = (digest, size, kind) else {
            return Ok(None);
        };
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(Error::DigestMismatch {
                url: shown(url),
                expected: expected.clone(),
                actual: digest,
            });
        }
        let limit = self.server.inner.settings.max_manifest_size;
        if size > limit {
            return Err(Error::TooLarge { url: shown(url), limit });
        }
        Ok(Some(Descriptor::new(MediaType::from(kind.as_str()), size, digest)))
    }

    /// Reads the whole manifest: its digest is what its bytes hash to.
    async fn get(&self, url: &Url) -> Result<Descriptor> {
        let limit = self.server.inner.settings.max_manifest_size;
        let call = Call::get(url.clone()).headers(accept());
        let (answer, bytes) = self.server.read(&call, &Scopes::pull(self.name), limit).await?;
        answer.encoded().map_err(|reason| Error::BadResponse { url: shown(url), reason })?;
        let digest = match self.reference.digest() {
            None => sha256(&bytes),
            Some(expected) => checked(&bytes, expected, url)?,
        };
        let kind = kind(content_type(&answer).as_deref(), &bytes).map_err(|what| match what {
            Unusable::SchemaOne => Error::SchemaOne { name: self.reference.to_string() },
            Unusable::Because(reason) => Error::BadResponse { url: shown(url), reason },
        })?;
        Ok(Descriptor::new(MediaType::from(kind.as_str()), bytes.len() as u64, digest))
    }

    /// Something else that a digest may name: a layer, a config.
    async fn blob(&self, digest: &Digest) -> Result<Descriptor> {
        let url = self.server.url(&format!("{}/blobs/{digest}", self.name));
        let call = Call::new(Method::HEAD, url.clone());
        let answer = self.server.request(&call, &Scopes::pull(self.name)).await?;
        let length = answer.header(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let size = length.ok_or_else(|| Error::BadResponse {
            url: shown(&url),
            reason: "it does not say how long it is".into(),
        })?;
        Ok(Descriptor::new(MediaType::from("application/octet-stream"), size, digest.clone()))
    }
}

/// The digest of some bytes, which must be this one.
pub(super) fn checked(bytes: &[u8], expected: &Digest, url: &Url) -> Result<Digest> {
    let mut hasher = Hasher::new(expected)
        .map_err(|error| Error::Config { reason: format!("cannot check {expected}: {error}") })?;
    hasher.update(bytes);
    let actual = hasher.finish();
    match actual == *expected {
        true => Ok(actual),
        false => Err(Error::DigestMismatch { url: shown(url), expected: expected.clone(), actual }),
    }
}

/// The media type without its parameters.
fn content_type(answer: &Answer) -> Option<String> {
    Some(answer.header(CONTENT_TYPE)?.split(';').next()?.trim().to_ascii_lowercase())
}

#[derive(Debug, PartialEq, Eq)]
enum Unusable {
    /// It is none, or could as well be something else.
    Because(String),
    SchemaOne,
}

/// What a manifest is: by the header, if that says it, else by the bytes. They must not contradict each other.
fn kind(header: Option<&str>, bytes: &[u8]) -> Result<String, Unusable> {
    let none = |why: &str| Err(Unusable::Because(format!("it is not an image manifest: {why}")));
    let one = |kind: &str| DOCKER_SCHEMA_1.contains(&kind);
    let Ok(json) = serde_json::from_slice::<Value>(bytes) else {
        return none("it is not JSON");
    };
    let has = |name: &str| json.get(name).is_some_and(|value| !value.is_null());
    let own = json.get("mediaType").and_then(Value::as_str);
    if header.is_some_and(one) || own.is_some_and(one) || json.get("schemaVersion") == Some(&Value::from(1)) {
        return Err(Unusable::SchemaOne);
    }
    let known = [header, own].into_iter().flatten().find(|kind| ROOTS.contains(kind));
    let kind = match known {
        Some(kind) => kind.to_owned(),
        None if own.is_some() => return none("it says to be something else"),
        None if has("manifests") => MediaType::ImageIndex.to_string(),
        None if has("layers") || has("config") => MediaType::ImageManifest.to_string(),
        None => return none("it lists nothing"),
    };
    if let Some(own) = own.filter(|own| *own != kind) {
        return none(&format!("it says to be {}, and was sent as {kind}", line(own)));
    }
    // Bytes that mean one thing to one client and another to the next (CVE-2021-41190).
    let index = is_index(&MediaType::from(kind.as_str()));
    match if index { has("layers") || has("config") } else { has("manifests") } {
        true => none("it is a manifest and an index at once"),
        false => Ok(kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_known_by_its_header_or_by_its_bytes() {
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let index = "application/vnd.oci.image.index.v1+json";
        for (header, bytes, expected) in [
            (Some(oci), "{}", oci),
            (Some("text/plain"), r#"{"layers":[]}"#, oci),
            (Some("text/plain"), r#"{"config":{},"manifests":null}"#, oci),
            (None, r#"{"manifests":[]}"#, index),
        ] {
            assert_eq!(kind(header, bytes.as_bytes()), Ok(expected.to_owned()), "{bytes}");
        }
        for (header, bytes, why) in [
            (Some("text/html"), "<html>", "not JSON"),
            (None, r#"{"mediaType":"image/png"}"#, "something else"),
            (None, "{}", "lists nothing"),
            (Some(oci), r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#, "was sent as"),
            (Some(oci), r#"{"layers":[],"manifests":[]}"#, "at once"),
            (Some(index), r#"{"config":{},"manifests":[]}"#, "at once"),
            (None, r#"{"manifests":[],"layers":[]}"#, "at once"),
        ] {
            let Err(Unusable::Because(reason)) = kind(header, bytes.as_bytes()) else { panic!("{bytes}") };
            assert!(reason.contains(why), "{bytes}: {reason}");
        }
        assert_eq!(kind(None, br#"{"schemaVersion":1}"#), Err(Unusable::SchemaOne));
    }
}
