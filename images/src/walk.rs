use std::collections::HashSet;

use oci_spec::image::Descriptor;

use crate::{
    Handler, Next, Result,
    dispatch::{failed_at, one_deeper},
};

/// Runs a handler on `root` and on all that is below it, one node after another, parents before children, each digest once.
///
/// # Errors
///
/// [`Error::Handler`](crate::Error::Handler) with the first node that failed, [`Error::TooDeep`](crate::Error::TooDeep) if there
/// is something below [`MAX_DEPTH`](crate::MAX_DEPTH).
pub async fn walk(handler: &dyn Handler, root: Descriptor) -> Result<()> {
    let mut seen = HashSet::new();
    let mut open = vec![(root, 0)];
    while let Some((node, depth)) = open.pop() {
        if !seen.insert(node.digest().clone()) {
            continue;
        }
        if let Next::Visit(children) =
            handler.handle(&node).await.map_err(|source| failed_at(&node, source))?
        {
            for child in children.into_iter().rev().filter(|child| !seen.contains(child.digest())) {
                let depth = one_deeper(depth, &child)?;
                open.push((child, depth));
            }
        }
    }
    Ok(())
}
