use async_trait::async_trait;
use oci_spec::image::Descriptor;

use crate::{
    BoxError, Handler, Next,
    progress::{Event, Progress},
};

/// Announces every node, before the handlers after it have their turn.
#[derive(Clone, Debug)]
pub struct Track {
    progress: Progress,
}

impl Track {
    /// A handler that sends [`Event::Waiting`] for each node.
    pub fn new(progress: Progress) -> Self {
        Self { progress }
    }
}

#[async_trait]
impl Handler for Track {
    async fn handle(&self, node: &Descriptor) -> Result<Next, BoxError> {
        self.progress.send(Event::Waiting { descriptor: node.clone() });
        Ok(Next::Visit(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;

    use super::*;
    use crate::{progress, testing::descriptor};

    #[tokio::test]
    async fn a_node_is_announced() {
        let (progress, mut events) = progress::channel();
        let node = descriptor(MediaType::ImageLayer);

        let next = Track::new(progress).handle(&node).await.expect("it cannot fail");

        assert_eq!(next, Next::Visit(Vec::new()));
        assert_eq!(events.recv().await, Some(Event::Waiting { descriptor: node }));
        assert_eq!(events.recv().await, None);
    }
}
