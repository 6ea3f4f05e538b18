use std::collections::HashSet;

use oci_spec::image::Descriptor;

use crate::{Handler, Result, dispatch::visit};

/// Handles a node and everything below it, one after the other: a node before its children, these in their
/// order, each digest once.
///
/// # Errors
///
/// [`Error::Handler`](crate::Error::Handler) for the first node whose handler fails.
pub async fn walk(handler: &dyn Handler, root: Descriptor) -> Result<()> {
    let mut seen = HashSet::new();
    let mut next = vec![root];
    while let Some(node) = next.pop() {
        if seen.insert(node.digest().clone()) {
            let children = visit(handler, &node).await?;
            next.extend(children.into_iter().rev());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use oci_spec::image::MediaType;

    use super::*;
    use crate::{BoxError, Next, testing::Memory};

    #[tokio::test]
    async fn a_node_comes_before_its_children_and_only_once() {
        let store = Memory::default();
        let [root, a, b, c] = ["root", "a", "b", "c"].map(|name| store.add(MediaType::ImageLayer, name));
        let order = Mutex::new(Vec::new());
        let handler = |node: Descriptor| {
            let children = if node == root {
                vec![a.clone(), c.clone(), b.clone()]
            } else if node == a {
                vec![b.clone(), root.clone()]
            } else {
                Vec::new()
            };
            order.lock().expect("no panic").push(node);
            async move { Ok::<_, BoxError>(Next::Visit(children)) }
        };

        walk(&handler, root.clone()).await.expect("nothing fails");

        assert_eq!(*order.lock().expect("no panic"), [root.clone(), a.clone(), b.clone(), c.clone()]);
    }
}
