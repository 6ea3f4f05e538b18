use std::collections::HashSet;

use oci_spec::image::Descriptor;

use crate::{Handler, Next, Result, dispatch::failed_at};

/// Runs a handler on `root` and on all that is below it, one node after another, parents before children, each digest once.
///
/// # Errors
///
/// [`Error::Handler`](crate::Error::Handler) with the first node that failed.
pub async fn walk(handler: &dyn Handler, root: Descriptor) -> Result<()> {
    let mut seen = HashSet::new();
    let mut open = vec![root];
    while let Some(node) = open.pop() {
        if !seen.insert(node.digest().clone()) {
            continue;
        }
        if let Next::Visit(children) =
            handler.handle(&node).await.map_err(|source| failed_at(&node, source))?
        {
            open.extend(children.into_iter().rev());
        }
    }
    Ok(())
}
