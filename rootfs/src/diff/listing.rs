//! What a folder holds, in the order in which a layer says it: what is gone first, then what is there.

use std::{ffi::CString, os::unix::ffi::OsStrExt, path::Path};

use rustix::fs::{AtFlags, FileType, Stat, statat};

use super::{failed, node::Nodes, track::Track};
use crate::{Result, apply::refused};

/// What a folder of the upper tree holds.
#[derive(Default)]
pub(super) struct Listing {
    /// What is there.
    pub(super) names: Vec<CString>,
    /// What overlayfs hides.
    pub(super) hidden: Vec<CString>,
    /// What tar cannot hold.
    pub(super) sockets: Vec<CString>,
}

/// How overlayfs says in a folder that a name is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marks {
    /// Not at all: the tree is all that there is.
    None,
    /// By character devices 0/0.
    Devices,
    /// Also by empty files with the attribute `overlay.whiteout`, which is so in a folder whose attribute `overlay.opaque` is `x`.
    DevicesAndFiles,
}

impl Listing {
    /// Reads the innermost folder of a track, whose path is for errors.
    pub(super) fn read(track: &Track, marks: Marks, nodes: &mut Nodes, path: &Path) -> Result<Self> {
        let mut listing = Self::default();
        for (name, kind) in track.names().map_err(failed("list", path))? {
            let place = || path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            if name.to_bytes().starts_with(b".wh.") {
                let reason = "in a layer such a name hides another: rename it";
                return Err(refused(&place(), reason));
            }
            let look = match kind {
                FileType::Unknown => true,
                FileType::CharacterDevice => marks != Marks::None,
                FileType::RegularFile => marks == Marks::DevicesAndFiles,
                _ => false,
            };
            let stat = look
                .then(|| statat(track.top(), &name, AtFlags::SYMLINK_NOFOLLOW))
                .transpose()
                .map_err(failed("look at", &place()))?;
            let kind = stat.as_ref().map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode));
            let hides = match &stat {
                Some(stat) => is_whiteout(stat, marks, || {
                    let node = nodes.at(track.top(), &name, &place())?;
                    Ok(node.mark("whiteout").is_some())
                })?,
                None => false,
            };
            match kind {
                _ if hides => listing.hidden.push(name),
                FileType::Socket => listing.sockets.push(name),
                _ => listing.names.push(name),
            }
        }
        Ok(listing)
    }
}

fn is_whiteout(stat: &Stat, marks: Marks, marked: impl FnOnce() -> Result<bool>) -> Result<bool> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Ok(marks != Marks::None && stat.st_rdev == 0),
        FileType::RegularFile if marks == Marks::DevicesAndFiles && stat.st_size == 0 => marked(),
        _ => Ok(false),
    }
}
