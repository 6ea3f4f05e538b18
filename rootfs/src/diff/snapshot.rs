//! The changes of a snapshot against its parent.

use std::{io::Write, path::Path};

use rustix::fs::{CWD, Mode, OFlags, openat};
use windlass_snapshot::{Error as SnapshotError, Mount, Snapshotter, Whiteouts, mount::open_tree};

use super::{Diffed, Options, diff, failed};
use crate::Result;

/// Writes what an active snapshot has changed on top of its parent, as a compressed layer. Blocks.
///
/// Where the driver says that a snapshot holds its changes alone, these are read; where not, its tree is compared with its
/// parent's, for which a view named `view` is made and removed again. Whoever lets garbage be collected meanwhile holds that name.
/// `options.whiteouts` is not looked at. The snapshot should be at rest: a container that writes to it paused, or ended.
///
/// # Errors
///
/// [`Error::Snapshot`](crate::Error::Snapshot) if there is no such active snapshot, or it cannot be mounted; else as [`diff`](super::diff()).
pub fn snapshot(
    snapshotter: &dyn Snapshotter,
    key: &str,
    view: &str,
    out: impl Write,
    options: &Options,
) -> Result<Diffed> {
    let not_found = || SnapshotError::NotFound { name: key.to_owned() };
    let parent = snapshotter.stat(key)?.ok_or_else(not_found)?.parent;
    let mounts = snapshotter.mounts(key)?;
    let whiteouts = snapshotter.capabilities().whiteouts;
    let options = options.clone().whiteouts(whiteouts);
    if whiteouts != Whiteouts::Remove {
        let upper = upper_folder(&mounts).ok_or_else(|| SnapshotError::Unsupported {
            driver: "mount",
            op: "find the changes of a snapshot",
            reason: format!("{key:?} is not mounted as an overlay with an upper folder, but as {mounts:?}"),
        })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = openat(CWD, upper, flags, Mode::empty()).map_err(failed("open", upper))?;
        let lower = parent.map(|parent| open_tree(&snapshotter.stacked(&[], Some(&parent))?)).transpose()?;
        return diff(&upper, lower.as_ref(), out, &options);
    }
    let upper = open_tree(&mounts)?;
    let Some(parent) = parent else { return diff(&upper, None, out, &options) };
    let mounts = snapshotter.view(view, Some(&parent))?;
    let view = View { snapshotter, name: Some(view) };
    let lower = open_tree(&mounts)?;
    let diffed = diff(&upper, Some(&lower), out, &options)?;
    drop(lower);
    view.remove()?;
    Ok(diffed)
}

/// Where an overlay mount writes; without layers below it is no overlay, but a folder.
fn upper_folder(mounts: &[Mount]) -> Option<&Path> {
    let last = mounts.last()?;
    match last.fstype.as_str() {
        "bind" => Some(&last.source),
        _ => last.options.iter().find_map(|option| option.strip_prefix("upperdir=")).map(Path::new),
    }
}

/// A view that is removed again.
struct View<'a> {
    snapshotter: &'a dyn Snapshotter,
    name: Option<&'a str>,
}

impl View<'_> {
    fn remove(mut self) -> Result<()> {
        let name = self.name.take().expect("it is removed once");
        Ok(self.snapshotter.remove(name)?)
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let Some(name) = self.name else { return };
        if let Err(error) = self.snapshotter.remove(name) {
            tracing::warn!(view = name, %error, "a view is left behind");
        }
    }
}
