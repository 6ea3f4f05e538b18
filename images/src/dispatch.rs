use std::{
    collections::{HashSet, VecDeque},
    num::NonZeroUsize,
    panic,
    sync::Arc,
};

use oci_spec::image::Descriptor;
use tokio::task::JoinSet;

use crate::{Error, Handler, Next, Result};

/// Handles a node and everything below it, up to `limit` nodes at once, each digest once.
///
/// Each node has a task of its own. Dropping the future aborts them.
///
/// # Errors
///
/// [`Error::Handler`] for the first node whose handler fails. The other tasks have ended by then.
pub async fn dispatch(handler: impl Handler + 'static, root: Descriptor, limit: NonZeroUsize) -> Result<()> {
    let handler = Arc::new(handler);
    let mut seen = HashSet::from([root.digest().clone()]);
    let mut waiting = VecDeque::from([root]);
    let mut running = JoinSet::new();
    loop {
        while running.len() < limit.get()
            && let Some(node) = waiting.pop_front()
        {
            let handler = handler.clone();
            running.spawn(async move { visit(&*handler, &node).await });
        }
        match running.join_next().await {
            None => return Ok(()),
            Some(Ok(Ok(children))) => {
                waiting.extend(children.into_iter().filter(|child| seen.insert(child.digest().clone())));
            }
            Some(Ok(Err(error))) => {
                running.shutdown().await;
                return Err(error);
            }
            Some(Err(failure)) => panic::resume_unwind(failure.into_panic()),
        }
    }
}

/// Calls the handler, and gives the children that it leads to.
pub(crate) async fn visit(handler: &dyn Handler, node: &Descriptor) -> Result<Vec<Descriptor>> {
    match handler.handle(node).await {
        Ok(Next::Visit(children)) => Ok(children),
        Ok(Next::Skip) => Ok(Vec::new()),
        Err(source) => {
            Err(Error::Handler { digest: node.digest().clone(), media_type: node.media_type().clone(), source })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use oci_spec::image::MediaType;

    use super::*;
    use crate::{BoxError, testing::Memory};

    fn nodes() -> [Descriptor; 4] {
        let store = Memory::default();
        ["root", "a", "b", "c"].map(|name| store.add(MediaType::ImageLayer, name))
    }

    #[tokio::test]
    async fn every_digest_is_visited_once_and_no_more_at_once_than_the_limit() {
        let [root, a, b, c] = nodes();
        let (total, now, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let handler = {
            let (root, total, most) = (root.clone(), total.clone(), most.clone());
            move |node: Descriptor| {
                let children = match node == root {
                    true => vec![a.clone(), b.clone(), a.clone(), c.clone()],
                    false => vec![root.clone()],
                };
                let (total, now, most) = (total.clone(), now.clone(), most.clone());
                async move {
                    total.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, BoxError>(Next::Visit(children))
                }
            }
        };

        dispatch(handler, root, NonZeroUsize::new(2).expect("two is not zero")).await.expect("nothing fails");

        assert_eq!((total.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (4, 2));
    }

    #[tokio::test]
    async fn the_first_error_names_its_node_and_ends_the_others() {
        let [root, bad, slow, _] = nodes();
        let alive = Arc::new(());
        let handler = {
            let (root, bad, alive) = (root.clone(), bad.clone(), alive.clone());
            move |node: Descriptor| {
                let (is_root, is_bad, alive) = (node == root, node == bad, alive.clone());
                let children = vec![slow.clone(), bad.clone()];
                async move {
                    let _alive = alive;
                    match (is_root, is_bad) {
                        (true, _) => Ok(Next::Visit(children)),
                        (_, true) => Err(BoxError::from("no")),
                        _ => std::future::pending().await,
                    }
                }
            }
        };

        let result = dispatch(handler, root, NonZeroUsize::new(4).expect("four is not zero")).await;

        let Err(Error::Handler { digest, source, .. }) = result else { panic!("{result:?}") };
        assert_eq!((&digest, source.to_string()), (bad.digest(), "no".to_owned()));
        assert_eq!(Arc::strong_count(&alive), 1, "no task is left");
    }
}
