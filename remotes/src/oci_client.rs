//! The crate `oci-client` as a resolver.

use std::{fmt, io, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci_client::{
    client::BlobResponse,
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Deserialize;
use serde::de::IgnoredAny;
use windlass_content::ByteStream;
use windlass_images::media_type;
use windlass_reference::Reference;

use crate::{Error, Fetcher, Resolved, Resolver, Result};

/// Registries as an [`oci_client::Client`] sees them, for programs that have one set up already.
///
/// [`Registry`](crate::Registry) does more: it goes on with a body that broke, tries again, and knows mirrors and
/// credential helpers. Here [`FetchHandler`](crate::FetchHandler) still resumes what breaks in the middle.
#[derive(Clone)]
pub struct OciClient {
    client: oci_client::Client,
    auth: RegistryAuth,
}

impl OciClient {
    /// Resolves and fetches with `client`.
    pub fn new(client: oci_client::Client) -> Self {
        Self { client, auth: RegistryAuth::Anonymous }
    }

    /// Sets who to be, at all registries. Nobody if not set.
    pub fn auth(self, auth: RegistryAuth) -> Self {
        Self { auth, ..self }
    }

    async fn manifest(&self, image: &oci_client::Reference) -> Result<(Bytes, String)> {
        self.client
            .pull_manifest_raw(image, &self.auth, &media_type::ROOTS)
            .await
            .map_err(|error| translated(image, error))
    }
}

impl fmt::Debug for OciClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OciClient").field("auth", &self.auth).finish_non_exhaustive()
    }
}

#[async_trait]
impl Resolver for OciClient {
    async fn resolve(&self, reference: &Reference) -> Result<Resolved> {
        let name = reference.to_string();
        let unusable = |reason: String| Error::BadResponse { url: name.clone(), reason };
        let image: oci_client::Reference =
            name.parse().map_err(|error: oci_client::ParseError| unusable(error.to_string()))?;
        let (bytes, digest) = self.manifest(&image).await?;
        // The client checked the bytes against the digest that was asked for, too.
        let digest: Digest = match reference.digest() {
            Some(digest) => digest.clone(),
            None => digest.parse().map_err(|_| unusable(format!("{digest:?} is no digest")))?,
        };
        let media_type = media_type_of(&bytes).ok_or_else(|| unusable("it is no manifest".into()))?;
        Ok(Resolved {
            descriptor: Descriptor::new(media_type, bytes.len() as u64, digest),
            fetcher: Arc::new(Repository { client: self.clone(), image }),
            name,
        })
    }
}

/// What a manifest says to be, or must be: the client does not tell what the registry announced.
fn media_type_of(bytes: &[u8]) -> Option<MediaType> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Document {
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
    }
    let document: Document = serde_json::from_slice(bytes).ok()?;
    Some(match (document.media_type, document.manifests) {
        (Some(media_type), _) => MediaType::from(&*media_type),
        (None, Some(_)) => MediaType::ImageIndex,
        (None, None) => MediaType::ImageManifest,
    })
}

/// What fetches the content of one image.
#[derive(Debug)]
struct Repository {
    client: OciClient,
    image: oci_client::Reference,
}

#[async_trait]
impl Fetcher for Repository {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        let left = descriptor.size().saturating_sub(from);
        if left == 0 {
            return Ok(stream::empty().boxed());
        }
        let digest = descriptor.digest().as_ref();
        let kind = descriptor.media_type();
        if media_type::is_index(kind) || media_type::is_manifest(kind) {
            let (bytes, _) = self.client.manifest(&self.image.clone_with_digest(digest.to_owned())).await?;
            return Ok(window(stream::iter([Ok(bytes)]).boxed(), from, left));
        }
        // Only the digest is passed on, so that no foreign address in the descriptor is followed.
        let client = &self.client.client;
        client.store_auth_if_needed(self.image.resolve_registry(), &self.client.auth).await;
        let answer = client.pull_blob_stream_partial(&self.image, digest, from, None).await;
        Ok(match answer.map_err(|error| translated(&self.image, error))? {
            BlobResponse::Full(body) => window(body.stream, from, left),
            BlobResponse::Partial(body) => window(body.stream, 0, left),
        })
    }
}

/// The `left` bytes that follow the first `skip` ones. Fails if there are less.
fn window(body: ByteStream, skip: u64, left: u64) -> ByteStream {
    stream::try_unfold((body, skip, left), |(mut body, mut skip, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        loop {
            let Some(mut chunk) = body.try_next().await? else {
                let message = format!("the body ended {left} bytes early");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            };
            let skipped = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            let mut chunk = chunk.split_off(skipped);
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if !chunk.is_empty() {
                let left = left - chunk.len() as u64;
                return Ok(Some((chunk, (body, skip, left))));
            }
        }
    })
    .boxed()
}

/// The client's error in this crate's words.
fn translated(image: &oci_client::Reference, error: OciDistributionError) -> Error {
    let (host, name) = (image.resolve_registry().to_owned(), image.whole());
    match error {
        OciDistributionError::RegistryError { envelope, url } => {
            let message = envelope.to_string();
            match envelope.errors.first().map(|error| &error.code) {
                Some(
                    OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound,
                ) => Error::NotFound { name, url },
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => {
                    Error::Unauthorized { host, url, message }
                }
                Some(OciErrorCode::Toomanyrequests) => Error::Status { host, url, status: 429, message },
                _ => Error::BadResponse { url, reason: message },
            }
        }
        OciDistributionError::ServerError { code: 404, url, .. } => Error::NotFound { name, url },
        OciDistributionError::ServerError { code: status, url, message } => {
            Error::Status { host, url, status, message }
        }
        OciDistributionError::UnauthorizedError { url } => {
            Error::Unauthorized { host, url, message: String::new() }
        }
        OciDistributionError::AuthenticationFailure(message) => {
            Error::Unauthorized { host, url: name, message }
        }
        OciDistributionError::RequestError(error) if error.is_connect() => {
            Error::Connect { host, url: name, source: io::Error::other(error.without_url()) }
        }
        OciDistributionError::RequestError(error) => {
            Error::Transport { host, url: name, source: io::Error::other(error.without_url()) }
        }
        other => Error::BadResponse { url: name, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_what_it_says_or_looks_like() {
        for (text, want) in [
            (r#"{"mediaType":"a/b"}"#, Some("a/b")),
            (r#"{"manifests":[]}"#, Some("application/vnd.oci.image.index.v1+json")),
            (r#"{"layers":[]}"#, Some("application/vnd.oci.image.manifest.v1+json")),
            ("<html>", None),
        ] {
            let media_type = media_type_of(text.as_bytes()).map(|it| it.to_string());
            assert_eq!(media_type.as_deref(), want, "{text}");
        }
    }

    #[tokio::test]
    async fn a_window_is_as_long_as_it_says_or_fails() {
        for (skip, left, want) in [(0, 6, Some("abcdef")), (4, 1, Some("e")), (6, 0, Some("")), (4, 3, None)]
        {
            let body = stream::iter(["abc", "", "def"].map(|it| Ok(Bytes::from(it)))).boxed();
            let read: io::Result<Vec<_>> = window(body, skip, left).try_collect().await;
            assert_eq!(read.ok().map(|it| it.concat()).as_deref(), want.map(str::as_bytes), "{skip} {left}");
        }
    }
}
