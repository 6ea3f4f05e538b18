use std::io;

use rustix::mount::{MountAttrFlags, MountFlags};

use super::{idmap::Mapping, images};

/// What a mount's options mean: those for the kernel's mount table apart from those for the file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options<'a> {
    pub(super) recursive: bool,
    pub(super) read_only: bool,
    /// `MOUNT_ATTR_…` and `MS_…` of the same meaning.
    flags: Vec<(MountAttrFlags, MountFlags)>,
    pub(super) mapping: Mapping,
    /// For the file system.
    pub(super) data: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Options<'a> {
    pub(super) fn parse(options: &'a [String]) -> io::Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            match option.split_once('=') {
                Some(("uidmap", map)) => parsed.mapping.users.push(map.parse()?),
                Some(("gidmap", map)) => parsed.mapping.groups.push(map.parse()?),
                Some((key, value)) => parsed.data.push((key, Some(value))),
                None => parsed.word(option),
            }
        }
        if parsed.mapping.users.is_empty() != parsed.mapping.groups.is_empty() {
            let reason = "uidmap and gidmap go together: the kernel maps both kinds of owners or none";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        Ok(parsed)
    }

    fn word(&mut self, option: &'a str) {
        let flag = match option {
            "rw" | "suid" | "dev" | "exec" | "atime" | "diratime" | "bind" | "defaults" => return,
            "rbind" => {
                self.recursive = true;
                return;
            }
            "ro" => {
                self.read_only = true;
                (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY)
            }
            "nosuid" => (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
            "nodev" => (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
            "noexec" => (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
            "noatime" => (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
            "nodiratime" => (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
            other => return self.data.push((other, None)),
        };
        self.flags.push(flag);
    }

    /// For `fsmount` and `mount_setattr`.
    pub(super) fn attributes(&self) -> MountAttrFlags {
        self.flags.iter().map(|(attributes, _)| *attributes).collect()
    }

    /// For `mount`.
    pub(super) fn flags(&self) -> MountFlags {
        self.flags.iter().map(|(_, flags)| *flags).collect()
    }

    /// Overlayfs's layers, highest first, however they are written.
    pub(super) fn layers(&self) -> impl Iterator<Item = &'a str> {
        self.data.iter().flat_map(|(key, value)| {
            let split = match *key {
                "lowerdir" => *value,
                _ => None,
            };
            let whole = match *key {
                "lowerdir+" => *value,
                _ => None,
            };
            split.into_iter().flat_map(|layers| layers.split(':')).chain(whole)
        })
    }

    /// Overlayfs's layers that are images, below all others, highest first: the image, and the devices that its data is on.
    pub(super) fn images(&self) -> impl Iterator<Item = &'a str> {
        self.values(images::OPTION)
    }

    /// Where these are mounted, their owners mapped.
    pub(super) fn mounted(&self) -> impl Iterator<Item = &'a str> {
        self.values(images::MOUNTED)
    }

    fn values(&self, wanted: &'static str) -> impl Iterator<Item = &'a str> {
        self.data.iter().filter(move |(key, _)| *key == wanted).filter_map(|(_, value)| *value)
    }

    /// All but the layers, as one string for `mount`.
    pub(super) fn rest(&self) -> Vec<String> {
        let rest =
            self.data.iter().filter(|(key, _)| !matches!(*key, "lowerdir" | "lowerdir+" | images::MOUNTED));
        rest.map(|(key, value)| value.map_or((*key).to_owned(), |value| format!("{key}={value}"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_the_mount_is_told_from_what_is_for_the_file_system() {
        let options = [
            "ro",
            "nosuid",
            "rbind",
            "lowerdir=/a:/b",
            "lowerdir+=/c:d",
            "uidmap=0:1:2",
            "gidmap=3:4:5",
            "userxattr",
        ]
        .map(str::to_owned);

        let parsed = Options::parse(&options).expect("all are known or for the file system");

        assert!(parsed.read_only && parsed.recursive);
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!(parsed.attributes(), attributes);
        assert_eq!(parsed.flags(), MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!(parsed.layers().collect::<Vec<_>>(), ["/a", "/b", "/c:d"]);
        assert_eq!(parsed.rest(), ["userxattr"]);
        assert!(!parsed.mapping.is_empty());
    }

    #[test]
    fn half_a_mapping_is_refused() {
        let err = Options::parse(&["uidmap=0:1:2".to_owned()]).expect_err("groups are missing");

        assert!(err.to_string().starts_with("uidmap and gidmap go together"), "{err}");
    }
}
