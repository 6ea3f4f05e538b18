//! The thread that writes, and what feeds it.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use oci_spec::image::{Descriptor, MediaType};
use tokio::sync::mpsc;
use windlass_content::{
    Blob, Error as ContentError, Provider,
    hash::{Hasher, sha256},
};

use super::{plan::Entry, start};
use crate::{Error, Result};

/// How much is copied at once, in bytes.
const CHUNK: usize = 256 << 10;

/// Where entries go. The bytes of a file are written between its `begin` and `end`.
pub(super) trait Sink: Write + Send + 'static {
    fn folder(&mut self, name: &str) -> io::Result<()>;
    /// Starts a file of exactly `size` bytes.
    fn begin(&mut self, name: &str, size: u64) -> io::Result<()>;
    fn end(&mut self) -> io::Result<()>;
    /// Nothing follows.
    fn finish(&mut self) -> io::Result<()>;
}

/// What the thread is told.
enum Message {
    Folder(String),
    File(String, Descriptor, Blob),
    Finish,
}

/// Writes all entries, in this order.
pub(super) async fn all(provider: &dyn Provider, entries: Vec<Entry>, sink: impl Sink) -> Result<()> {
    // The next blob is opened while one is copied.
    let (sender, receiver) = mpsc::channel(1);
    let worker = start("windlass-export", move || run(sink, receiver))?;
    for entry in entries {
        let message = match entry {
            Entry::Folder(name) => Message::Folder(name),
            Entry::Blob(name, node) => {
                let blob = provider.open(&node).await?;
                Message::File(name, node, blob)
            }
            Entry::Document(name, bytes) => {
                // Its media type is of no interest here.
                let node = Descriptor::new(MediaType::EmptyJSON, bytes.len() as u64, sha256(&bytes));
                Message::File(name, node.clone(), Blob::new(Arc::new(bytes), node.size()))
            }
        };
        if sender.send(message).await.is_err() {
            break;
        }
    }
    // An error says that the thread has ended already, and will say why.
    let _ = sender.send(Message::Finish).await;
    // As long as there is a sender, somebody waits for the thread.
    let written = worker.end().await;
    drop(sender);
    written
}

fn run(mut sink: impl Sink, mut receiver: mpsc::Receiver<Message>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match receiver.blocking_recv() {
            Some(Message::Folder(name)) => sink.folder(&name).map_err(cannot_write)?,
            Some(Message::File(name, node, blob)) => {
                sink.begin(&name, node.size()).map_err(cannot_write)?;
                copy(&node, &blob, &mut sink, &mut buffer, &receiver)?;
                sink.end().map_err(cannot_write)?;
            }
            Some(Message::Finish) => return sink.finish().map_err(cannot_write),
            None => return Err(cannot_write(io::ErrorKind::Interrupted.into())),
        }
    }
}

/// Copies a blob, and compares its size and digest.
fn copy(
    node: &Descriptor,
    blob: &Blob,
    sink: &mut impl Sink,
    buffer: &mut [u8],
    receiver: &mpsc::Receiver<Message>,
) -> Result<()> {
    let digest = || node.digest().clone();
    let mut reader = blob.reader(0);
    let mut hasher = Hasher::new(node.digest())?;
    let mut copied = 0;
    loop {
        if receiver.is_closed() {
            return Err(cannot_write(io::ErrorKind::Interrupted.into()));
        }
        let read = match reader.read(buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(ContentError::Source { digest: digest(), source }.into()),
        };
        copied += read as u64;
        if copied > node.size() {
            break;
        }
        hasher.update(&buffer[..read]);
        sink.write_all(&buffer[..read]).map_err(cannot_write)?;
    }
    if copied != node.size() {
        let expected = node.size();
        return Err(ContentError::SizeMismatch { digest: digest(), expected, actual: copied }.into());
    }
    let actual = hasher.finish();
    if actual != *node.digest() {
        return Err(ContentError::DigestMismatch { expected: digest(), actual }.into());
    }
    Ok(())
}

fn cannot_write(source: io::Error) -> Error {
    Error::Stream { op: "write", source }
}
