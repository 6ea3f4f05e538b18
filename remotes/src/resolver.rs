use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use windlass_reference::Reference;

use crate::{Fetcher, Result};

/// Finds out what a name stands for.
#[async_trait]
pub trait Resolver: fmt::Debug + Send + Sync {
    /// Asks which content the reference stands for now.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::Error::NotFound) if there is no such name, and what [`Fetcher::fetch`] may answer.
    async fn resolve(&self, reference: &Reference) -> Result<Resolved>;
}

/// The answer to [`Resolver::resolve`].
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The normalised name, for the image store: `docker.io/library/redis:latest`.
    pub name: String,
    /// The root of the content: a manifest or an index.
    pub descriptor: Descriptor,
    /// Where the root and all that is below it can be fetched.
    pub fetcher: Arc<dyn Fetcher>,
}
