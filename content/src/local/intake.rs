//! The thread behind a writer: it writes, hashes, and commits.

use std::{
    fs::{File, Permissions},
    io::{self, IoSlice, Read, Seek, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use oci_spec::image::Descriptor;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    Durability, Inner,
    arrival::{Arrival, End},
    disk::io_error,
    lock::Lock,
    names,
    write_back::WriteBack,
};
use crate::{Error, Labels, Result, hash::Hasher};

/// How many chunks are written with one call.
const BATCH: usize = 64;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Message {
    Bytes(Chunk),
    Truncate(u64, oneshot::Sender<()>),
    Commit(Labels, oneshot::Sender<Result<()>>),
}

/// Bytes, and the room that they take up until they are written.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) bytes: Bytes,
    #[expect(dead_code, reason = "it is held, and given back when it is dropped")]
    pub(super) room: OwnedSemaphorePermit,
}

/// Tells those who follow a blob that it will not be completed, unless it was.
#[derive(Debug)]
struct Arriving {
    store: Arc<Inner>,
    arrival: Arc<Arrival>,
}

impl Arriving {
    fn begin(store: &Arc<Inner>, data: &Path, expected: &Descriptor, available: u64) -> Result<Self> {
        let followed = File::open(data).map_err(io_error("open", data))?;
        let arrival = store.arrivals.begin(expected.digest(), followed, available);
        Ok(Self { store: store.clone(), arrival })
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.store.arrivals.end(&self.arrival, End::Abandoned);
    }
}

/// Takes one blob in, on a thread of its own.
#[derive(Debug)]
pub(super) struct Intake {
    store: Arc<Inner>,
    data: PathBuf,
    file: File,
    hasher: Hasher,
    /// How many bytes an earlier writer has left.
    found: u64,
    /// How many bytes are in the file and in the hash.
    written: u64,
    write_back: WriteBack,
    expected: Descriptor,
    /// Before the lock: whoever is next begins an arrival of its own.
    arriving: Arriving,
    lock: Lock,
}

impl Intake {
    /// Lets readers find the blob, of which the file has the first `found` bytes.
    pub(super) fn begin(
        store: Arc<Inner>,
        lock: Lock,
        data: PathBuf,
        file: File,
        hasher: Hasher,
        expected: Descriptor,
        found: u64,
    ) -> Result<Self> {
        let arriving = Arriving::begin(&store, &data, &expected, found)?;
        let write_back = WriteBack::default();
        Ok(Self { store, data, file, hasher, found, written: 0, write_back, expected, arriving, lock })
    }

    /// Does what it is told, until the writer is dropped. A failure ends it, and goes to `report`.
    pub(super) fn run(mut self, inbox: mpsc::UnboundedReceiver<Message>, report: oneshot::Sender<Error>) {
        if let Err(error) = self.hash_again(self.found) {
            // The next writer must not fail on the same bytes.
            let _ = self.file.set_len(self.written);
            // Nobody listens if the writer was dropped already.
            let _ = report.send(error);
            return;
        }
        if let Err(error) = self.take(inbox) {
            let _ = report.send(error);
        }
    }

    fn take(mut self, mut inbox: mpsc::UnboundedReceiver<Message>) -> Result<()> {
        let (mut messages, mut chunks) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        // None at all means that the writer was dropped.
        while inbox.blocking_recv_many(&mut messages, BATCH) > 0 {
            for message in messages.drain(..) {
                match message {
                    Message::Bytes(chunk) => chunks.push(chunk),
                    Message::Truncate(size, answer) => {
                        self.write(&mut chunks)?;
                        self.truncate(size)?;
                        // It is done, whether somebody waits for it or not.
                        let _ = answer.send(());
                    }
                    Message::Commit(labels, answer) => {
                        self.write(&mut chunks)?;
                        let _ = answer.send(self.commit(&labels));
                        return Ok(());
                    }
                }
            }
            self.write(&mut chunks)?;
        }
        Ok(())
    }

    /// Takes the first bytes of the file into the hash, and leaves the file at their end.
    fn hash_again(&mut self, size: u64) -> Result<()> {
        let mut buffer = vec![0; 1 << 20];
        while self.written < size {
            let most = buffer.len().min(usize::try_from(size - self.written).unwrap_or(usize::MAX));
            let read = self.file.read(&mut buffer[..most]).map_err(io_error("read", &self.data))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.written += read as u64;
        }
        Ok(())
    }

    /// Goes back to the first `size` bytes. Who has read more follows an arrival that is over.
    fn truncate(&mut self, size: u64) -> Result<()> {
        self.store.arrivals.end(&self.arriving.arrival, End::Abandoned);
        self.file
            .set_len(size)
            .and_then(|()| self.file.rewind())
            .map_err(io_error("truncate", &self.data))?;
        self.hasher = Hasher::new(self.expected.digest())?;
        self.written = 0;
        self.hash_again(size)?;
        self.arriving = Arriving::begin(&self.store, &self.data, &self.expected, size)?;
        Ok(())
    }

    fn write(&mut self, chunks: &mut Vec<Chunk>) -> Result<()> {
        let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(&chunk.bytes)).collect();
        self.write_slices(&mut slices).map_err(io_error("write", &self.data))?;
        // The followers' file is the same one: they see the bytes as soon as they are told of them.
        self.arriving.arrival.advance(self.written);
        if self.store.durability == Durability::Safe {
            self.write_back.advance(&self.file, self.written);
        }
        for chunk in &*chunks {
            self.hasher.update(&chunk.bytes);
        }
        chunks.clear();
        Ok(())
    }

    fn write_slices(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut rest = slices;
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
        Ok(())
    }

    /// Verifies, makes durable, and gives the blob its name.
    fn commit(self, labels: &Labels) -> Result<()> {
        let Self { store, data, file, hasher, written, expected, arriving, lock, .. } = self;
        let digest = expected.digest();
        if written != expected.size() {
            let digest = digest.clone();
            return Err(Error::SizeMismatch { digest, expected: expected.size(), actual: written });
        }
        let actual = hasher.finish();
        if actual != *digest {
            drop(arriving);
            lock.discard()?;
            return Err(Error::DigestMismatch { expected: digest.clone(), actual });
        }
        file.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| file.set_modified(SystemTime::now()))
            .map_err(io_error("make read-only", &data))?;
        if store.durability == Durability::Safe
            && let Err(source) = file.sync_data()
        {
            // What the disk did not take, the kernel may drop and still call clean: a resume would trust it.
            drop(arriving);
            // Whoever reads the error needs to know of the first failure, not of a second one.
            let _ = lock.discard();
            return Err(io_error("sync", &data)(source));
        }
        names::publish(&store, &data, digest, labels)?;
        store.arrivals.end(&arriving.arrival, End::Committed);
        // The promise is kept already. A folder that stays, without data, is no ingest, and expires.
        let _ = lock.discard();
        Ok(())
    }
}
