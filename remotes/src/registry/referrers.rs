//! What refers to an image: signatures, SBOMs and other artifacts (distribution spec, "Listing Referrers").

use bytes::Bytes;
use http::{HeaderValue, Method, header::CONTENT_TYPE};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};
use url::Url;
use windlass_images::view::Index;
use windlass_reference::Reference;

use super::{
    Registry, Server, auth::Scopes, exchange::Call, limits::Direction, list::Pages, resolve::accept,
};
use crate::{Error, Result, url::shown};

/// The most referrers of one image.
const MOST: usize = 10_000;

impl Registry {
    /// The manifests whose `subject` is the reference's digest, if wanted only those of one `artifact_type`.
    ///
    /// A registry that does not know of referrers is asked for the tag that stands for them, `sha256-<hex>`. An image to
    /// which nothing refers has an empty list; so has one that is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the reference has no digest, [`Error::BadResponse`] if there are more than 10,000, else as
    /// [`Resolver::resolve`](crate::Resolver::resolve).
    pub async fn referrers(
        &self,
        reference: &Reference,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let subject = reference.digest().ok_or_else(|| Error::Config {
            reason: format!("{reference} has no digest, so nothing can refer to it"),
        })?;
        let repository = self.repository(reference).await?;
        let servers = repository.able("list referrers", |may| may.resolve)?;
        let _turn = servers[0].turn(Direction::Download).await;
        let ask = |server: Server| {
            let name = &repository.name;
            async move { listed(&server, name, subject, artifact_type).await }
        };
        let mut found = match repository.first(servers, ask).await {
            Err(Error::NotFound { .. }) => Vec::new(),
            answer => answer?,
        };
        // Registries may give more than what was asked for, and say so or not.
        if let Some(wanted) = artifact_type {
            found
                .retain(|referrer| referrer.artifact_type().as_ref().is_some_and(|it| it.as_ref() == wanted));
        }
        Ok(found)
    }
}

