//! Layers of an overlay that are images: each is mounted first, without a place in the file system.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, move_mount},
};

use super::{Mount, options::Options, place::Place};

/// The option that names such a layer. It is ours: the kernel does not know it.
pub(super) const OPTION: &str = "lowerimage";

/// The images of an overlay, mounted, highest first.
#[derive(Debug)]
pub(super) struct Images {
    roots: Vec<OwnedFd>,
}

impl Images {
    /// Mounts those that the options name, with the owners mapped as the options say.
    pub(super) fn mount(options: &Options<'_>) -> io::Result<Self> {
        let mut roots = Vec::new();
        for value in options.images() {
            let (image, devices) =
                value.split_once(':').map_or((value, None), |(image, rest)| (image, Some(rest)));
            let devices = devices.into_iter().flat_map(|devices| devices.split(':'));
            let root = super::kernel::detached(&erofs(image, devices))?;
            if !options.mapping.is_empty() {
                options.mapping.apply(&root, false)?;
            }
            roots.push(root);
        }
        Ok(Self { roots })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// For overlayfs since Linux 6.15, which takes mounts without a place.
    pub(super) fn handles(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.roots.iter().map(AsFd::as_fd)
    }

    /// Mounts them in temporary folders, for older kernels. An overlay that was mounted goes on without these.
    pub(super) fn place(&self) -> io::Result<Vec<Place>> {
        let placed = self.roots.iter().map(|root| {
            let mut place = Place::new()?;
            move_mount(root, "", CWD, place.path(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
            place.mounted(1);
            Ok(place)
        });
        placed.collect()
    }
}

/// How an EROFS image is mounted whose data is on these devices, each of them a file.
pub(crate) fn erofs<'a>(image: &str, devices: impl IntoIterator<Item = &'a str>) -> Mount {
    let mut options = vec!["ro".to_owned()];
    options.extend(devices.into_iter().map(|device| format!("device={device}")));
    Mount { fstype: "erofs".to_owned(), source: image.into(), options }
}
