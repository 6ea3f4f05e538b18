//! Whether images and overlays on them work in a folder.

use std::{error::Error as _, fs::File, path::Path};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, unlinkat},
    io::Errno,
};

use super::{
    Kind, LayerForm, Meta, Options, Tree, Writer,
    driver::{overlay, unsupported},
};
use crate::{
    Error, Result,
    folders::{io, mkdir},
    mount,
    root::Root,
    tree,
};

/// How new layers are best kept here, of what can be mounted.
pub(super) fn best(root: &Root) -> Result<LayerForm> {
    let Err(error) = run(root, LayerForm::Index) else { return Ok(LayerForm::Index) };
    run(root, LayerForm::Full)?;
    tracing::debug!(error = &error as &dyn std::error::Error, "layers are kept as full images");
    Ok(LayerForm::Full)
}

/// Mounts a tiny image, kept as new layers will be, as every snapshot will be, and writes on top of it.
pub(super) fn run(root: &Root, layers: LayerForm) -> Result<()> {
    let attempt = |folder: &Path| {
        for name in ["upper", "work"] {
            mkdir(&folder.join(name), 0o755)?;
        }
        let place = |name: &str| folder.join(name).display().to_string();
        let image = folder.join("image");
        let write = || {
            let mut tree = Tree::new();
            tree.put(tree.root(), b"file", Meta::default(), Kind::Fifo).expect("it is a good name");
            let file = File::options().create_new(true).read(true).write(true).open(&image)?;
            let written = match layers {
                LayerForm::Full => Writer::new(file)?.finish(&mut tree, &Options::default()),
                LayerForm::Index => {
                    std::fs::write(folder.join("tar"), [0; 512])?;
                    Writer::index(file)?.finish_index(&mut tree, &Options::default(), 512)
                }
            };
            written.map(drop).map_err(std::io::Error::other)
        };
        write().map_err(|source| io("write", &image, source))?;
        let lower = match layers {
            LayerForm::Full => place("image"),
            LayerForm::Index => format!("{}:{}", place("image"), place("tar")),
        };
        let mut options = vec!["rw".to_owned(), format!("lowerimage={lower}")];
        options.extend([format!("upperdir={}", place("upper")), format!("workdir={}", place("work"))]);
        let tree =
            mount::open_tree(&[overlay(options)]).map_err(|err| cannot_mount(err, root.path(), layers))?;
        let used = unlinkat(&tree, "file", AtFlags::empty())
            .and_then(|()| openat(&tree, "other", OFlags::CREATE | OFlags::CLOEXEC, Mode::RWXU));
        match used {
            Ok(_) => Ok(()),
            // A full disk says enough.
            Err(err @ (Errno::NOSPC | Errno::DQUOT)) => Err(io("write to an overlay on", folder, err.into())),
            Err(err) => {
                let reason = format!(
                    "an overlay on {} cannot be written ({err}): choose a root on ext4, xfs, btrfs or tmpfs",
                    root.path().display()
                );
                Err(unsupported("work here", reason))
            }
        }
    };
    root.attempt(attempt, tree::remove)
}

fn cannot_mount(err: Error, root: &Path, layers: LayerForm) -> Error {
    let cause = err.source().map(ToString::to_string).unwrap_or_default();
    let index = match layers {
        LayerForm::Full => "",
        LayerForm::Index => "; an index of a tar takes Linux 6.4",
    };
    let reason = format!(
        "an image in {} cannot be mounted: {cause}; it takes root, for EROFS cannot be mounted in a user namespace, and Linux 6.12 \
         with EROFS and overlayfs, or 5.15 with loop devices{index}; without these, use the overlay snapshotter",
        root.display()
    );
    unsupported("work here", reason)
}
