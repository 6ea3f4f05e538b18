//! Deleting what one has no more use for oneself, without a whole collection.

use std::sync::Arc;

use oci_spec::image::Digest;
use windlass_content::Error as ContentError;

use super::{
    mark::Marked,
    marks::{Marks, Node},
    roots,
};
use crate::{Lease, Result, gate};

impl Lease {
    /// Deletes those of `blobs` that nobody else has come to need since this lease was made, and gives them.
    ///
    /// The caller saw, when it had this lease, that they were not there: what was listed before does not have them either.
    /// Others who hold them, or have recorded an image with them since, keep them.
    ///
    /// # Errors
    ///
    /// As [`Gc::run`](super::Gc::run).
    pub async fn discard(
        &self,
        content: Arc<dyn windlass_content::Store>,
        blobs: &[Digest],
    ) -> Result<Vec<Digest>> {
        let mut discarded = Vec::new();
        for blob in blobs {
            // Marked anew for each, as a pull has few, so that nobody waits for long.
            let _inside = gate::enter(self.store().folder()).await?;
            let others = roots::others(self.store(), self.began(), self.id()).await?;
            let mut marked = Marked::new(content.clone(), false, Marks::in_memory().await?);
            marked.hold(&others.resources).await?;
            marked.mark(others.targets.iter().map(Node::from)).await?;
            if marked.has(blob).await? {
                continue;
            }
            match content.delete(blob).await {
                Ok(()) => discarded.push(blob.clone()),
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(discarded)
    }
}
