use async_trait::async_trait;
use oci_spec::image::Descriptor;

use crate::{
    BoxError, Handler, Next,
    progress::{Event, Progress},
};

/// Says of each node that it was found. Put it first.
#[derive(Clone, Debug)]
pub struct Track {
    progress: Progress,
}

impl Track {
    /// A handler that sends [`Event::Waiting`].
    pub fn new(progress: Progress) -> Self {
        Self { progress }
    }
}

#[async_trait]
impl Handler for Track {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        self.progress.send(Event::Waiting { descriptor: node.clone() });
        Ok(Next::Visit(vec![]))
    }
}
