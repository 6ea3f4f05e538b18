//! Reading every blob, to find those that the disk has not kept.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use futures::stream::{self, BoxStream, StreamExt};
use oci_spec::image::Digest;
use tokio::sync::mpsc;

use super::{
    Inner, LocalStore,
    committed::{self, Blobs, Found},
    disk::{self, io_error},
    names,
};
use crate::{Error, Result, hash::Hasher};

/// How much is read at once, in bytes.
const BUFFER: usize = 1 << 20;

/// How to [`verify`](LocalStore::verify).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Verify {
    /// Whether damaged blobs are moved out of the way. They are not by default.
    pub quarantine: bool,
    /// How many blobs are read at the same time, each by a thread with 1 MiB of memory. By default one per CPU.
    pub parallel: NonZeroUsize,
}

impl Default for Verify {
    fn default() -> Self {
        let parallel = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self { quarantine: false, parallel }
    }
}

impl Verify {
    /// Moves damaged blobs to `<folder>/quarantine/<algorithm>-<hex>`, so that the next pull fetches them anew. What an
    /// earlier verification has put there under the same name is replaced; nothing else ever empties the quarantine.
    pub fn quarantine(self, quarantine: bool) -> Self {
        Self { quarantine, ..self }
    }

    /// Sets how many blobs are read at the same time.
    pub fn parallel(self, parallel: NonZeroUsize) -> Self {
        Self { parallel, ..self }
    }
}

/// What the verification of one blob has found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// The name of the blob.
    pub digest: Digest,
    /// How many bytes are under that name.
    pub size: u64,
    /// Whether they are the right ones.
    pub condition: Condition,
}

/// How a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// Its bytes are the ones that it is named by.
    Good,
    /// It is of no use.
    #[non_exhaustive]
    Damaged {
        /// What is wrong with it, as a clause.
        reason: String,
        /// Where it is now, if it was moved.
        quarantined: Option<PathBuf>,
    },
}

impl LocalStore {
    /// Reads every blob and compares it with its digest. The results come as they are found; dropping the stream ends
    /// the work.
    ///
    /// A blob that is deleted meanwhile is left out, and one that is replaced meanwhile is read again: only what is
    /// certainly damaged is reported so, and quarantined. A blob that this process may not open is reported, but
    /// never quarantined.
    ///
    /// # Errors
    ///
    /// Items are [`Error::Io`] if the folder cannot be read, or a blob cannot be moved. The verification goes on with the
    /// next blob.
    pub fn verify(&self, verify: Verify) -> BoxStream<'static, Result<Verified>> {
        let (results, receiver) = mpsc::channel(verify.parallel.get());
        let blobs = Arc::new(Mutex::new(Blobs::in_store(&self.inner.root)));
        for _ in 0..verify.parallel.get() {
            let worker = Worker {
                store: self.inner.clone(),
                blobs: blobs.clone(),
                results: results.clone(),
                quarantine: verify.quarantine,
            };
            let spawned = thread::Builder::new().name("windlass-verify".into()).spawn(move || worker.run());
            if let Err(source) = spawned {
                let error = io_error("start a thread that verifies", &self.inner.root)(source);
                return stream::once(async { Err(error) }).boxed();
            }
        }
        stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) }).boxed()
    }

    /// Reads one blob and compares it with its digest. As [`verify`](Self::verify), but for one blob.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], also if it is deleted meanwhile.
    pub async fn verify_blob(&self, digest: &Digest, verify: &Verify) -> Result<Verified> {
        Hasher::new(digest)?;
        let (digest, quarantine) = (digest.clone(), verify.quarantine);
        self.blocking(move |this| {
            check(&this.inner, &digest, quarantine, &mut vec![0; BUFFER], &|| true)?
                .ok_or(Error::NotFound { digest })
        })
        .await
    }
}

/// One of the threads that verify.
struct Worker {
    store: Arc<Inner>,
    blobs: Arc<Mutex<Blobs>>,
    results: mpsc::Sender<Result<Verified>>,
    quarantine: bool,
}

impl Worker {
    fn run(self) {
        let mut buffer = vec![0; BUFFER];
        let next = || self.blobs.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(next) = next() {
            let wanted = || !self.results.is_closed();
            let verified = next
                .and_then(|digest| check(&self.store, &digest, self.quarantine, &mut buffer, &wanted))
                .transpose();
            if verified.is_some_and(|verified| self.results.blocking_send(verified).is_err()) || !wanted() {
                return;
            }
        }
    }
}

/// Verifies what is under a name; `None` if nothing is, or nobody wants to know any more.
fn check(
    store: &Inner,
    digest: &Digest,
    quarantine: bool,
    buffer: &mut [u8],
    wanted: &dyn Fn() -> bool,
) -> Result<Option<Verified>> {
    let path = disk::blob_path(&store.root, digest);
    while wanted() {
        let verified = |size, condition| Ok(Some(Verified { digest: digest.clone(), size, condition }));
        let (reason, seen) = match committed::look(&path)? {
            Found::Nothing => return Ok(None),
            Found::File(mut file, seen) => match read(&mut file, digest, buffer, wanted) {
                Ok(None) => return Ok(None),
                Ok(Some(actual)) if actual == *digest => return verified(seen.len(), Condition::Good),
                Ok(Some(actual)) => (format!("its bytes hash to {actual}"), seen),
                Err(error) => (format!("it cannot be read: {error}"), seen),
            },
            Found::Damaged(reason) => match fs::symlink_metadata(&path) {
                Ok(seen) => (reason, seen),
                Err(_) => return Ok(None),
            },
        };
        let quarantined = match quarantine && !is_denied(&path, &seen) {
            true => names::quarantine(store, digest, &seen)?,
            false => None,
        };
        // Whatever took its place or its name meanwhile has not been looked at.
        if quarantined.is_some() || is_still(&path, &seen) {
            return verified(seen.len(), Condition::Damaged { reason, quarantined });
        }
    }
    Ok(None)
}

/// The digest of all bytes; `None` if nobody wants it any more.
fn read(
    file: &mut impl Read,
    digest: &Digest,
    buffer: &mut [u8],
    wanted: &dyn Fn() -> bool,
) -> io::Result<Option<Digest>> {
    let mut hasher = Hasher::new(digest).expect("only supported algorithms are listed");
    while wanted() {
        match file.read(buffer) {
            Ok(0) => return Ok(Some(hasher.finish())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn is_still(path: &Path, seen: &Metadata) -> bool {
    fs::symlink_metadata(path).is_ok_and(|now| disk::is_same(&now, seen))
}

/// Whether the file may be good, but not for us.
fn is_denied(path: &Path, seen: &Metadata) -> bool {
    seen.is_file() && File::open(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
