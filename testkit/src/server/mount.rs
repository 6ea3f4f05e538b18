//! Blobs that a repository takes over from another one.

use super::{answer::Answer, call::Call, upload};

/// Takes the blob from another repository, if it is there and the client may see it.
pub(crate) fn mount(call: &Call, repository: &str) -> Option<Answer> {
    let (digest, from) = (call.parameter("mount")?, call.parameter("from")?);
    let settings = &call.state.settings;
    let scope = format!("repository:{from}:pull");
    let is_allowed = !settings.token
        || call.authorization("Bearer ").is_some_and(|token| call.state.tokens().allow(token, &scope));
    if settings.without_mount || !is_allowed {
        return None;
    }
    let bytes = call.state.lock().repositories.get(from)?.blobs.get(digest).cloned()?;
    Some(upload::commit(call, repository, digest, bytes))
}

#[cfg(test)]
mod tests {
    use crate::{Registry, http, image::sha256};

    const UPLOADS: &str = "/v2/library/app/blobs/uploads/";

    async fn token(registry: &Registry, scope: &str) -> String {
        let answer = http::json(&http::get(&registry.host(), &format!("/token?scope={scope}")).await);
        format!("Bearer {}", answer["token"].as_str().expect("it has a token"))
    }

    #[tokio::test]
    async fn a_blob_is_mounted_where_it_is() {
        for (builder, digest, status) in [
            (Registry::builder(), sha256(b"abc"), 201),
            (Registry::builder(), sha256(b"other"), 202),
            (Registry::builder().without_mount(), sha256(b"abc"), 202),
        ] {
            let registry = builder.start().await;
            registry.push_blob("base", "abc");

            let path = format!("{UPLOADS}?mount={digest}&from=base");
            let answer = http::send(&registry.host(), "POST", &path, &[], b"").await;

            assert_eq!(answer.status, status, "{registry:?} {digest}");
            assert_eq!(registry.blob("library/app", sha256(b"abc")).is_some(), status == 201);
            assert_eq!(registry.uploads() == 1, status == 202, "otherwise an upload begins");
        }
    }

    #[tokio::test]
    async fn a_blob_is_mounted_only_for_whoever_may_pull_it() {
        let registry = Registry::builder().token_auth().start().await;
        registry.push_blob("base", "abc");
        let path = format!("{UPLOADS}?mount={}&from=base", sha256(b"abc"));
        for (from, status) in [("repository:base:push", 202), ("repository:base:pull", 201)] {
            let token = token(&registry, &format!("repository:library/app:pull,push+{from}")).await;

            let header = [("authorization", &*token)];
            let answer = http::send(&registry.host(), "POST", &path, &header, b"").await;

            assert_eq!(answer.status, status, "{from}");
        }
    }

    #[tokio::test]
    async fn whoever_may_only_pull_cannot_push_and_learns_both_scopes() {
        let registry = Registry::builder().token_auth().start().await;
        let path = format!("{UPLOADS}?mount={}&from=base", sha256(b"abc"));
        let token = token(&registry, "repository:library/app:pull").await;

        let refused = http::send(&registry.host(), "POST", &path, &[("authorization", &token)], b"").await;

        assert_eq!((refused.status, registry.uploads()), (401, 0));
        let challenge = refused.header("www-authenticate").expect("a 401 has a challenge");
        let scopes = "scope=\"repository:library/app:pull,push repository:base:pull\"";
        assert!(challenge.contains(scopes), "{challenge}");
    }
}
