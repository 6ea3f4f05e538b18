//! Putting content into a repository.

use async_trait::async_trait;
use http::{HeaderValue, Method, header::CONTENT_TYPE};
use oci_spec::image::{Descriptor, Digest};
use windlass_content::ByteStream;
use windlass_images::media_type::{is_index, is_manifest};
use windlass_reference::Reference;

use super::{
    Registry, Server,
    auth::Scopes,
    exchange::Call,
    limits::Direction,
    referrers,
    resolve::{DIGEST, accept, checked},
    upload,
};
use crate::{Error, Pushed, Pusher, Result, url::shown};

/// Says that the registry lists the pushed manifest as a referrer of this subject.
const SUBJECT: &str = "oci-subject";

/// Puts content into one repository. Made by [`Registry::pusher`].
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
    /// [`Error::Config`] if no server of that registry may be pushed to, and what [`Hosts`](crate::hosts::Hosts) may answer.
    pub async fn pusher(&self, reference: &Reference, root: &Digest) -> Result<RegistryPusher> {
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
        let scopes = Scopes::push(&self.repository);
        let head = Call::new(Method::HEAD, url.clone()).headers(accept());
        match self.server.request(&head, &scopes).await {
            Ok(answer) if answer.header(DIGEST) == Some(descriptor.digest().as_ref()) => {
                return Ok(Pushed::Existed);
            }
            // Other content, or a registry that does not say, or not to this method: it is put, then.
            Ok(_) | Err(Error::NotFound { .. } | Error::Status { .. }) => {}
            Err(error) => return Err(error),
        }

        let limit = self.server.inner.settings.max_manifest_size;
        if descriptor.size() > limit {
            return Err(Error::TooLarge { url: shown(&url), limit });
        }
        let mut source = upload::Source::new(descriptor, content);
        let bytes = source.take(limit).await?.concat();
        checked(&bytes, descriptor.digest(), &url)?;
        let bytes = bytes::Bytes::from(bytes);
        let kind = HeaderValue::from_str(descriptor.media_type().as_ref()).map_err(|_| Error::Config {
            reason: format!("{:?} is not a media type", descriptor.media_type().as_ref()),
        })?;
        let mut put = Call::new(Method::PUT, url.clone()).body(vec![bytes.clone()]);
        put.headers.insert(CONTENT_TYPE, kind);
        let answer = self.server.request(&put, &scopes).await?;
        if let Some(actual) = answer.header(DIGEST).and_then(|digest| digest.parse::<Digest>().ok())
            && actual != *descriptor.digest()
        {
            return Err(Error::DigestMismatch {
                url: shown(&url),
                expected: descriptor.digest().clone(),
                actual,
            });
        }
        if let Some((subject, listed)) = referrers::subject(descriptor, &bytes)
            && answer.header(SUBJECT).is_none()
        {
            referrers::add_by_tag(&self.server, &self.repository, &subject, listed).await?;
        }
        Ok(Pushed::Uploaded)
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
