//! Blobs behind signed URLs, as registries keep them with a cloud's object store.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::http::{StatusCode, header};
use bytes::Bytes;

use super::{answer::Answer, call::Call, pull};
use crate::state::{Signed, State};

/// What the path of a signed URL starts with.
pub(crate) const FOLDER: &str = "/cdn/";

/// A new URL under which this registry serves these bytes.
pub(crate) fn sign(state: &Arc<State>, digest: &str, bytes: Bytes) -> String {
    let lifetime = state.settings.signed_url_lifetime;
    let mut shared = state.lock();
    let signature = format!("signature-{}", shared.signed.len());
    let signed = Signed {
        digest: digest.to_owned(),
        bytes,
        until: Instant::now() + lifetime,
        uses_left: state.settings.signed_url_uses,
    };
    shared.signed.insert(signature.clone(), signed);
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
    let (url, seconds) = (state.url(), lifetime.as_secs());
    format!("{url}{FOLDER}{digest}?X-Amz-Date={date}&X-Amz-Expires={seconds}&sig={signature}")
}

/// The blob, as long as the URL is good. No credentials are wanted: like the real ones, this refuses a request
/// that brings some.
pub(crate) fn get(call: &Call) -> Answer {
    if call.headers.contains_key(header::AUTHORIZATION) {
        return refuse(StatusCode::BAD_REQUEST, "InvalidArgument");
    }
    let digest = call.path.strip_prefix(FOLDER);
    let mut shared = call.state.lock();
    let signed = call.parameter("sig").and_then(|it| shared.signed.get_mut(it));
    let Some(signed) = signed.filter(|it| Some(&*it.digest) == digest) else {
        return refuse(StatusCode::FORBIDDEN, "SignatureDoesNotMatch");
    };
    if Instant::now() > signed.until || signed.uses_left == Some(0) {
        return refuse(StatusCode::FORBIDDEN, "AccessDenied");
    }
    signed.uses_left = signed.uses_left.map(|left| left - 1);
    pull::content(call, &signed.digest, signed.bytes.clone())
}

fn refuse(status: StatusCode, code: &str) -> Answer {
    let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code></Error>");
    Answer::new(status).header("content-type", "application/xml").body(body)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Registry, http, sample};

    /// Host and path of where a request for the layer is sent to.
    async fn elsewhere(registry: &Registry, path: &str) -> (String, String) {
        let answer = http::get(&registry.host(), path).await;
        assert_eq!(answer.status, 307);
        let url = answer.header("location").expect("a redirect has a location");
        let (host, path) =
            url.strip_prefix("http://").and_then(|it| it.split_once('/')).expect("it is a URL");
        (host.to_owned(), format!("/{path}"))
    }

    #[tokio::test]
    async fn a_redirected_blob_is_served_by_the_other_registry_without_credentials() {
        let (registry, image) = sample::registry().await;
        let other = Registry::builder().password("user", "secret").start().await;
        registry.redirect_blobs_to(&other);

        let (host, path) = elsewhere(&registry, &sample::layer_path(&image)).await;
        let whole = http::get(&host, &path).await;
        let part = http::send(&host, "GET", &path, &[("range", "bytes=3-4")], b"").await;
        let leak = http::send(&host, "GET", &path, &[("authorization", "Basic dTpw")], b"").await;
        let forged = http::get(&host, &path.replace("signature-0", "forged")).await;

        assert_eq!(host, other.host());
        let bytes = image.blob(image.layers()[0].digest());
        assert_eq!((whole.status, &*whole.body), (200, &*bytes));
        assert_eq!((part.status, &*part.body), (206, &bytes[3..5]));
        assert_eq!((leak.status, forged.status), (400, 403));
        let log = other.requests();
        assert_eq!(log[0].parameter("X-Amz-Expires"), Some("300"));
        assert_eq!(log[0].parameter("X-Amz-Date").map(str::len), Some("20240101T000000Z".len()));
    }

    #[tokio::test]
    async fn a_signed_url_runs_out() {
        let (registry, image) = sample::registry().await;
        let soon = Registry::builder().signed_url_lifetime(Duration::from_millis(30)).start().await;
        registry.redirect_blobs_to(&soon);
        let (host, path) = elsewhere(&registry, &sample::layer_path(&image)).await;
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert_eq!(http::get(&host, &path).await.status, 403);

        let twice = Registry::builder().signed_url_uses(2).start().await;
        registry.redirect_blobs_to(&twice);
        let (host, path) = elsewhere(&registry, &sample::layer_path(&image)).await;
        let mut statuses = Vec::new();
        for _ in 0..3 {
            statuses.push(http::get(&host, &path).await.status);
        }
        assert_eq!(statuses, [200, 200, 403]);
        let (host, path) = elsewhere(&registry, &sample::layer_path(&image)).await;
        assert_eq!(http::get(&host, &path).await.status, 200, "another URL has its own uses");
    }
}
