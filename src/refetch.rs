use std::{fmt, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use tokio::sync::OnceCell;
use windlass_content::{Blob, Error as ContentError, LocalStore, Provider};
use windlass_images::{BoxError, Filter, Handler, Lease, LeaseOptions, Resource, manifests};
use windlass_reference::Reference;
use windlass_remotes::{FetchHandler, Fetcher};

use crate::{
    Result, Windlass,
    labels::{SOURCE, UNPACKED},
    windlass::blocking,
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
    /// [`Error::Images`](crate::Error::Images). Opening what is missing fails with [`ContentError::Refetch`] if the image did not
    /// come from a registry, or that does not have it any more.
    pub async fn refetching(&self, name: &str) -> Result<Refetching> {
        let (this, looked_up) = (self.clone(), name.to_owned());
        let record = blocking(move || Ok(this.images().get(&looked_up)?)).await?;
        // Of other images nothing is missing that ever was here.
        let labels =
            record.as_ref().map(|record| &record.labels).filter(|labels| labels.contains_key(UNPACKED));
        let discarded = labels.map(|labels| labels.get(SOURCE).and_then(|source| source.parse().ok()));
        let lease = self.images().lease(LeaseOptions::default().label("use", name)).await?;
        if let Some(record) = record {
            lease.hold(&Resource::Tree(record.target.digest().clone())).await?;
        }
        let inner = Inner { windlass: self.clone(), lease, discarded, fetcher: OnceCell::new() };
        Ok(Refetching { inner: Arc::new(inner) })
    }

    /// The content of the image that a manifest belongs to: what is missing of it is fetched again, if it was discarded.
    pub(crate) async fn content_of(&self, manifest: &Descriptor) -> Result<Arc<dyn Provider>> {
        let this = self.clone();
        let discarded = blocking(move || Ok(this.images().list(&Filter::all().label(UNPACKED))?)).await?;
        for record in discarded {
            // One that cannot be read has nothing to say.
            let below = manifests(self.content(), &record.target).await.unwrap_or_default();
            if below.iter().any(|it| it.digest() == manifest.digest()) {
                return Ok(Arc::new(self.refetching(&record.name).await?));
            }
        }
        Ok(Arc::new(self.content().clone()))
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
    /// Whether layers were discarded, and where they came from, if that is a registry.
    discarded: Option<Option<Reference>>,
    /// Asked for when it is first needed.
    fetcher: OnceCell<Arc<dyn Fetcher>>,
}

impl fmt::Debug for Refetching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refetching").field("discarded", &self.inner.discarded).finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for Refetching {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob, ContentError> {
        let store = self.inner.windlass.content();
        match (store.open(descriptor).await, &self.inner.discarded) {
            (Err(ContentError::NotFound { .. } | ContentError::Damaged { .. }), Some(source)) => {
                let fetched = match source {
                    Some(source) => self.inner.fetch(store, source, descriptor).await,
                    None => Err("its image came from no registry; pull or import it again".into()),
                };
                let digest = descriptor.digest().clone();
                fetched.map_err(|source| ContentError::Refetch { digest, source })?;
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
