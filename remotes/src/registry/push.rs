//! Putting content into a repository.

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, header::CONTENT_TYPE};
use oci_spec::image::{Descriptor, Digest};
use url::Url;
use windlass_content::{ByteStream, hash::Hasher};
use windlass_images::media_type::{is_index, is_manifest};
use windlass_reference::Reference;

use super::{
    Registry, Server,
    auth::Scopes,
    exchange::{Answer, Call},
    limits::Direction,
    referrers,
    resolve::{DIGEST, accept, checked},
    upload,
};
use crate::{Error, Pushed, Pusher, Result, url::shown};

/// Says that the registry lists the pushed manifest as a referrer of this subject.
const SUBJECT: &str = "oci-subject";

/// Puts content into one repository. Made by [`Registry::pusher`].
///
/// A manifest with a `subject` is listed among the referrers of that, too: by the registry, or, where it knows nothing of
/// referrers, in an index under the tag `sha256-<hex of the subject>`. That index is read, changed and put again, and the
/// protocol has nothing against somebody else who does so in between: then one of the two additions is lost, until that
/// manifest is pushed again. Clones of one [`Registry`] wait for each other.
#[derive(Clone, Debug)]
pub struct RegistryPusher {
    pub(super) server: Server,
    pub(super) repository: String,
    /// Repositories of the same registry that may have the blobs already.
    pub(super) mount_from: Vec<String>,
    tag: Option<String>,
    root: Digest,
}

impl Registry {
    /// A pusher into the reference's repository. The manifest of digest `root` is put under the reference's tag, everything
    /// else by its digest.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if no server of that registry may be pushed to, or the reference has another digest than `root`, and
    /// what [`Hosts`](crate::hosts::Hosts) may answer.
    pub async fn pusher(&self, reference: &Reference, root: &Digest) -> Result<RegistryPusher> {
        if reference.digest().is_some_and(|digest| digest != root) {
            let reason = format!("{root} cannot be pushed as {reference}, which has another digest");
            return Err(Error::Config { reason });
        }
        let repository = self.repository(reference).await?;
        let server = repository.able("take content in", |may| may.push)?.swap_remove(0);
        Ok(RegistryPusher {
            server,
            repository: repository.name,
            mount_from: Vec::new(),
            tag: reference.tag().map(str::to_owned),
            root: root.clone(),
        })
    }
}

impl RegistryPusher {
    /// Asks the registry to take blobs from this repository of its own, such as `library/debian`, before they are sent. May be
    /// called again.
    pub fn mount_from(mut self, repository: impl Into<String>) -> Self {
        self.mount_from.push(repository.into());
        self
    }

    async fn manifest(&self, descriptor: &Descriptor, content: ByteStream) -> Result<Pushed> {
        let object = match &self.tag {
            Some(tag) if *descriptor.digest() == self.root => tag.clone(),
            _ => descriptor.digest().to_string(),
        };
        let url = self.server.url(&format!("{}/manifests/{object}", self.repository));
        let limit = self.server.inner.settings.max_manifest_size;
        if descriptor.size() > limit {
            return Err(Error::TooLarge { url: shown(&url), limit });
        }
        let is_there = self.has_manifest(descriptor, &url).await?;
        let bytes = Bytes::from(upload::Source::new(descriptor, content).take(limit).await?.concat());
        checked(&bytes, descriptor.digest(), &url)?;
        let subject = referrers::subject(descriptor, &bytes);
        if is_there {
            if let Some((subject, listed)) = subject {
                referrers::ensure(&self.server, &self.repository, &subject, listed).await?;
            }
            return Ok(Pushed::Existed);
        }
        let answer = self.put(descriptor, &url, bytes).await?;
        if let Some((subject, listed)) = subject
            && answer.header(SUBJECT).is_none()
        {
            referrers::add_by_tag(&self.server, &self.repository, &subject, listed).await?;
        }
        Ok(Pushed::Uploaded)
    }

    /// Whether this very manifest is at this URL. If the registry does not say so, it is put.
    async fn has_manifest(&self, descriptor: &Descriptor, url: &Url) -> Result<bool> {
        let head = Call::new(Method::HEAD, url.clone()).headers(accept());
        match self.server.request(&head, &Scopes::push(&self.repository)).await {
            Ok(answer) => Ok(answer.header(DIGEST) == Some(descriptor.digest().as_ref())),
            Err(Error::NotFound { .. }) => Ok(false),
            // A registry that does not take this method. If it takes nothing else either, it will say why.
            Err(error @ Error::Status { .. }) if !error.is_transient() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, descriptor: &Descriptor, url: &Url, bytes: Bytes) -> Result<Answer> {
        let kind = HeaderValue::from_str(descriptor.media_type().as_ref()).map_err(|_| Error::Config {
            reason: format!("{:?} is not a media type", descriptor.media_type().as_ref()),
        })?;
        let mut put = Call::new(Method::PUT, url.clone()).body(vec![bytes.clone()]);
        put.headers.insert(CONTENT_TYPE, kind);
        let answer = self.server.request(&put, &Scopes::push(&self.repository)).await?;
        let said = answer.header(DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
        // It may be of another algorithm than ours.
        let differs = |said: &Digest| {
            Hasher::new(said).is_ok_and(|mut hasher| {
                hasher.update(&bytes);
                hasher.finish() != *said
            })
        };
        match said.filter(differs) {
            Some(actual) => {
                let expected = descriptor.digest().clone();
                Err(Error::DigestMismatch { url: shown(url), expected, actual })
            }
            None => Ok(answer),
        }
    }
}

#[async_trait]
impl Pusher for RegistryPusher {
    async fn push(&self, descriptor: &Descriptor, content: ByteStream) -> Result<Pushed> {
        let _turn = self.server.turn(Direction::Upload).await;
        if is_manifest(descriptor.media_type()) || is_index(descriptor.media_type()) {
            return self.manifest(descriptor, content).await;
        }
        upload::blob(self, descriptor, content).await
    }
}
