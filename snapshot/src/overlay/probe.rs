//! Whether overlayfs works in a folder, and how.

use std::path::Path;

use rustix::{
    fs::{AtFlags, Mode, OFlags, XattrFlags, mkdirat, openat, setxattr, unlinkat},
    io::Errno,
};

use super::{
    options::{Attributes, Style},
    unsupported,
};
use crate::{
    Error, Result,
    folders::{io, mkdir},
    mount,
    root::Root,
    tree,
};

/// Mounts two tiny layers as every snapshot will be, hides a file and a folder, and says which attributes can be used.
pub(super) fn run(root: &Root) -> Result<Attributes> {
    let attempt = |folder: &Path| {
        for name in ["lower", "lower/folder", "low", "upper", "work"] {
            mkdir(&folder.join(name), 0o755)?;
        }
        let attributes = attributes(&folder.join("low"))?;
        let place = |name: &str| folder.join(name).display().to_string();
        let style = Style { attributes, volatile: false };
        let mounts = [style.writable(&[place("lower"), place("low")], &place("upper"), &place("work"))];
        let tree = mount::open_tree(&mounts).map_err(|err| cannot_mount(&err, root.path()))?;
        let used = unlinkat(&tree, "folder", AtFlags::REMOVEDIR)
            .and_then(|()| mkdirat(&tree, "folder", Mode::RWXU))
            .and_then(|()| openat(&tree, "file", OFlags::CREATE | OFlags::CLOEXEC, Mode::RWXU));
        match used {
            Ok(_) => Ok(attributes),
            // A full disk says enough.
            Err(err @ (Errno::NOSPC | Errno::DQUOT)) => Err(io("write to an overlay on", folder, err.into())),
            Err(err) => Err(cannot_write(err, root.path())),
        }
    };
    root.attempt(attempt, tree::remove)
}

/// What may be set on a folder here.
fn attributes(folder: &Path) -> Result<Attributes> {
    let set = |name: &str| setxattr(folder, name, b"n", XattrFlags::empty());
    match set("trusted.overlay.windlass") {
        Ok(()) => return Ok(Attributes::Trusted),
        Err(Errno::PERM | Errno::OPNOTSUPP) => {}
        Err(err) => return Err(io("set an attribute of", folder, err.into())),
    }
    match set("user.overlay.windlass") {
        Ok(()) => Ok(Attributes::User),
        Err(Errno::PERM | Errno::OPNOTSUPP) => {
            let reason =
                "neither trusted nor user attributes can be set on its file system: choose another root";
            Err(unsupported("work here", reason.to_owned()))
        }
        Err(err) => Err(io("set an attribute of", folder, err.into())),
    }
}

/// What a root was made with stays, since its layers are written so.
pub(super) fn choose(possible: Attributes, noted: &str, root: &Path) -> Result<Attributes> {
    match (noted, possible) {
        ("user", _) => Ok(Attributes::User),
        (_, Attributes::Trusted) => Ok(Attributes::Trusted),
        (_, Attributes::User) => {
            let reason = format!(
                "the layers in {} are root's, with attributes that nobody may read in a user namespace: use another root",
                root.display()
            );
            Err(unsupported("work here", reason))
        }
    }
}

fn cannot_mount(err: &Error, root: &Path) -> Error {
    let cause = std::error::Error::source(err).map(ToString::to_string).unwrap_or_default();
    let reason = format!(
        "{err} below {}: {cause}; overlayfs needs root or a user namespace, the kernel's overlay module, and a root \
         that is not on overlayfs itself; the native snapshotter works anywhere",
        root.display()
    );
    unsupported("work here", reason)
}

fn cannot_write(err: Errno, root: &Path) -> Error {
    let reason = format!(
        "an overlay on {} can be mounted, but not written ({err}): its file system is no upper layer for overlayfs; choose \
         a root on ext4, xfs, btrfs or tmpfs, or another snapshotter",
        root.display()
    );
    unsupported("work here", reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, Overlay};

    #[test]
    fn a_root_that_mount_options_cannot_say_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["a:b", "a,b", "a\\b"] {
            let err = Overlay::open(&dir.path().join(name), Durability::Fast).expect_err(name);
            assert!(matches!(err, Error::Unsupported { .. }), "{name}: {err:?}");
            assert!(err.to_string().contains("choose another root"), "{err}");
        }
    }

    #[test]
    fn opening_leaves_no_probe_behind() {
        let dir = tempfile::tempdir().expect("a folder");

        Overlay::open(dir.path(), Durability::Safe).expect("root may mount overlays");

        let left = std::fs::read_dir(dir.path()).expect("the root");
        let probes = left.filter(|entry| {
            let name = entry.as_ref().expect("an entry").file_name();
            name.to_string_lossy().starts_with("probe")
        });
        assert_eq!(probes.count(), 0);
    }

    #[test]
    fn an_overlay_on_an_overlay_is_refused_with_the_reason_and_leaves_no_database() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name).display().to_string();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(path(name)).expect("a folder");
        }
        let style = Style { attributes: Attributes::Trusted, volatile: false };
        let below = style.writable(&[path("lower")], &path("upper"), &path("work"));

        let (err, left) = mount::temp_mount(&[below], |tree| {
            let root = tree.join("root");
            let err = Overlay::open(&root, Durability::Fast)
                .expect_err("overlayfs takes no overlay as upper layer");
            (err, root.join("metadata.db").exists())
        })
        .expect("an overlay");

        assert!(matches!(err, Error::Unsupported { .. }), "{err:?}");
        assert!(err.to_string().contains("not on overlayfs itself"), "{err}");
        assert!(!left);
    }

    #[test]
    fn layers_of_root_are_not_read_in_a_user_namespace() {
        let root = Path::new("/root");

        let err =
            choose(Attributes::User, "trusted", root).expect_err("they would be seen without what they hide");

        assert!(err.to_string().ends_with("use another root"), "{err}");
        assert_eq!(choose(Attributes::Trusted, "user", root).expect("root can"), Attributes::User);
    }
}
