//! The thread that reads the archive.

use std::{
    io::{self, Read},
    path::PathBuf,
};

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::Error as JsonError;
use tokio::sync::mpsc;
use windlass_content::hash::Hasher;

use super::{
    found::{Document, Found},
    spool::Spool,
};
use crate::{
    Error, Result,
    archive::{
        Entries, Kind, MAX_JSON, Stream, Table,
        docker::{self, MAX_IMAGES, Saved},
        layout::{self, Marker, blob_name},
    },
};

/// How much is passed on at once, in bytes.
const CHUNK: u64 = 256 << 10;
/// How much may follow an archive, in bytes: what pads it to the blocks of a tape.
const MAX_REST: u64 = 16 << 20;

/// What the store is told.
pub(super) enum Event {
    /// A blob begins.
    Blob(Descriptor),
    /// It goes on.
    Bytes(Bytes),
    /// It ends.
    End,
}

/// What was found in an archive, beside what the store was told.
#[derive(Debug)]
pub(super) struct Scanned {
    marker: Document,
    index: Document,
    manifest: Document,
    pub(super) files: Table<Found>,
}

impl Scanned {
    /// The images of `index.json`; `None` if it is no layout. Beside `manifest.json`, the marker may be missing.
    pub(super) fn roots(&self) -> Result<Option<Vec<Descriptor>>> {
        let Some(index) = &self.index else { return Ok(None) };
        match &self.marker {
            Some(marker) => check_version(marker)?,
            None if self.manifest.is_some() => {}
            None => return Ok(None),
        }
        let listed = layout::parse_index(index).map_err(|error| {
            let reason = match error {
                Error::Malformed { reason, .. } => reason,
                other => other.to_string(),
            };
            Error::Archive { reason: format!("{}: {reason}", layout::INDEX) }
        })?;
        Ok(Some(layout::roots(listed)))
    }

    /// The images of `manifest.json`; none if it is not there.
    pub(super) fn saved(&self) -> Result<Vec<Saved>> {
        let Some(manifest) = &self.manifest else { return Ok(Vec::new()) };
        let saved: Vec<Saved> =
            serde_json::from_slice(manifest).map_err(|it| malformed(docker::MANIFEST, &it))?;
        match saved.len() <= MAX_IMAGES {
            true => Ok(saved),
            false => Err(Error::Archive {
                reason: format!("{} lists more than {MAX_IMAGES} images", docker::MANIFEST),
            }),
        }
    }

    /// Why it cannot be read as a layout.
    pub(super) fn what_it_is_not(&self) -> String {
        let missing = match (&self.marker, &self.index) {
            (Some(_), None) => layout::INDEX.to_owned(),
            (None, Some(_)) => layout::MARKER.to_owned(),
            _ => return format!("it has neither {} nor {}", layout::MARKER, docker::MANIFEST),
        };
        format!("{missing} is missing")
    }
}

/// Reads an archive to its end. Stops early when nobody receives events any more.
pub(super) fn scan(
    archive: impl Read,
    temporary: Option<PathBuf>,
    events: &mpsc::Sender<Event>,
) -> Result<Scanned> {
    let mut entries = Entries::new(Stream(archive));
    let mut spool = Spool::new(temporary);
    let mut found = Scanned { marker: None, index: None, manifest: None, files: Table::default() };
    while let Some(entry) = entries.advance().map_err(cannot_read)? {
        let size = match entry.kind {
            Kind::File(size) => size,
            Kind::Link(target) => {
                found.files.link(entry.name, target);
                continue;
            }
            Kind::Other => {
                found.files.remove(&entry.name);
                continue;
            }
        };
        let document = match &*entry.name {
            layout::MARKER => Some(&mut found.marker),
            layout::INDEX => Some(&mut found.index),
            docker::MANIFEST => Some(&mut found.manifest),
            _ => None,
        };
        if let Some(document) = document {
            *document = Some(read_document(&mut entries, &entry.name, size)?);
        } else if let Some(blob) = blob(&entry.name, size) {
            pass_on(&mut entries, &blob, events)?;
            found.files.file(entry.name, Found::Blob(blob));
        } else {
            let range = spool.take_in(&mut entries, events)?;
            found.files.file(entry.name, Found::Spooled(range));
        }
    }
    // Whoever writes the archive may still be writing its padding. All that counts is here and verified.
    let _ = io::copy(&mut entries.into_rest().take(MAX_REST), &mut io::sink());
    Ok(found)
}

/// The blob that an entry is by its name.
fn blob(name: &str, size: u64) -> Option<Descriptor> {
    let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
    let digest: Digest = format!("{algorithm}:{hex}").parse().ok()?;
    Hasher::new(&digest).ok()?;
    let blob = Descriptor::new(MediaType::Other("application/octet-stream".into()), size, digest);
    (blob_name(&blob) == name).then_some(blob)
}

fn read_document(entries: &mut impl Read, name: &str, size: u64) -> Result<Bytes> {
    if size > MAX_JSON {
        return Err(Error::Archive { reason: format!("{name} has more than {MAX_JSON} bytes") });
    }
    let mut bytes = Vec::new();
    entries.read_to_end(&mut bytes).map_err(cannot_read)?;
    Ok(bytes.into())
}

fn pass_on(entries: &mut impl Read, blob: &Descriptor, events: &mpsc::Sender<Event>) -> Result<()> {
    send(events, Event::Blob(blob.clone()))?;
    loop {
        let mut chunk = Vec::new();
        entries.take(CHUNK).read_to_end(&mut chunk).map_err(cannot_read)?;
        if chunk.is_empty() {
            return send(events, Event::End);
        }
        send(events, Event::Bytes(chunk.into()))?;
    }
}

fn send(events: &mpsc::Sender<Event>, event: Event) -> Result<()> {
    events.blocking_send(event).map_err(|_| nobody_waits())
}

/// An error that nobody sees.
pub(super) fn nobody_waits() -> Error {
    Error::Stream { op: "read", source: io::ErrorKind::Interrupted.into() }
}

/// What is wrong with the bytes is the archive's fault, all else the source's.
pub(super) fn cannot_read(source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
            Error::Archive { reason: source.to_string() }
        }
        _ => Error::Stream { op: "read", source },
    }
}

fn check_version(marker: &[u8]) -> Result<()> {
    let marker: Marker = serde_json::from_slice(marker).map_err(|it| malformed(layout::MARKER, &it))?;
    let (version, supported) = (marker.image_layout_version, layout::VERSION);
    match version == supported {
        true => Ok(()),
        false => Err(Error::Archive {
            reason: format!("the layout has version {version:?}; {supported} is supported"),
        }),
    }
}

fn malformed(name: &str, error: &JsonError) -> Error {
    Error::Archive { reason: format!("{name}: {error}") }
}
