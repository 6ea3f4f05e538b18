//! Opening content for reading, from any byte on.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use oci_spec::image::Descriptor;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE},
};
use url::Url;
use windlass_content::ByteStream;
use windlass_images::media_type::{is_index, is_manifest};

use super::{Repository, body, content_range, host::shown, resolve::accept};
use crate::{Error, Fetcher, Result};

/// An answer, and how many of its first bytes are not wanted.
pub(super) struct Opened {
    pub(super) response: Response,
    pub(super) skip: u64,
}

#[async_trait]
impl Fetcher for Repository {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        if from >= descriptor.size() {
            return Ok(stream::empty().boxed());
        }
        let opened = self.open(descriptor, from).await?;
        Ok(body::resumed(self.clone(), descriptor.clone(), from, opened))
    }
}

impl Repository {
    /// Where a node's content is.
    pub(super) fn content_url(&self, descriptor: &Descriptor) -> Url {
        let manifest = is_manifest(descriptor.media_type()) || is_index(descriptor.media_type());
        let kind = if manifest { "manifests" } else { "blobs" };
        self.host.url(&self.name, kind, descriptor.digest().as_ref())
    }

    /// Asks for the bytes from `from` on, and checks that these are what comes.
    pub(super) async fn open(&self, descriptor: &Descriptor, from: u64) -> Result<Opened> {
        let url = self.content_url(descriptor);
        let mut headers = accept();
        if url.path().contains("/blobs/") {
            headers.clear();
        }
        if from > 0 {
            let range = format!("bytes={from}-{}", descriptor.size() - 1);
            headers.insert(RANGE, HeaderValue::from_str(&range).expect("a range is printable ASCII"));
        }
        let response = self.request(Method::GET, &url, &headers).await.map_err(|error| match error {
            Error::NotFound { url, .. } => Error::NotFound {
                name: format!("{}/{}@{}", self.host.name, self.name, descriptor.digest()),
                url,
            },
            error => error,
        })?;
        let skip = checked(&response, descriptor.size(), from)
            .map_err(|reason| Error::BadResponse { url: shown(&url), reason })?;
        Ok(Opened { response, skip })
    }
}

/// How many bytes of the answer come before `from`.
fn checked(response: &Response, size: u64, from: u64) -> Result<u64, String> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let range = header(CONTENT_RANGE).and_then(content_range::parse);
        return match range {
            Some(range)
                if range.first == from
                    && range.total.is_none_or(|total| total == size)
                    && range.last < size =>
            {
                Ok(0)
            }
            _ => Err(format!(
                "asked for bytes {from} to {} of {size}, it gave {:?}",
                size - 1,
                header(CONTENT_RANGE).unwrap_or_default()
            )),
        };
    }
    match header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length != size => Err(format!("it has {length} bytes instead of {size}")),
        _ => Ok(from),
    }
}
