//! Manifests and blobs, whole and in part.

use std::ops::Range;

use axum::http::{StatusCode, header};
use bytes::Bytes;

use super::{answer::Answer, call::Call, signed};
use crate::fault::Kind;

/// A manifest by its tag or digest.
pub(crate) fn manifest(call: &Call, repository: &str, reference: &str) -> Answer {
    let shared = call.state.lock();
    let Some(repository) = shared.repositories.get(repository) else { return unknown_name() };
    let Some((digest, media_type, bytes)) = repository.manifest(reference) else {
        return Answer::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry");
    };
    Answer::new(StatusCode::OK)
        .header("content-type", media_type)
        .header("etag", format!("\"{digest}\""))
        .header("docker-content-digest", digest)
        .body(bytes.clone())
}

/// A blob, or the part of it that was asked for, or where it is.
pub(crate) fn blob(call: &Call, repository: &str, digest: &str) -> Answer {
    let shared = call.state.lock();
    let Some(repository) = shared.repositories.get(repository) else { return unknown_name() };
    let Some(bytes) = repository.blobs.get(digest).cloned() else {
        return Answer::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let elsewhere = shared.redirect.clone();
    // A registry may be redirected to itself.
    drop(shared);
    if let Some(elsewhere) = elsewhere {
        let url = signed::sign(&elsewhere, digest, bytes);
        return Answer::new(StatusCode::TEMPORARY_REDIRECT).header("location", url);
    }
    content(call, digest, bytes).header("docker-content-digest", digest)
}

/// These bytes, or the part of them that was asked for.
pub(crate) fn content(call: &Call, digest: &str, bytes: Bytes) -> Answer {
    let size = bytes.len();
    let etag = format!("\"{digest}\"");
    let answer = Answer::new(StatusCode::OK)
        .header("content-type", "application/octet-stream")
        .header("accept-ranges", "bytes")
        .header("etag", &*etag);
    let is_same = call.header(header::IF_RANGE).is_none_or(|it| it == etag);
    let asked = call.header(header::RANGE).filter(|_| is_same && !call.has(&Kind::IgnoreRange));
    let asked = match asked {
        Some(_) if call.has(&Kind::RefuseRange) => Asked::Nothing,
        Some(asked) => range(asked, size),
        None => Asked::Whole,
    };
    match asked {
        Asked::Whole => answer.body(bytes),
        Asked::Part(part) => {
            let range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            let answer = answer.status(StatusCode::PARTIAL_CONTENT).header("content-range", range);
            answer.body(bytes.slice(part))
        }
        Asked::Nothing => {
            let range = format!("bytes */{size}");
            answer.status(StatusCode::RANGE_NOT_SATISFIABLE).header("content-range", range)
        }
    }
}

/// Nothing was ever pushed there.
pub(crate) fn unknown_name() -> Answer {
    Answer::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry")
}

enum Asked {
    Whole,
    Part(Range<usize>),
    Nothing,
}

/// What a `Range` header asks for. One that does not parse is as good as none, as HTTP has it.
fn range(header: &str, size: usize) -> Asked {
    let parsed = header.strip_prefix("bytes=").and_then(|it| it.split_once('-'));
    let part = match parsed.map(|(start, end)| (start.parse::<usize>(), end.parse::<usize>(), start, end)) {
        Some((Ok(start), Ok(last), ..)) if start <= last => start..last.saturating_add(1).min(size),
        Some((Ok(start), _, _, "")) => start..size,
        Some((_, Ok(length), "", _)) => size.saturating_sub(length)..size,
        _ => return Asked::Whole,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Nothing }
}

#[cfg(test)]
mod tests {
    use crate::{http, sample};

    #[tokio::test]
    async fn manifests_are_served_by_tag_and_by_digest() {
        let (registry, image) = sample::registry().await;
        let digest = image.root.digest().to_string();
        for reference in ["latest", &digest] {
            let path = format!("/v2/library/app/manifests/{reference}");

            let head = http::send(&registry.host(), "HEAD", &path, &[], b"").await;
            let get = http::get(&registry.host(), &path).await;

            assert_eq!((head.status, get.status), (200, 200), "{reference}");
            assert_eq!(head.header("docker-content-digest"), Some(&*digest));
            assert_eq!(head.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
            assert_eq!(head.header("content-length"), Some(&*image.root.size().to_string()));
            assert_eq!(head.body, b"");
            assert_eq!(get.body, image.blob(image.root.digest()));
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_404_with_the_registry_s_error() {
        let (registry, image) = sample::registry().await;
        let manifest_as_blob = format!("/v2/library/app/blobs/{}", image.root.digest());
        for (path, code) in [
            ("/v2/library/app/manifests/other", "MANIFEST_UNKNOWN"),
            ("/v2/library/app/blobs/sha256:0", "BLOB_UNKNOWN"),
            (&*manifest_as_blob, "BLOB_UNKNOWN"),
            ("/v2/nobody/manifests/latest", "NAME_UNKNOWN"),
        ] {
            let response = http::get(&registry.host(), path).await;

            assert_eq!((response.status, &*response.error_code()), (404, code), "{path}");
        }
        assert_eq!(http::get(&registry.host(), "/v2/").await.status, 200);
    }

    #[tokio::test]
    async fn ranges_of_a_blob_are_served() {
        let (registry, image) = sample::registry().await;
        let path = sample::layer_path(&image);
        let whole = image.blob(image.layers()[0].digest());
        let size = whole.len();
        for (range, start, end) in
            [("bytes=100-199", 100, 200), ("bytes=5000-", 5000, size), ("bytes=-7", size - 7, size)]
        {
            let response = http::send(&registry.host(), "GET", &path, &[("range", range)], b"").await;

            assert_eq!(response.status, 206, "{range}");
            let content_range = format!("bytes {start}-{}/{size}", end - 1);
            assert_eq!(response.header("content-range"), Some(&*content_range));
            assert_eq!(response.body, whole[start..end], "{range}");
        }
        let past = format!("bytes={size}-");
        let response = http::send(&registry.host(), "GET", &path, &[("range", &past)], b"").await;
        assert_eq!(response.status, 416);
        let changed = [("range", "bytes=1-2"), ("if-range", "\"another\"")];
        assert_eq!(http::send(&registry.host(), "GET", &path, &changed, b"").await.status, 200);
    }
}
