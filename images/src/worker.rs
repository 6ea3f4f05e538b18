use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use tokio::sync::oneshot;

/// Blocking work on a thread of its own. Nobody waits for the thread when this is dropped: it has to notice by itself,
/// for instance by a channel that is closed.
#[derive(Debug)]
pub(crate) struct Worker<T>(oneshot::Receiver<thread::Result<T>>);

impl<T: Send + 'static> Worker<T> {
    /// Starts the work.
    pub(crate) fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (sender, receiver) = oneshot::channel();
        thread::Builder::new().name(name.into()).spawn(move || {
            // An error says that nobody waits any more.
            let _ = sender.send(catch_unwind(AssertUnwindSafe(work)));
        })?;
        Ok(Self(receiver))
    }

    /// Waits for the end of the work. Its panic is its caller's.
    pub(crate) async fn end(self) -> T {
        match self.0.await.expect("the thread always answers") {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        }
    }
}
