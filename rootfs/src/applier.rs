use std::{
    fmt,
    io::{self, BufRead, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
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
    compression::{Expansion, decompress},
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
    /// `below` is empty, unless the layer is one of which [`settle`](apply::settle) has said
    /// [`Settled::Again`](apply::Settled::Again): then it shows the layers below.
    ///
    /// Dropping the future stops the work soon; the tree is then to be thrown away.
    ///
    /// # Errors
    ///
    /// What is wrong with the layer, or what the system answers. The tree is then half changed.
    async fn apply(
        &self,
        layer: LayerStream,
        mounts: &[Mount],
        below: &[Mount],
        whiteouts: Whiteouts,
    ) -> Result<Applied>;
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
    options: apply::Options,
}

impl TarApplier {
    /// An applier with these options. How it writes whiteouts is said with each layer.
    pub fn new(options: apply::Options) -> Self {
        Self { options }
    }
}

#[async_trait]
impl Applier for TarApplier {
    async fn apply(
        &self,
        layer: LayerStream,
        mounts: &[Mount],
        below: &[Mount],
        whiteouts: Whiteouts,
    ) -> Result<Applied> {
        let options = self.options.clone().whiteouts(whiteouts);
        let (mounts, below) = (mounts.to_vec(), below.to_vec());
        let work = move |plain: PieceReader<'_>| {
            let root = open_tree(&mounts)?;
            match below.is_empty() {
                true => apply::apply(plain, &root, &options),
                false => apply::apply_again(plain, &root, &open_tree(&below)?, &options),
            }
        };
        run(layer, self.options.limits.clone(), work).await
    }
}

/// Inflates a layer on one thread, and lets `work` have the plain bytes on another.
pub(crate) async fn run(
    layer: LayerStream,
    limits: apply::Limits,
    work: impl FnOnce(PieceReader<'_>) -> Result<Applied> + Send + 'static,
) -> Result<Applied> {
    let (pieces, received) = sync_channel(PIECES);
    let (used, spare) = channel();
    let (answer, applied) = oneshot::channel();
    spawn("windlass-inflate", move || inflate(layer, &limits, &pieces, &spare))?;
    spawn("windlass-apply", move || {
        let result =
            work(PieceReader { pieces: received, used, piece: Piece::default(), at: 0, caller: &answer });
        // Nobody listens if the caller has gone.
        let _ = answer.send(result);
    })?;
    applied.await.expect("the thread always answers")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|source| Error::Io { op: "start the thread", path: name.into(), source })
}

/// Some plain bytes: the first of a buffer, which is used again.
#[derive(Debug, Default)]
struct Piece {
    buffer: Vec<u8>,
    length: usize,
}

/// Sends the plain bytes in pieces, until there are no more or nobody wants them. What comes back in `spare` is filled anew: new
/// memory costs about as much as what is done with it.
fn inflate(
    layer: LayerStream,
    limits: &apply::Limits,
    pieces: &SyncSender<io::Result<Piece>>,
    spare: &Receiver<Vec<u8>>,
) {
    let LayerStream { descriptor, blob, progress } = layer;
    let media_type = descriptor.media_type().clone();
    let compressed = Arc::new(AtomicU64::new(0));
    let counted = CountingReader { inner: blob, read: compressed.clone(), reported: 0, descriptor, progress };
    let mut expansion = Expansion::new(limits);
    let mut plain = match decompress(counted, &media_type, limits) {
        Ok(plain) => plain,
        Err(error) => {
            let _ = pieces.send(Err(error));
            return;
        }
    };
    loop {
        let mut buffer = spare.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
        let read = fill(&mut plain, &mut buffer);
        let answer = match read.and_then(|read| {
            expansion.count(read, compressed.load(Ordering::Relaxed))?;
            Ok(read)
        }) {
            Ok(0) => return,
            Ok(length) => Ok(Piece { buffer, length }),
            Err(error) => Err(error),
        };
        let last = answer.is_err();
        // Whoever applies them has failed, and says why.
        if pieces.send(answer).is_err() || last {
            return;
        }
    }
}

/// Reads until the buffer is full or nothing is left. Gives how much it read.
fn fill(plain: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match plain.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads the pieces one after the other; fails once the caller has gone, so that the work stops.
pub(crate) struct PieceReader<'a> {
    pieces: Receiver<io::Result<Piece>>,
    used: Sender<Vec<u8>>,
    piece: Piece,
    at: usize,
    caller: &'a oneshot::Sender<Result<Applied>>,
}

impl BufRead for PieceReader<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.piece.length {
            if self.caller.is_closed() {
                return Err(io::Error::other("the unpack was cancelled"));
            }
            match self.pieces.recv() {
                Ok(piece) => {
                    let done = std::mem::replace(&mut self.piece, piece?);
                    self.at = 0;
                    if !done.buffer.is_empty() {
                        // Nobody fills it if all is inflated.
                        let _ = self.used.send(done.buffer);
                    }
                }
                Err(_) => break,
            }
        }
        Ok(&self.piece.buffer[self.at..self.piece.length])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buf)?;
        self.consume(read);
        Ok(read)
    }
}

/// Reports how much of a blob was read.
struct CountingReader {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
    reported: u64,
    descriptor: Descriptor,
    progress: Progress,
}

impl Read for CountingReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        let offset = self.read.fetch_add(read as u64, Ordering::Relaxed) + read as u64;
        if offset - self.reported >= REPORT {
            self.reported = offset;
            self.progress.send(Event::Unpacking { descriptor: self.descriptor.clone(), offset });
        }
        Ok(read)
    }
}
