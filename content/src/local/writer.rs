//! The writer of one ingest: a thread that hashes and writes, fed by a bounded channel.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, IoSlice, Read, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    thread,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use oci_spec::image::Descriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    Durability, Inner,
    arrival::{Arrival, End},
    disk::{self, IngestFolder, io_error},
    lock::Lock,
};
use crate::{ByteStream, Error, Result, Writer, hash::Hasher};

/// How many bytes may wait for the disk. A chunk that is larger waits alone.
const IN_FLIGHT: u32 = 4 << 20;

/// What a chunk counts as at least, in bytes, so that tiny ones are bounded too.
const LEAST: u32 = 4 << 10;

/// How many chunks are written with one call.
const BATCH: usize = 64;

/// What the thread is told.
enum Message {
    Bytes(Chunk),
    Commit(oneshot::Sender<Result<()>>),
}

/// Bytes, and the room that they take up until they are written.
struct Chunk {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// Writes one blob. The thread behind it ends when this is dropped, and keeps the lock until then.
#[derive(Debug)]
pub(super) struct LocalWriter {
    expected: Descriptor,
    offset: u64,
    /// Has no bound of its own: `room` bounds it.
    messages: mpsc::UnboundedSender<Message>,
    room: Arc<Semaphore>,
    /// Why the thread stopped taking bytes, if it did.
    failure: oneshot::Receiver<Error>,
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
        let followed = File::open(&data).map_err(io_error("open", &data))?;
        let arrival = store.arrivals.begin(expected.digest(), followed, offset);

        let (messages, inbox) = mpsc::unbounded_channel();
        let (report, failure) = oneshot::channel();
        let ingest = Ingest {
            arriving: Arriving { store: store.clone(), arrival },
            store,
            lock,
            data: data.clone(),
            file,
            hasher,
            written: 0,
            expected: expected.clone(),
        };
        thread::Builder::new()
            .name("windlass-ingest".into())
            .spawn(move || ingest.run(offset, inbox, report))
            .map_err(io_error("start a thread that writes", &data))?;
        let room = Arc::new(Semaphore::new(IN_FLIGHT as usize));
        Ok(Self { expected, offset, messages, room, failure })
    }

    /// Why the thread is gone.
    fn failure(&mut self) -> Error {
        self.failure
            .try_recv()
            .unwrap_or_else(|_| Error::Abandoned { digest: self.expected.digest().clone() })
    }
}

#[async_trait]
impl Writer for LocalWriter {
    fn offset(&self) -> u64 {
        self.offset
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
            if self.messages.send(Message::Bytes(Chunk { bytes, _room: room })).is_err() {
                return Err(self.failure());
            }
            self.offset = after;
        }
        Ok(())
    }

    async fn commit(mut self: Box<Self>) -> Result<()> {
        let (answer, committed) = oneshot::channel();
        if self.messages.send(Message::Commit(answer)).is_err() {
            return Err(self.failure());
        }
        match committed.await {
            Ok(result) => result,
            Err(_) => Err(self.failure()),
        }
    }
}

/// Tells those who follow a blob that it will not be completed, unless it was.
#[derive(Debug)]
struct Arriving {
    store: Arc<Inner>,
    arrival: Arc<Arrival>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.store.arrivals.end(&self.arrival, End::Abandoned);
    }
}

/// The thread's side.
#[derive(Debug)]
struct Ingest {
    store: Arc<Inner>,
    data: PathBuf,
    file: File,
    hasher: Hasher,
    written: u64,
    expected: Descriptor,
    /// Before the lock: whoever is next begins an arrival of its own.
    arriving: Arriving,
    lock: Lock,
}

impl Ingest {
    fn run(
        mut self,
        resumed: u64,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        report: oneshot::Sender<Error>,
    ) {
        if let Err(error) = self.hash_again(resumed) {
            // Nobody listens if the writer was dropped already.
            let _ = report.send(error);
            return;
        }
        let (mut messages, mut chunks) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        // None at all means that the writer was dropped.
        while inbox.blocking_recv_many(&mut messages, BATCH) > 0 {
            let mut commit = None;
            for message in messages.drain(..) {
                match message {
                    Message::Bytes(chunk) => chunks.push(chunk),
                    Message::Commit(answer) => commit = Some(answer),
                }
            }
            if let Err(source) = self.write(&chunks) {
                let _ = report.send(io_error("write", &self.data)(source));
                return;
            }
            chunks.clear();
            if let Some(answer) = commit {
                let _ = answer.send(self.commit());
                return;
            }
        }
    }

    /// Takes what an earlier writer left into the hash, and leaves the file at its end.
    fn hash_again(&mut self, resumed: u64) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while self.written < resumed {
            let read = self.file.read(&mut buffer).map_err(io_error("read", &self.data))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.written += read as u64;
        }
        Ok(())
    }

    fn write(&mut self, chunks: &[Chunk]) -> io::Result<()> {
        let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(&chunk.bytes)).collect();
        let mut rest = &mut slices[..];
        // Empty chunks at the front would look like a disk that takes nothing; this passes over them.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.written += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // The followers' file is the same one: they see the bytes as soon as they are told of them.
        self.arriving.arrival.advance(self.written);
        for chunk in chunks {
            self.hasher.update(&chunk.bytes);
        }
        Ok(())
    }

    /// Verifies, makes durable, and gives the blob its name.
    fn commit(self) -> Result<()> {
        let Self { store, data, file, hasher, written, expected, arriving, lock } = self;
        if written != expected.size() {
            let digest = expected.digest().clone();
            return Err(Error::SizeMismatch { digest, expected: expected.size(), actual: written });
        }
        let actual = hasher.finish();
        if actual != *expected.digest() {
            drop(arriving);
            lock.discard()?;
            return Err(Error::DigestMismatch { expected: expected.digest().clone(), actual });
        }
        file.set_permissions(Permissions::from_mode(0o444)).map_err(io_error("make read-only", &data))?;
        if store.durability == Durability::Safe {
            file.sync_data().map_err(io_error("sync", &data))?;
        }
        let blob = disk::blob_path(&store.root, expected.digest());
        let folder = blob.parent().expect("a blob is in a folder");
        disk::make_folder(folder, store.durability)?;
        fs::rename(&data, &blob).map_err(io_error("give its name to", &blob))?;
        disk::sync_folder(folder, store.durability)?;
        store.arrivals.end(&arriving.arrival, End::Committed);
        lock.discard()
    }
}
