use async_trait::async_trait;
use oci_spec::image::Descriptor;

use crate::{BoxError, Handler, Next};

/// Two handlers, one after the other. Made by [`HandlerExt::then`](crate::HandlerExt::then).
#[derive(Clone, Debug)]
pub struct Then<A, B> {
    first: A,
    second: B,
}

impl<A, B> Then<A, B> {
    pub(crate) fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

#[async_trait]
impl<A: Handler, B: Handler> Handler for Then<A, B> {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        let Next::Visit(mut children) = self.first.handle(node).await? else {
            return Ok(Next::Skip);
        };
        let Next::Visit(more) = self.second.handle(node).await? else {
            return Ok(Next::Skip);
        };
        children.extend(more);
        Ok(Next::Visit(children))
    }
}
