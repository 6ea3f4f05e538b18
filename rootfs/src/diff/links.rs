//! Which names of a tree are the same file.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::fs::{AtFlags, FileType, Stat, fstat, statat};

use super::{
    failed, joined,
    track::{Id, Track, id},
};
use crate::Result;

/// The files of a tree that have several names, each with those that are in the tree, in order.
pub(super) struct Links(HashMap<Id, Vec<Vec<u8>>>);

impl Links {
    /// Reads all folders of a tree.
    pub(super) fn of(root: &OwnedFd) -> Result<Self> {
        let mut groups: HashMap<Id, Vec<Vec<u8>>> = HashMap::new();
        let mut track = Track::new(root)?;
        let list = |track: &Track, path: &[u8]| {
            let names = track.names().map_err(failed("list", Path::new(OsStr::from_bytes(path))))?;
            Ok::<_, crate::Error>(names.into_iter())
        };
        let mut levels = vec![(Vec::new(), list(&track, b"")?)];
        while let Some((above, names)) = levels.last_mut() {
            let Some((name, kind)) = names.next() else {
                levels.pop();
                track.pop();
                track.settle()?;
                continue;
            };
            let path = joined(above, &name);
            let shown = Path::new(OsStr::from_bytes(&path));
            if !matches!(kind, FileType::Directory) {
                let stat = statat(track.top(), &name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("look at", shown))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    if stat.st_nlink > 1 {
                        groups.entry(id(&stat)).or_default().push(path);
                    }
                    continue;
                }
            }
            let folder = track.open(&name).map_err(failed("open", shown))?;
            let stat = fstat(&folder).map_err(failed("look at", shown))?;
            track.push(&name, folder, &stat);
            let names = list(&track, &path)?;
            levels.push((path, names));
        }
        Ok(Self(groups))
    }

    /// All names of the file that has this one.
    pub(super) fn names<'a>(&'a self, stat: &Stat, path: &'a Vec<u8>) -> &'a [Vec<u8>] {
        match self.0.get(&id(stat)) {
            Some(names) if stat.st_nlink > 1 => names,
            _ => std::slice::from_ref(path),
        }
    }
}
