//! Waiting for locks between processes without holding up anybody else: awaited, not polled, and fair inside a process.
//!
//! What is locked, and how, is the caller's: a file, a folder, a part of a file. The kernel takes such a lock back when its
//! holder dies.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot},
    task::spawn_blocking,
};

/// What to do about a lock that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Leave it.
    None,
    /// Block until it is free.
    Endless,
}

/// Makes an attempt without patience, and if that gives `None`, one with endless patience.
///
/// The first runs where blocking work runs. The second has a thread of its own: the wait may be long, whoever has the lock may
/// need the runtime's threads, and the runtime must be able to end meanwhile. If the future is dropped, what the attempt gives
/// is dropped as well.
///
/// # Errors
///
/// What the attempt answers; what `no_thread` makes of the failure if no thread can be started.
pub async fn patiently<T: Send + 'static, E: Send + 'static>(
    attempt: impl Fn(Patience) -> Result<Option<T>, E> + Clone + Send + 'static,
    no_thread: impl FnOnce(io::Error) -> E,
) -> Result<T, E> {
    let first = attempt.clone();
    let tried = spawn_blocking(move || first(Patience::None)).await;
    if let Some(locked) = tried.expect("an attempt neither panics nor is aborted")? {
        return Ok(locked);
    }
    let (sender, receiver) = oneshot::channel();
    // Whoever asked may have gone meanwhile; then the lock goes with the message.
    let wait = move || drop(sender.send(attempt(Patience::Endless)));
    thread::Builder::new().name("windlass-lock".into()).spawn(wait).map_err(no_thread)?;
    let locked = receiver.await.expect("the thread always answers")?;
    Ok(locked.expect("who waits without end gets the lock"))
}

/// Locks a file or folder (flock(2)) until it is closed. Gives whether it is locked: always, with endless patience.
///
/// # Errors
///
/// What the system answers: the file system may have no locks.
pub fn flock(file: &File, patience: Patience) -> io::Result<bool> {
    loop {
        let locked = match patience {
            Patience::Endless => file.lock(),
            Patience::None => match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(error)) => Err(error),
                Ok(()) => Ok(()),
            },
        };
        match locked {
            // A signal came to this thread; the wait is not over.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer.map(|()| true),
        }
    }
}

/// Who is next in this process, for each of many locks. With this, at most one thread waits for each.
#[derive(Debug)]
pub struct Turns<K> {
    by_name: Mutex<BTreeMap<K, Weak<AsyncMutex<()>>>>,
}

/// One's turn at a lock, until it is dropped: then it is the turn of whoever has waited longest.
#[derive(Debug)]
pub struct Turn(
    #[expect(dead_code, reason = "it is held, and given on when it is dropped")] OwnedMutexGuard<()>,
);

impl<K: Ord> Turns<K> {
    /// Nobody waits for anything.
    pub const fn new() -> Self {
        Self { by_name: Mutex::new(BTreeMap::new()) }
    }

    /// Waits for a turn.
    pub async fn wait(&self, name: K) -> Turn {
        Turn(self.mutex(name).lock_owned().await)
    }

    /// A turn, if nobody else has it.
    pub fn take(&self, name: K) -> Option<Turn> {
        self.mutex(name).try_lock_owned().ok().map(Turn)
    }

    /// The mutex of a lock; those that nobody uses any more are forgotten.
    fn mutex(&self, name: K) -> Arc<AsyncMutex<()>> {
        let mut by_name = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mutex) = by_name.get(&name).and_then(Weak::upgrade) {
            return mutex;
        }
        by_name.retain(|_, mutex| mutex.strong_count() > 0);
        let mutex = Arc::new(AsyncMutex::new(()));
        by_name.insert(name, Arc::downgrade(&mutex));
        mutex
    }
}

impl<K: Ord> Default for Turns<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn attempt(path: &std::path::Path) -> impl Fn(Patience) -> io::Result<Option<File>> + Clone + use<> {
        let path = path.to_owned();
        move |patience| {
            let file = File::open(&path)?;
            Ok(flock(&file, patience)?.then_some(file))
        }
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_nothing_from_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let attempt = attempt(folder.path());
        let holder = attempt(Patience::None).expect("it can be opened").expect("it is free");
        let given_up = tokio::spawn(patiently(attempt.clone(), std::convert::identity));
        let next = tokio::spawn(patiently(attempt, std::convert::identity));
        tokio::task::yield_now().await;

        given_up.abort();
        drop(holder);

        next.await.expect("it does not panic").expect("it is locked");
    }

    #[tokio::test]
    async fn turns_come_in_the_order_of_asking() {
        let (turns, order) = (Turns::new(), Arc::new(AtomicUsize::new(0)));
        let first = turns.take("lock").expect("it is free");
        assert!(turns.take("lock").is_none() && turns.take("other").is_some());
        let asking = (0..10).map(|number| {
            let (turn, order) = (turns.wait("lock"), order.clone());
            async move {
                let _turn = turn.await;
                assert_eq!(order.fetch_add(1, Ordering::Relaxed), number);
            }
        });
        let asking = futures::future::join_all(asking);
        tokio::join!(asking, async { drop(first) });
        assert_eq!(order.load(Ordering::Relaxed), 10);
    }
}
