use async_trait::async_trait;
use oci_spec::image::Descriptor;

use crate::{BoxError, Handler, Lease, Next, Resource};

/// Holds each node with a lease, before anybody looks whether it is there. Put it before the handler that fetches.
#[derive(Clone, Debug)]
pub struct Hold {
    lease: Lease,
}

impl Hold {
    /// A handler that holds nodes with `lease`.
    pub fn new(lease: Lease) -> Self {
        Self { lease }
    }
}

#[async_trait]
impl Handler for Hold {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        self.lease.hold(&Resource::Blob(node.digest().clone())).await?;
        Ok(Next::Visit(vec![]))
    }
}
