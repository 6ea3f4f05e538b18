//! The writer of one ingest: it feeds the [`intake`](super::intake) through a bounded channel.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    thread,
    time::SystemTime,
};

use async_trait::async_trait;
use futures::StreamExt;
use oci_spec::image::Descriptor;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    Inner,
    disk::io_error,
    ingests::IngestFolder,
    intake::{Chunk, Intake, Message},
    lock::Lock,
};
use crate::{ByteStream, Error, Labels, Result, Status, Writer, hash::Hasher, labels};

/// How many bytes may wait for the disk. A chunk that is larger waits alone.
const IN_FLIGHT: u32 = 4 << 20;

/// What a chunk counts as at least, in bytes, so that tiny ones are bounded too.
const LEAST: u32 = 4 << 10;

/// Writes one blob. The thread behind it ends when this is dropped, and keeps the lock until then.
#[derive(Debug)]
pub(super) struct LocalWriter {
    key: String,
    expected: Descriptor,
    offset: u64,
    started: SystemTime,
    updated: SystemTime,
    /// Has no bound of its own: `room` bounds it.
    messages: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    /// Why the thread stopped taking bytes, if it did. The thread sends it, or ends without.
    failure: Option<oneshot::Receiver<Error>>,
}

impl LocalWriter {
    /// Opens the ingest that `lock` is for, resumed if it was for the same content. Blocks on the disk.
    pub(super) fn open(store: Arc<Inner>, lock: Lock, key: &str, expected: Descriptor) -> Result<Self> {
        let hasher = Hasher::new(expected.digest())?;
        let files = IngestFolder::new(lock.folder());
        let data = files.data();
        let resumed = files.read_expected().is_some_and(|earlier| {
            earlier.digest() == expected.digest() && earlier.size() == expected.size()
        });
        if resumed {
            // A crash just before the blob got its name leaves it read-only.
            match fs::set_permissions(&data, Permissions::from_mode(0o644)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error("make writable", &data)(error));
                }
                _ => {}
            }
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resumed)
            .open(&data)
            .map_err(io_error("open", &data))?;
        if !resumed {
            let note = serde_json::to_vec(&expected).expect("a descriptor can always be serialised");
            fs::write(files.key(), key).map_err(io_error("write", &files.key()))?;
            fs::write(files.expected(), note).map_err(io_error("write", &files.expected()))?;
        }
        let mut offset = file.metadata().map_err(io_error("read the size of", &data))?.len();
        if offset > expected.size() {
            file.set_len(0).map_err(io_error("truncate", &data))?;
            offset = 0;
        }
        let now = SystemTime::now();
        let changed = |path| fs::metadata(path).and_then(|metadata| metadata.modified()).unwrap_or(now);
        let (started, updated) = (changed(files.key()), changed(data.clone()));
        let (messages, inbox) = mpsc::unbounded_channel();
        let (report, failure) = oneshot::channel();
        let intake = Intake::begin(store, lock, data.clone(), file, hasher, expected.clone(), offset)?;
        thread::Builder::new()
            .name("windlass-ingest".into())
            .spawn(move || intake.run(inbox, report))
            .map_err(io_error("start a thread that writes", &data))?;
        let room = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        let key = key.to_owned();
        Ok(Self { key, expected, offset, started, updated, messages, room, failure: Some(failure) })
    }

    /// Why the thread is gone. The first to ask is told.
    async fn failure(&mut self) -> Error {
        let report = match self.failure.take() {
            Some(report) => report.await.ok(),
            None => None,
        };
        report.unwrap_or_else(|| Error::Abandoned { digest: self.expected.digest().clone() })
    }
}

#[async_trait]
impl Writer for LocalWriter {
    fn offset(&self) -> u64 {
        self.offset
    }

    fn status(&self) -> Status {
        Status {
            key: self.key.clone(),
            expected: self.expected.digest().clone(),
            offset: self.offset,
            total: self.expected.size(),
            started: self.started,
            updated: self.updated,
        }
    }

    async fn append(&mut self, mut body: ByteStream) -> Result<()> {
        let digest = || self.expected.digest().clone();
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(|source| Error::Source { digest: digest(), source })?;
            let after = self.offset + bytes.len() as u64;
            if after > self.expected.size() {
                let expected = self.expected.size();
                return Err(Error::SizeMismatch { digest: digest(), expected, actual: after });
            }
            let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX).clamp(LEAST, IN_FLIGHT);
            let room = self.room.clone().acquire_many_owned(size).await.expect("nobody closes it");
            if self.messages.send(Message::Bytes(Chunk { bytes, room })).is_err() {
                return Err(self.failure().await);
            }
            self.offset = after;
            self.updated = SystemTime::now();
        }
        Ok(())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        if size > self.offset {
            let digest = self.expected.digest().clone();
            return Err(Error::Truncate { digest, size, offset: self.offset });
        }
        if size == self.offset {
            return Ok(());
        }
        let (answer, truncated) = oneshot::channel();
        if self.messages.send(Message::Truncate(size, answer)).is_err() {
            return Err(self.failure().await);
        }
        // Before the answer: it is done even if nobody waits for it.
        (self.offset, self.updated) = (size, SystemTime::now());
        match truncated.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    async fn commit(mut self: Box<Self>, labels: Labels) -> Result<()> {
        labels::check(&labels)?;
        let (answer, committed) = oneshot::channel();
        if self.messages.send(Message::Commit(labels, answer)).is_err() {
            return Err(self.failure().await);
        }
        match committed.await {
            Ok(result) => result,
            Err(_) => Err(self.failure().await),
        }
    }
}
