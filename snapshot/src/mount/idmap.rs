use std::{
    fmt, fs, io,
    os::fd::{AsFd, OwnedFd},
    str::FromStr,
    thread,
};

use rustix::{
    fs::{Gid, Uid},
    mount::MountAttrFlags,
    process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior},
    thread::{capabilities, set_capabilities, set_thread_res_gid, set_thread_res_uid},
};

use crate::sys;

/// A range of user or group ids of a tree, and the ids of the host that they are shown as.
///
/// As text it is `inside:outside:count`, as in a line of `/proc/<pid>/uid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// The first id as the tree's files have it, and as a container with this mapping sees it.
    pub inside: u32,
    /// The first id as the host sees it.
    pub outside: u32,
    /// How many ids, from there on.
    pub count: u32,
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

impl FromStr for IdMap {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let mut parts = text.split(':').map(str::parse);
        let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(count)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            let reason = format!("{text:?} is no mapping of ids: it is written inside:outside:count");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        };
        Ok(Self { inside, outside, count })
    }
}

/// How the owners of all files of a mount are shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) users: Vec<IdMap>,
    pub(super) groups: Vec<IdMap>,
}

impl Mapping {
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// Maps the owners on a mount that nobody has seen yet.
    pub(super) fn apply(&self, mount: &OwnedFd, recursive: bool) -> io::Result<()> {
        let namespace = self.namespace()?;
        sys::mount_setattr(mount.as_fd(), recursive, MountAttrFlags::empty(), Some(namespace.as_fd()))
            .map_err(|err| match err.kind() {
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => io::Error::new(
                    err.kind(),
                    format!(
                        "{err}: its file system, or this kernel (before 5.12), cannot map the owners of files"
                    ),
                ),
                _ => err,
            })
    }

    /// Runs `work` on a thread that is whoever owns the files that root owns inside, with all that our thread may do.
    ///
    /// Overlayfs writes as whoever mounted it, and cannot write to a mapped layer as somebody whom the mapping does not have.
    pub(super) fn as_owner<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let outside = |maps: &[IdMap]| {
            let root = maps.iter().find(|map| map.inside == 0).or(maps.first());
            root.map(|map| map.outside).ok_or(io::ErrorKind::InvalidInput)
        };
        let (user, group) = (outside(&self.users)?, outside(&self.groups)?);
        let dumpable = dumpable_behavior()?;
        let answer = thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut may = capabilities(None)?;
                set_thread_res_gid(None, Gid::from_raw(group), None)?;
                set_thread_res_uid(None, Uid::from_raw(user), None)?;
                may.effective = may.permitted;
                set_capabilities(None, may)?;
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // A change of user, even of one thread, forbids dumps of the whole process.
        if dumpable == DumpableBehavior::Dumpable {
            set_dumpable_behavior(dumpable)?;
        }
        answer
    }

    /// A user namespace with this mapping: the form in which the kernel takes one.
    fn namespace(&self) -> io::Result<OwnedFd> {
        let lines = |maps: &[IdMap]| {
            let line = |map: &IdMap| format!("{} {} {}\n", map.inside, map.outside, map.count);
            maps.iter().map(line).collect::<String>()
        };
        sys::in_new_user_namespace(|process| {
            for (file, maps) in [("uid_map", &self.users), ("gid_map", &self.groups)] {
                fs::write(format!("/proc/{process}/{file}"), lines(maps)).map_err(|err| {
                    io::Error::new(err.kind(), format!("the kernel does not take {maps:?} as {file}: {err}"))
                })?;
            }
            Ok(fs::File::open(format!("/proc/{process}/ns/user"))?.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_mapping_says_how_one_is_written() {
        for text in ["", "0", "0:1", "0:1:2:3", "0:-1:2", "a:b:c"] {
            let err = text.parse::<IdMap>().expect_err(text);
            assert!(err.to_string().ends_with("it is written inside:outside:count"), "{text}: {err}");
        }
        let map = IdMap { inside: 0, outside: 100_000, count: 65_536 };
        assert_eq!(map.to_string().parse::<IdMap>().expect("it is one"), map);
    }

    #[test]
    fn a_mapping_that_the_kernel_refuses_is_named() {
        let twice = IdMap { inside: 0, outside: 5, count: 10 };
        let mapping = Mapping { users: vec![twice, twice], groups: vec![twice] };

        let err = mapping.namespace().expect_err("the ranges overlap");

        assert!(err.to_string().contains("uid_map"), "{err}");
    }
}