/// What one server lists, with or without the API. [`Error::NotFound`] if it knows nothing, so that another one is asked.
async fn listed(
    server: &Server,
    repository: &str,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>> {
    match by_api(server, repository, subject, artifact_type).await? {
        Some(found) => Ok(found),
        None => {
            let (url, bytes) = by_tag(server, repository, subject).await?;
            parse(&url, &bytes)
        }
    }
}

/// What the API lists. `None` if there is no such API, or no such repository.
async fn by_api(
    server: &Server,
    repository: &str,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Option<Vec<Descriptor>>> {
    let mut url = server.url(&format!("{repository}/referrers/{subject}"));
    if let Some(artifact_type) = artifact_type {
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
    }
    let mut pages = Pages::new(vec![], String::new(), Scopes::pull(repository)).from(server, url);
    let mut found = match pages.read().await {
        Ok((url, bytes)) => parse(&url, &bytes)?,
        // The first one is the rule; the others are how registries speak that never heard of it.
        Err(Error::NotFound { .. } | Error::Status { status: 400 | 405 | 406 | 501, .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    while !pages.is_at_end() {
        let (url, bytes) = pages.read().await.map_err(|error| match error {
            Error::NotFound { url, .. } => {
                Error::BadResponse { url, reason: "a page of the list is not there".into() }
            }
            error => error,
        })?;
        found.extend(parse(&url, &bytes)?);
        if found.len() > MOST {
            let reason = format!("more than {MOST} manifests refer to {subject}");
            return Err(Error::BadResponse { url: shown(&url), reason });
        }
    }
    Ok(Some(found))
}

/// Where the list is that stands for the referrers of `subject`, and its bytes. [`Error::NotFound`] if there is none.
async fn by_tag(server: &Server, repository: &str, subject: &Digest) -> Result<(Url, Bytes)> {
    let url = server.url(&format!("{repository}/manifests/{}", tag(subject)));
    let limit = server.inner.settings.max_manifest_size;
    let call = Call::get(url.clone()).headers(accept());
    let (_, bytes) = server.read(&call, &Scopes::pull(repository), limit).await?;
    Ok((url, bytes))
}

/// Sees to it that a manifest which is there already is listed as a referrer: whoever put it may have been interrupted.
pub(super) async fn ensure(
    server: &Server,
    repository: &str,
    subject: &Digest,
    referrer: Descriptor,
) -> Result<()> {
    match by_api(server, repository, subject, None).await? {
        Some(_) => Ok(()),
        None => add_by_tag(server, repository, subject, referrer).await,
    }
}

/// Adds a manifest to the list under the tag that stands for the referrers of its subject: what whoever pushes has to do where
/// the registry does not (distribution spec, "Pushing Manifests with Subject").
///
/// All that the list has is kept. One client does so once at a time. Two clients that do so at once may lose one of the two:
/// the protocol has nothing against it.
pub(super) async fn add_by_tag(
    server: &Server,
    repository: &str,
    subject: &Digest,
    referrer: Descriptor,
) -> Result<()> {
    let _alone = server.inner.referrers.lock().await;
    let media_type = MediaType::ImageIndex.to_string();
    let (mut index, mut manifests) = match by_tag(server, repository, subject).await {
        Ok((url, bytes)) => {
            if parse(&url, &bytes)?.iter().any(|known| known.digest() == referrer.digest()) {
                return Ok(());
            }
            // Not what was parsed, which may be less than what is there.
            let mut index: Value = serde_json::from_slice(&bytes).expect("it was parsed a moment ago");
            let manifests = index["manifests"].take();
            (index, manifests.as_array().cloned().unwrap_or_default())
        }
        Err(Error::NotFound { .. }) => {
            (json!({ "schemaVersion": 2, "mediaType": media_type }), Vec::default())
        }
        Err(error) => return Err(error),
    };
    manifests.push(json!(referrer));
    index["manifests"] = manifests.into();
    let url = server.url(&format!("{repository}/manifests/{}", tag(subject)));
    let mut call = Call::new(Method::PUT, url).body(vec![index.to_string().into()]);
    call.headers
        .insert(CONTENT_TYPE, HeaderValue::from_str(&media_type).expect("a media type is printable ASCII"));
    server.request(&call, &Scopes::push(repository)).await?;
    Ok(())
}

/// `sha256:…` as a tag: `sha256-…`, cut to what a tag may have.
fn tag(subject: &Digest) -> String {
    let cut = |text: &str, most: usize| text[..text.len().min(most)].to_owned();
    format!("{}-{}", cut(subject.algorithm().as_ref(), 32), cut(subject.digest(), 64))
}

fn parse(url: &Url, bytes: &[u8]) -> Result<Vec<Descriptor>> {
    let bad = |reason: String| Error::BadResponse { url: shown(url), reason };
    let placeholder =
        Descriptor::new(MediaType::ImageIndex, bytes.len() as u64, windlass_content::hash::sha256(bytes));
    let index = Index::parse(&placeholder, bytes)
        .map_err(|error| bad(format!("it is not a list of referrers: {error}")))?;
    Ok(index.manifests)
}

/// What a manifest refers to, and how it is listed there. `None` if it refers to nothing.
pub(super) fn subject(descriptor: &Descriptor, bytes: &[u8]) -> Option<(Digest, Descriptor)> {
    let manifest: Value = serde_json::from_slice(bytes).ok()?;
    let subject: Descriptor = serde_json::from_value(manifest.get("subject")?.clone()).ok()?;
    let text = |value: Option<&Value>| {
        value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(MediaType::from)
    };
    let artifact_type = text(manifest.get("artifactType"))
        .or_else(|| text(manifest.get("config").and_then(|it| it.get("mediaType"))));
    let mut listed =
        Descriptor::new(descriptor.media_type().clone(), descriptor.size(), descriptor.digest().clone());
    listed.set_artifact_type(artifact_type);
    listed
        .set_annotations(manifest.get("annotations").and_then(|it| serde_json::from_value(it.clone()).ok()));
    Some((subject.digest().clone(), listed))
}
