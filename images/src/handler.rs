use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use oci_spec::image::Descriptor;

use crate::Then;

/// What a handler's failure is, before [`dispatch`](crate::dispatch) says at which node it was.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Does something with a node of an image, and says where to go from there.
///
/// Closures that take a [`Descriptor`] and return a future are handlers.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Handles one node.
    ///
    /// # Errors
    ///
    /// Any: the first error ends the walk.
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError>;
}

/// Where to go from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// On to these children, in any order. Often there are none.
    Visit(Vec<Descriptor>),
    /// Nowhere: no further handler sees this node, and nothing below it is visited.
    Skip,
}

#[async_trait]
impl<H: Handler + ?Sized> Handler for Arc<H> {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        (**self).handle(node).await
    }
}

#[async_trait]
impl<F, Fut> Handler for F
where
    F: Fn(Descriptor) -> Fut + Send + Sync,
    Fut: Future<Output = Result<Next, BoxError>> + Send,
{
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        self(node.clone()).await
    }
}

/// Combinators, written once for every handler.
pub trait HandlerExt: Handler + Sized {
    /// Runs `second` after this handler on every node that it does not skip. The children of both are visited.
    fn then<B: Handler>(self, second: B) -> Then<Self, B> {
        Then::new(self, second)
    }
}

impl<H: Handler> HandlerExt for H {}
