//! Committed blobs, as the disk has them: looking at one, and finding all.

use std::{
    fs::{self, File, Metadata, ReadDir},
    io,
    path::{Path, PathBuf},
    vec,
};

use oci_spec::image::Digest;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{
    disk::{self, io_error},
    sidecar,
};
use crate::{Error, Filter, Info, Result, hash::Hasher};

/// What is under a blob's name.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    /// Nothing that can be read as a blob; the reason is a clause.
    Damaged(String),
    File(File, Metadata),
}

/// Opens what is under a blob's name, without following it elsewhere.
///
/// # Errors
///
/// [`Error::Io`] if it is not the blob's fault: a process with too many files open must not take all for damaged.
pub(super) fn look(path: &Path) -> Result<Found> {
    // Without blocking, since it may be a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(Errno::LOOP) => return Ok(Found::Damaged("it is a symbolic link".to_owned())),
        Err(error @ (Errno::IO | Errno::ACCESS | Errno::PERM | Errno::NXIO | Errno::NODEV)) => {
            return Ok(Found::Damaged(format!("it cannot be opened: {}", io::Error::from(error))));
        }
        Err(error) => return Err(io_error("open", path)(error.into())),
    };
    let metadata = file.metadata().map_err(io_error("read the size of", path))?;
    Ok(match metadata.is_file() {
        true => Found::File(file, metadata),
        false if metadata.is_dir() => Found::Damaged("it is a folder".to_owned()),
        false => Found::Damaged("it is not a regular file".to_owned()),
    })
}

/// Whether a regular file is there.
pub(super) fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// What is known of a blob; `None` if it is not there.
pub(super) fn info(root: &Path, digest: &Digest) -> Result<Option<Info>> {
    let path = disk::blob_path(root, digest);
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => {
            let reason = "it is not a regular file".to_owned();
            return Err(Error::Damaged { digest: digest.clone(), reason });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", &path)(source)),
    };
    let committed = metadata.modified().map_err(io_error("read the time of", &path))?;
    let labels = sidecar::read(root, digest)?;
    Ok(Some(Info { digest: digest.clone(), size: metadata.len(), committed, labels }))
}

/// Everything that has a blob's name, as it is found. Other files are not ours, and passed over.
#[derive(Debug)]
pub(super) struct Blobs {
    root: PathBuf,
    algorithms: Option<vec::IntoIter<PathBuf>>,
    current: Option<(PathBuf, ReadDir)>,
}

impl Blobs {
    /// Looks nowhere yet.
    pub(super) fn in_store(root: &Path) -> Self {
        Self { root: root.to_owned(), algorithms: None, current: None }
    }

    /// The next up to `most` blobs that `filter` lets through; none at the end. Those that are just being deleted, and
    /// what is no file, are passed over.
    pub(super) fn next_infos(&mut self, filter: &Filter, most: usize) -> Result<Vec<Info>> {
        let mut infos = Vec::new();
        while infos.len() < most {
            let Some(digest) = self.next() else { break };
            match info(&self.root, &digest?) {
                Ok(Some(info)) if filter.matches(&info) => infos.push(info),
                Ok(_) | Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(infos)
    }
}

impl Iterator for Blobs {
    type Item = Result<Digest>;

    fn next(&mut self) -> Option<Result<Digest>> {
        loop {
            let Some((folder, names)) = &mut self.current else {
                let algorithms = match &mut self.algorithms {
                    Some(algorithms) => algorithms,
                    None => match disk::entries(&self.root.join("blobs")) {
                        Ok(found) => self.algorithms.insert(found.into_iter()),
                        Err(error) => {
                            self.algorithms = Some(Vec::new().into_iter());
                            return Some(Err(error));
                        }
                    },
                };
                let folder = algorithms.next()?;
                match fs::read_dir(&folder) {
                    Ok(names) => self.current = Some((folder, names)),
                    Err(error)
                        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    }
                    Err(source) => return Some(Err(io_error("list", &folder)(source))),
                }
                continue;
            };
            match names.next() {
                None => self.current = None,
                Some(Err(source)) => {
                    let error = io_error("list", folder)(source);
                    // It would fail again, for ever.
                    self.current = None;
                    return Some(Err(error));
                }
                Some(Ok(entry)) => {
                    let algorithm = folder.file_name().unwrap_or_default().to_string_lossy();
                    let text = format!("{algorithm}:{}", entry.file_name().to_string_lossy());
                    match text.parse::<Digest>() {
                        Ok(digest) if Hasher::new(&digest).is_ok() => return Some(Ok(digest)),
                        _ => {}
                    }
                }
            }
        }
    }
}
