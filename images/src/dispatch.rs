use std::{collections::HashSet, num::NonZeroUsize, sync::Arc};

use oci_spec::image::Descriptor;
use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};

use crate::{BoxError, Error, Handler, Next, Result};

/// How far below its root [`dispatch`] and [`walk`](crate::walk) go, in steps from a node to its child. An image is at one to
/// three; what is deeper was made to keep whoever reads it busy.
pub const MAX_DEPTH: usize = 32;

/// Runs a handler on `root` and on all that is below it: siblings at the same time, at most `limit` nodes at once, each digest
/// once.
///
/// Dropping the future stops all of it.
///
/// # Errors
///
/// [`Error::Handler`] with the first node that failed, [`Error::TooDeep`] if there is something below [`MAX_DEPTH`]. What else
/// was running is stopped.
pub async fn dispatch(handler: impl Handler + 'static, root: Descriptor, limit: NonZeroUsize) -> Result<()> {
    let handler = Arc::new(handler);
    let turns = Arc::new(Semaphore::new(limit.get()));
    let mut seen = HashSet::from([root.digest().clone()]);
    let mut running = JoinSet::new();
    let start = |running: &mut JoinSet<_>, node: Descriptor, depth: usize| {
        let (handler, turns) = (handler.clone(), turns.clone());
        running.spawn(async move {
            let _turn = turns.acquire().await.expect("the semaphore is never closed");
            let next = handler.handle(&node).await.map_err(|source| failed_at(&node, source));
            next.map(|next| (depth, next))
        });
    };

    start(&mut running, root, 0);
    while let Some(done) = running.join_next().await {
        let (depth, Next::Visit(children)) = done.unwrap_or_else(resume_panic)? else { continue };
        for child in children {
            if seen.insert(child.digest().clone()) {
                let depth = one_deeper(depth, &child)?;
                start(&mut running, child, depth);
            }
        }
    }
    Ok(())
}

/// The depth of a node's child, if it may be visited.
pub(crate) fn one_deeper(depth: usize, child: &Descriptor) -> Result<usize> {
    match depth < MAX_DEPTH {
        true => Ok(depth + 1),
        false => Err(Error::TooDeep { digest: child.digest().clone(), limit: MAX_DEPTH }),
    }
}

/// Says at which node a handler failed.
pub(crate) fn failed_at(node: &Descriptor, source: BoxError) -> Error {
    Error::Handler { media_type: node.media_type().to_string(), digest: node.digest().clone(), source }
}

/// A handler's panic is its caller's, as if it had been called here.
fn resume_panic<T>(error: JoinError) -> T {
    std::panic::resume_unwind(error.into_panic())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use oci_spec::image::MediaType;
    use windlass_content::hash::sha256;

    use super::*;

    fn node(name: &str) -> Descriptor {
        Descriptor::new(MediaType::Other(name.into()), 1, sha256(name.as_bytes()))
    }

    #[tokio::test]
    async fn each_digest_is_visited_once_even_in_a_circle() {
        let visited = Arc::new(Mutex::new(Vec::new()));
        let log = visited.clone();
        let handler = move |it: Descriptor| {
            log.lock().expect("nobody panics").push(it.media_type().to_string());
            async move {
                Ok(Next::Visit(match it.media_type().as_ref() {
                    "root" => vec![node("a"), node("b"), node("a")],
                    "a" => vec![node("b"), node("root")],
                    _ => vec![],
                }))
            }
        };

        dispatch(handler, node("root"), NonZeroUsize::MIN).await.expect("no node fails");

        let mut visited = visited.lock().expect("nobody panics").clone();
        visited.sort();
        assert_eq!(visited, ["a", "b", "root"]);
    }

    #[tokio::test]
    async fn a_chain_ends_at_the_greatest_depth() {
        for (length, good) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
            let chain = move |it: Descriptor| async move {
                let at: usize = it.media_type().to_string().parse().expect("the names are numbers");
                Ok::<_, BoxError>(Next::Visit(
                    (at < length).then(|| node(&(at + 1).to_string())).into_iter().collect(),
                ))
            };

            let dispatched = dispatch(chain, node("0"), NonZeroUsize::MIN).await;
            let walked = crate::walk(&chain, node("0")).await;

            for outcome in [dispatched, walked] {
                let deepest = sha256(length.to_string().as_bytes());
                let err = outcome.err().map(|err| err.to_string());
                let expected = format!("{deepest} is more than {MAX_DEPTH} steps below the image's root");
                assert_eq!(err, (!good).then_some(expected), "{length}");
            }
        }
    }

    #[tokio::test]
    async fn the_first_failure_ends_it_and_names_the_node() {
        let handler = |it: Descriptor| async move {
            match it.media_type().as_ref() {
                "root" => Ok(Next::Visit(vec![node("bad"), node("endless")])),
                "bad" => Err("no good".into()),
                _ => std::future::pending().await,
            }
        };

        let err = dispatch(handler, node("root"), NonZeroUsize::new(8).expect("eight is not zero")).await;

        let Err(Error::Handler { digest, source, .. }) = err else { panic!("{err:?}") };
        assert_eq!((digest, source.to_string()), (sha256(b"bad"), "no good".to_owned()));
    }
}
