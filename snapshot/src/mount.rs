//! Mounts as data, and the few calls that turn them into mounts.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use crate::Result;

/// One mount: what `mount -t fstype source -o options` would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type; `bind` for a bind mount.
    pub fstype: String,
    /// What is mounted: a folder, a file, a device, or for `overlay` just a word.
    pub source: PathBuf,
    /// Options as `mount -o` takes them: `ro`, `rbind`, `lowerdir=/a:/b`.
    pub options: Vec<String>,
}
