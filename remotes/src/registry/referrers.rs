//! What refers to an image: signatures, SBOMs and other artifacts (distribution spec, "Listing Referrers").

use http::{HeaderValue, header::CONTENT_TYPE};
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};
use windlass_images::view::Index;
use windlass_reference::Reference;

use super::{
    Registry, Server, auth::Scopes, exchange::Call, limits::Direction, resolve::accept, server::Repository,
};
use crate::{Error, Result, url::shown};

/// The most referrers of one image, and of a list's pages.
const MOST: usize = 10_000;

impl Registry {
    /// The manifests whose `subject` is the reference's digest, if wanted only those of one `artifact_type`.
    ///
    /// A registry that does not know of referrers is asked for the tag that stands for them, `sha256-<hex>`. An image to
    /// which nothing refers has an empty list; so has one that is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if the reference has no digest, else as [`Resolver::resolve`](crate::Resolver::resolve).
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
            let repository = &repository;
            async move { listed(&server, repository, subject, artifact_type).await }
        };
        let mut found = repository.first(servers, ask).await?;
        // Registries may give more than what was asked for, and say so or not.
        if let Some(wanted) = artifact_type {
            found
                .retain(|referrer| referrer.artifact_type().as_ref().is_some_and(|it| it.as_ref() == wanted));
        }
        Ok(found)
    }
}

/// What one server lists, with or without the referrers API.
async fn listed(
    server: &Server,
    repository: &Repository,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Descriptor>> {
    let name = &repository.name;
    let mut url = server.url(&format!("{name}/referrers/{subject}"));
    if let Some(artifact_type) = artifact_type {
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
    }
    let mut pages =
        super::list::Pages::new(vec![server.clone()], String::new(), Scopes::pull(name)).from(server, url);
    let mut found = Vec::new();
    loop {
        match pages.read().await {
            Ok((url, bytes)) => found.extend(parse(&url, &bytes)?),
            // A registry without the API, or, on the first page, without that repository.
            Err(Error::NotFound { .. }) if found.is_empty() => return by_tag(server, name, subject).await,
            Err(error) => return Err(error),
        }
        if found.len() > MOST {
            let reason = format!("more than {MOST} manifests refer to {subject}");
            return Err(Error::BadResponse { url: shown(&server.endpoint.url), reason });
        }
        if pages.is_at_end() {
            return Ok(found);
        }
    }
}

/// What is listed under the tag that stands for the referrers of `subject`. Nothing if there is no such tag.
async fn by_tag(server: &Server, repository: &str, subject: &Digest) -> Result<Vec<Descriptor>> {
    let url = server.url(&format!("{repository}/manifests/{}", tag(subject)));
    let limit = server.inner.settings.max_manifest_size;
    let call = Call::get(url.clone()).headers(accept());
    match server.read(&call, &Scopes::pull(repository), limit).await {
        Ok((_, bytes)) => parse(&url, &bytes),
        Err(Error::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Adds a manifest to the list under the tag that stands for the referrers of its subject: what whoever pushes has to do where
/// the registry does not (distribution spec, "Pushing Manifests with Subject").
///
/// Two who do so at once may lose one of the two: the protocol has nothing against it.
pub(super) async fn add_by_tag(
    server: &Server,
    repository: &str,
    subject: &Digest,
    referrer: Descriptor,
) -> Result<()> {
    let mut manifests = by_tag(server, repository, subject).await?;
    if manifests.iter().any(|known| known.digest() == referrer.digest()) {
        return Ok(());
    }
    manifests.push(referrer);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::ImageIndex.to_string(),
        "manifests": manifests,
    });
    let url = server.url(&format!("{repository}/manifests/{}", tag(subject)));
    let mut call = Call::new(http::Method::PUT, url).body(vec![index.to_string().into()]);
    let media_type = MediaType::ImageIndex.to_string();
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

fn parse(url: &::url::Url, bytes: &[u8]) -> Result<Vec<Descriptor>> {
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
