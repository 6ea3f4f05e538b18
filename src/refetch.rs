use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use tokio::sync::OnceCell;
use windlass_content::{Blob, Error as ContentError, LocalStore, Provider};
use windlass_images::{BoxError, Handler, Lease, LeaseOptions, Resource};
use windlass_reference::Reference;
use windlass_remotes::{FetchHandler, Fetcher};

use crate::{
    Result, Windlass,
    names::{SOURCE, UNPACKED},
    pull::blocking,
};

impl Windlass {
    /// The content of an image. What is missing of one that was pulled with [`Retain::Unpacked`](crate::Retain::Unpacked) is fetched
    /// again, from where it came.
    ///
    /// Such an image can so be pushed, exported, and unpacked again. As long as the provider lives, no garbage collection takes what
    /// it has fetched.
    ///
    /// # Errors
    ///
    /// [`Error::Images`](crate::Error::Images). Opening what is missing fails if the image did not come from a registry, or that
    /// does not have it any more.
    pub async fn refetching(&self, name: &str) -> Result<Refetching> {
        let (this, looked_up) = (self.clone(), name.to_owned());
        let record = blocking(move || Ok(this.images().get(&looked_up)?)).await?;
        // Of other images nothing is missing that ever was here.
        let labels =
            record.as_ref().map(|record| &record.labels).filter(|labels| labels.contains_key(UNPACKED));
        let source = labels.and_then(|labels| labels.get(SOURCE)?.parse().ok());
        let lease = self.images().lease(LeaseOptions::default().label("use", name)).await?;
        if let Some(record) = record {
            lease.hold(&Resource::Tree(record.target.digest().clone())).await?;
        }
        let inner = Inner { windlass: self.clone(), lease, source, fetcher: OnceCell::new() };
        Ok(Refetching { inner: Arc::new(inner) })
    }
}

/// The content of an image, fetched again where it is missing. From [`Windlass::refetching`].
#[derive(Clone)]
pub struct Refetching {
    inner: Arc<Inner>,
}

struct Inner {
    windlass: Windlass,
    lease: Lease,
    source: Option<Reference>,
    /// Asked for when it is first needed.
    fetcher: OnceCell<Arc<dyn Fetcher>>,
}

impl fmt::Debug for Refetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refetching").field("source", &self.inner.source).finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for Refetching {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob, ContentError> {
        let store = self.inner.windlass.content();
        match (store.open(descriptor).await, &self.inner.source) {
            (Err(ContentError::NotFound { .. } | ContentError::Damaged { .. }), Some(source)) => {
                self.inner.fetch(store, source, descriptor).await.map_err(|error| ContentError::Source {
                    digest: descriptor.digest().clone(),
                    source: std::io::Error::other(error),
                })?;
                store.open(descriptor).await
            }
            (answer, _) => answer,
        }
    }
}

impl Inner {
    async fn fetch(&self, store: &LocalStore, source: &Reference, blob: &Descriptor) -> Result<(), BoxError> {
        // By its digest: the tag may stand for something else by now.
        let there = source.clone().with_digest(blob.digest().clone());
        let resolve = || async { Ok::<_, BoxError>(self.windlass.resolver().resolve(&there).await?.fetcher) };
        let fetcher = self.fetcher.get_or_try_init(resolve).await?;
        self.lease.hold(&Resource::Blob(blob.digest().clone())).await?;
        FetchHandler::new(fetcher.clone(), Arc::new(store.clone())).handle(blob).await?;
        Ok(())
    }
}
