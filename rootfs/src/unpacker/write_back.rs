//! Starting write-back early, so that the sync of the commit is short: the disk works while layers are inflated.

use std::{
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use windlass_snapshot::Snapshotter;

/// After how many bytes of blobs the disk gets to work. Plain, they are three times as many.
const STEP: u64 = 32 << 20;

/// What is being unpacked, as far as the disk does not have it yet.
#[derive(Debug)]
pub(super) struct WriteBack {
    snapshotter: Arc<dyn Snapshotter>,
    read: AtomicU64,
    running: AtomicBool,
}

impl WriteBack {
    pub(super) fn new(snapshotter: Arc<dyn Snapshotter>) -> Arc<Self> {
        Arc::new(Self { snapshotter, read: AtomicU64::new(0), running: AtomicBool::new(false) })
    }

    /// A reader of a blob whose bytes count.
    pub(super) fn count(self: &Arc<Self>, blob: impl Read + Send + 'static) -> Box<dyn Read + Send> {
        Box::new(Counted { inner: blob, write_back: self.clone() })
    }

    fn advance(self: &Arc<Self>, bytes: u64) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        let is_due = before / STEP < (before + bytes) / STEP;
        if !is_due || self.running.swap(true, Ordering::Acquire) {
            return;
        }
        let this = self.clone();
        let work = move || {
            if let Err(error) = this.snapshotter.write_back() {
                // The commit does it again, and reports what is wrong.
                tracing::debug!(%error, "write-back did not start early");
            }
            this.running.store(false, Ordering::Release);
        };
        if let Err(error) = thread::Builder::new().name("windlass-sync".into()).spawn(work) {
            tracing::debug!(%error, "write-back did not start early");
            self.running.store(false, Ordering::Release);
        }
    }
}

struct Counted<R> {
    inner: R,
    write_back: Arc<WriteBack>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.write_back.advance(read as u64);
        Ok(read)
    }
}
