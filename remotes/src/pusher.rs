use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_content::ByteStream;

use crate::Result;

/// Takes content in, somewhere else.
#[async_trait]
pub trait Pusher: fmt::Debug + Send + Sync {
    /// Puts content where it can be fetched by its digest, and, if it is what the pusher was made for, by its tag.
    ///
    /// `content` gives all bytes of it. If a blob is there already, `content` is dropped without being asked for anything: so
    /// it may open its source when it is first polled. A manifest may be read in any case, for what it refers to.
    ///
    /// # Errors
    ///
    /// Those of [`Fetcher::fetch`](crate::Fetcher::fetch), [`Error::Source`](crate::Error::Source) if `content` fails or is
    /// not as long as the descriptor says, and [`Error::UploadLost`](crate::Error::UploadLost) if bytes are needed again that
    /// are not in memory any more. Nothing that was put before is lost, and the same call may be repeated with new `content`.
    async fn push(&self, descriptor: &Descriptor, content: ByteStream) -> Result<Pushed>;
}

/// The answer to [`Pusher::push`]: how the content came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pushed {
    /// It was there already.
    Existed,
    /// The registry took it from another of its repositories; no bytes were sent.
    Mounted,
    /// It was sent.
    Uploaded,
}

#[async_trait]
impl<P: Pusher + ?Sized> Pusher for Arc<P> {
    async fn push(&self, descriptor: &Descriptor, content: ByteStream) -> Result<Pushed> {
        (**self).push(descriptor, content).await
    }
}
