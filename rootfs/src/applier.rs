use std::{
    fmt,
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use async_trait::async_trait;
use oci_spec::image::Descriptor;
use tokio::sync::oneshot;
use windlass_images::progress::{Event, Progress};
use windlass_snapshot::{Mount, Whiteouts, mount::open_tree};

use crate::{
    Error, Result,
    apply::{self, Applied},
    compression::decompress,
};

/// How much is inflated at once, in bytes, and how many such pieces may wait to be applied.
const PIECE: usize = 256 << 10;
const PIECES: usize = 8;
/// How often progress is reported, in bytes of the blob.
const REPORT: u64 = 256 << 10;

/// Turns a layer into a tree.
#[async_trait]
pub trait Applier: fmt::Debug + Send + Sync {
    /// Applies a layer to the tree that `mounts` show, and reads the layer to its end.
    ///
    /// Dropping the future stops the work soon; the tree is then to be thrown away.
    ///
    /// # Errors
    ///
    /// What is wrong with the layer, or what the system answers. The tree is then half changed.
    async fn apply(&self, layer: LayerStream, mounts: &[Mount], whiteouts: Whiteouts) -> Result<Applied>;
}

/// A layer's bytes, as they are in its blob.
pub struct LayerStream {
    /// What it is.
    pub descriptor: Descriptor,
    /// Its compressed bytes. Reads may block until they arrive.
    pub blob: Box<dyn Read + Send>,
    /// Where it is told how much was read.
    pub progress: Progress,
}

impl fmt::Debug for LayerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerStream").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// Applies tar layers to folders: one thread inflates, another hashes and writes.
#[derive(Clone, Debug, Default)]
pub struct TarApplier {
    limits: apply::Limits,
}

impl TarApplier {
    /// An applier that refuses layers which hold more than this.
    pub fn new(limits: apply::Limits) -> Self {
        Self { limits }
    }
}

#[async_trait]
impl Applier for TarApplier {
    async fn apply(&self, layer: LayerStream, mounts: &[Mount], whiteouts: Whiteouts) -> Result<Applied> {
        let options = apply::Options::default().whiteouts(whiteouts).limits(self.limits.clone());
        let mounts = mounts.to_vec();
        let (pieces, received) = sync_channel(PIECES);
        let (answer, applied) = oneshot::channel();
        spawn("windlass-inflate", move || inflate(layer, &pieces))?;
        spawn("windlass-apply", move || {
            let work = || apply::apply(PieceReader::new(received, &answer), &open_tree(&mounts)?, &options);
            let result = work();
            // Nobody listens if the caller has gone.
            let _ = answer.send(result);
        })?;
        applied.await.expect("the thread always answers")
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|source| Error::Io { op: "start the thread", path: name.into(), source })
}

/// Sends the plain bytes in pieces, until there are no more or nobody wants them.
fn inflate(layer: LayerStream, pieces: &SyncSender<io::Result<Vec<u8>>>) {
    let LayerStream { descriptor, blob, progress } = layer;
    let counted = CountingReader { inner: blob, read: 0, reported: 0, descriptor, progress };
    let mut plain = match decompress(counted) {
        Ok(plain) => plain,
        Err(error) => {
            let _ = pieces.send(Err(error));
            return;
        }
    };
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let answer = match plain.by_ref().take(PIECE as u64).read_to_end(&mut piece) {
            Ok(0) => return,
            Ok(_) => Ok(piece),
            Err(error) => Err(error),
        };
        let last = answer.is_err();
        // Whoever applies them has failed, and says why.
        if pieces.send(answer).is_err() || last {
            return;
        }
    }
}

/// Reads the pieces one after the other; fails once the caller has gone, so that the work stops.
struct PieceReader<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    piece: io::Cursor<Vec<u8>>,
    caller: &'a oneshot::Sender<Result<Applied>>,
}

impl<'a> PieceReader<'a> {
    fn new(pieces: Receiver<io::Result<Vec<u8>>>, caller: &'a oneshot::Sender<Result<Applied>>) -> Self {
        Self { pieces, piece: io::Cursor::default(), caller }
    }
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buf)?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            if self.caller.is_closed() {
                return Err(io::Error::other("the unpack was cancelled"));
            }
            match self.pieces.recv() {
                Ok(piece) => self.piece = io::Cursor::new(piece?),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// Reports how much of a blob was read.
struct CountingReader {
    inner: Box<dyn Read + Send>,
    read: u64,
    reported: u64,
    descriptor: Descriptor,
    progress: Progress,
}

impl Read for CountingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.read += read as u64;
        if self.read - self.reported >= REPORT {
            self.reported = self.read;
            self.progress.send(Event::Unpacking { descriptor: self.descriptor.clone(), offset: self.read });
        }
        Ok(read)
    }
}
