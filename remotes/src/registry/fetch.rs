//! Opening content for reading, from any byte on.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use http::{
    StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE},
};
use oci_spec::image::Descriptor;
use url::Url;
use windlass_content::ByteStream;
use windlass_images::media_type::{is_index, is_manifest};

use super::{
    Server,
    auth::Scopes,
    body::{self, Source},
    content_range,
    exchange::{Answer, Call},
    request::line,
    resolve::accept,
    server::Repository,
};
use crate::{Error, Fetcher, Result, hosts::is_loopback, url::shown};

/// An answer, and how many of its first bytes are not wanted.
pub(super) struct Opened {
    pub(super) body: ByteStream,
    pub(super) skip: u64,
    /// Whether only a part comes, as was asked.
    pub(super) partial: bool,
    /// Where it ends, in bytes from the content's start.
    pub(super) end: u64,
    /// A strong validator of the content at this place, to resume it.
    pub(super) etag: Option<HeaderValue>,
}

/// The bytes that are asked for: from `first` to `last`, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

#[async_trait]
impl Fetcher for Repository {
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        if from >= descriptor.size() {
            return Ok(stream::empty().boxed());
        }
        let servers = self.able("pull", |may| may.pull)?;
        let limit = servers[0].inner.settings.max_manifest_size;
        if is_document(descriptor) && descriptor.size() > limit {
            return Err(Error::TooLarge { url: shown(&servers[0].url(&self.path(descriptor))), limit });
        }
        let foreign = self.foreign(&servers, descriptor);
        let mut sources: Vec<_> = servers.into_iter().map(|server| Source::new(server, None)).collect();
        sources.extend(foreign);
        body::open(self, descriptor, from, sources).await
    }
}

impl Repository {
    /// The places outside the registry that a foreign layer may come from, if that is wanted.
    fn foreign(&self, servers: &[Server], descriptor: &Descriptor) -> Vec<Source> {
        let registry = servers.last().filter(|server| server.inner.settings.foreign_urls);
        let urls = registry.into_iter().flat_map(|_| descriptor.urls().iter().flatten());
        let safe = |url: &Url| {
            url.scheme() == "https"
                || (url.scheme() == "http" && is_loopback(url.host_str().unwrap_or_default()))
        };
        let urls = urls.filter_map(|url| Url::parse(url).ok()).filter(safe);
        urls.filter_map(|url| Some(Source::new((*registry?).clone(), Some(url)))).collect()
    }

    /// Asks one source for some of the bytes of a node, and checks that these are what comes. A source that does not know how
    /// to give a part of them is asked for all.
    pub(super) async fn ask(&self, source: &Source, descriptor: &Descriptor, span: Span) -> Result<Opened> {
        let server = &source.server;
        let url = match &source.foreign {
            Some(url) => url.clone(),
            None => server.url(&self.path(descriptor)),
        };
        let mut headers = if is_document(descriptor) { accept() } else { HeaderMap::new() };
        if span.first > 0 || span.last < descriptor.size() - 1 {
            let range = format!("bytes={}-{}", span.first, span.last);
            headers.insert(RANGE, HeaderValue::from_str(&range).expect("a range is printable ASCII"));
            headers.extend(source.etag.clone().map(|etag| (IF_RANGE, etag)));
        }
        let scopes = Scopes::pull(&self.name);
        let call = Call::get(url.clone()).headers(headers);
        let mut call = if source.foreign.is_some() { call.anonymous() } else { call };
        let opened = match self.opened(source, &call, &scopes, descriptor, span).await {
            Err(Error::Status { status: 416, .. } | Error::BadResponse { .. })
                if call.headers.remove(RANGE).is_some() =>
            {
                call.headers.remove(IF_RANGE);
                self.opened(source, &call, &scopes, descriptor, span).await
            }
            opened => opened,
        };
        opened.map_err(|error| match error {
            Error::NotFound { url, .. } => {
                Error::NotFound { name: format!("{}/{}@{}", self.host, self.name, descriptor.digest()), url }
            }
            error => error,
        })
    }

    /// Sends a request for some of the bytes of a node, and checks that these are what comes.
    async fn opened(
        &self,
        source: &Source,
        call: &Call,
        scopes: &Scopes,
        descriptor: &Descriptor,
        span: Span,
    ) -> Result<Opened> {
        let answer = self.at_target(source, call, scopes).await?;
        let (skip, end) = checked(&answer, descriptor.size(), span)
            .map_err(|reason| Error::BadResponse { url: shown(&call.url), reason })?;
        let partial = answer.status == StatusCode::PARTIAL_CONTENT;
        let etag = answer.headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned();
        Ok(Opened { body: answer.body, skip, partial, end, etag })
    }

    /// Sends a request for content to where it is known to be, or else to the server, which may redirect to there.
    async fn at_target(&self, source: &Source, call: &Call, scopes: &Scopes) -> Result<Answer> {
        let Source { server, foreign, .. } = source;
        if foreign.is_some() {
            return server.request(call, scopes).await;
        }
        let targets = &server.inner.targets;
        if let Some(target) = targets.get(&call.url) {
            let direct = Call { url: target, ..call.clone() };
            match server.request_up_to(1, &direct, scopes).await {
                // The answer to a range is this content's, not the redirect's.
                Err(error @ Error::Status { status: 416, .. }) => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "asking anew where the content is");
                    targets.forget(&call.url);
                }
                answer => return answer,
            }
        }
        let answer = server.request(call, scopes).await?;
        if !server.is_home(&answer.url) {
            targets.remember(&call.url, &answer.url);
        }
        Ok(answer)
    }

    /// Where a node's content is on a server.
    fn path(&self, descriptor: &Descriptor) -> String {
        let kind = if is_document(descriptor) { "manifests" } else { "blobs" };
        format!("{}/{kind}/{}", self.name, descriptor.digest())
    }
}

fn is_document(descriptor: &Descriptor) -> bool {
    is_manifest(descriptor.media_type()) || is_index(descriptor.media_type())
}

/// How many bytes of the answer come before the span, and where in the content it ends.
fn checked(answer: &Answer, size: u64, span: Span) -> Result<(u64, u64), String> {
    answer.encoded()?;
    if answer.status == StatusCode::PARTIAL_CONTENT {
        let given = answer.header(CONTENT_RANGE);
        let fits = given.and_then(content_range::parse).filter(|range| {
            range.first == span.first
                && range.last <= span.last
                && range.total.is_none_or(|total| total == size)
        });
        return fits.map(|range| (0, range.last + 1)).ok_or_else(|| {
            let (Span { first, last }, given) = (span, given.unwrap_or_default());
            format!("asked for bytes {first} to {last} of {size}, it gave {:?}", line(given))
        });
    }
    match answer.header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok()) {
        Some(length) if length != size => Err(format!("it has {length} bytes instead of {size}")),
        _ => Ok((span.first, size)),
    }
}
