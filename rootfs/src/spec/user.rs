//! Whom a container runs as: names looked up in the image's own `/etc/passwd` and `/etc/group`.

use std::{
    fs::File,
    io::{self, Read},
    iter,
    os::fd::{AsRawFd, BorrowedFd},
    path::Path,
};

use oci_spec::runtime::{User, UserBuilder};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
};

use crate::{Error, Result};

/// The most that is read of a passwd or group file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Who runs, and where they are at home.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) user: User,
    pub(super) home: String,
}

/// Looks up `user`, `uid`, `user:group` or `uid:gid`; empty is root.
pub(super) fn look_up(root: BorrowedFd<'_>, wanted: &str) -> Result<Account> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    resolve(&passwd, &group, wanted).map_err(|reason| Error::Spec { reason })
}

/// A file of the image, wherever its links lead inside the image; empty if there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String> {
    let failed = |source| Error::Io { op: "read the image's", path: Path::new("/").join(path), source };
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Not opened yet: to open a device or a fifo that an image has in its place may already do harm, or hang.
    let found = match openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) {
        Ok(found) => File::from(found),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(failed(errno.into())),
    };
    if !found.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    let mut bytes = Vec::new();
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE} bytes"))));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn resolve(passwd: &str, group: &str, wanted: &str) -> Result<Account, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let by_name = lines(passwd).find(|fields| fields[0] == user);
    let by_id = || number.and_then(|uid| lines(passwd).find(|fields| field_is(fields, 2, uid)));
    let entry = by_name.or_else(by_id);
    let id = |index: usize| entry.as_ref().and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = id(2)
        .or(number)
        .ok_or_else(|| format!("the image runs as {user:?}, who is not in its /etc/passwd"))?;
    let name = entry.as_ref().map_or("", |fields| fields[0]);
    let home = entry.as_ref().and_then(|fields| fields.get(5)).filter(|home| !home.is_empty());
    let (gid, additional) = match wanted_group {
        // To say which group is to want no others.
        Some(wanted) => (group_id(group, wanted)?, Vec::new()),
        None => (id(3).unwrap_or(0), groups_of(group, name)),
    };
    // The first group is among them, too: else a set-group-ID program could shed it, and with it what a file denies to it.
    let others = additional.into_iter().filter(|other| *other != gid);
    let user = UserBuilder::default()
        .uid(uid)
        .gid(gid)
        .additional_gids(iter::once(gid).chain(others).collect::<Vec<_>>())
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Account { user, home: home.map_or("/", |home| *home).to_owned() })
}

fn group_id(group: &str, wanted: &str) -> Result<u32, String> {
    let by_name = lines(group).find(|fields| fields[0] == wanted);
    let id = by_name.and_then(|fields| fields.get(2)?.parse().ok()).or_else(|| wanted.parse().ok());
    id.ok_or_else(|| format!("the image runs in the group {wanted:?}, which is not in its /etc/group"))
}

/// The groups that list a member.
fn groups_of(group: &str, member: &str) -> Vec<u32> {
    if member.is_empty() {
        return Vec::new();
    }
    lines(group)
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|name| name == member)))
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .collect()
}

/// The fields of each line. A line that has none is none.
fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines().filter(|line| !line.trim().is_empty()).map(|line| line.split(':').map(str::trim).collect())
}

fn field_is(fields: &[&str], index: usize, number: u32) -> bool {
    fields.get(index).and_then(|field| field.parse().ok()) == Some(number)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsFd, unix::fs::symlink},
    };

    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType, mknodat};

    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/home/app:/bin/sh\n7:x:70:71:::\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\n";

    #[test]
    fn users_and_groups_are_names_or_numbers() {
        for (wanted, uid, gid, additional, home) in [
            ("", 0, 0, &[0, 10][..], "/root"),
            ("app", 1000, 1001, &[1001, 10, 29], "/home/app"),
            ("1000", 1000, 1001, &[1001, 10, 29], "/home/app"),
            ("app:", 1000, 1001, &[1001, 10, 29], "/home/app"),
            ("app:wheel", 1000, 10, &[10], "/home/app"),
            ("app:5", 1000, 5, &[5], "/home/app"),
            ("4242", 4242, 0, &[0], "/"),
            ("4242:4343", 4242, 4343, &[4343], "/"),
            // A name wins over a number.
            ("7", 70, 71, &[71], "/"),
        ] {
            let account = resolve(PASSWD, GROUP, wanted).expect(wanted);
            assert_eq!((account.user.uid(), account.user.gid()), (uid, gid), "{wanted}");
            assert_eq!(account.user.additional_gids().as_deref(), Some(additional), "{wanted}");
            assert_eq!(account.home, home, "{wanted}");
        }
        assert!(resolve(PASSWD, GROUP, "nobody").is_err());
        assert!(resolve(PASSWD, GROUP, "app:nobody").is_err());
    }

    #[test]
    fn only_a_regular_file_inside_the_root_is_read() {
        let (root, outside) =
            (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        fs::create_dir(root.path().join("etc")).expect("it can be made");
        fs::write(outside.path().join("passwd"), "evil:x:0:0::/:\n").expect("it can be written");
        let passwd = root.path().join("etc/passwd");
        let open = File::open(root.path()).expect("it is there");
        let read = || read(open.as_fd(), "etc/passwd");
        let too_large = vec![b'\n'; usize::try_from(MAX_FILE).expect("it fits") + 1];

        assert_eq!(read().expect("none is none"), "");
        symlink(outside.path().join("passwd"), &passwd).expect("it can be made");
        assert_eq!(read().expect("the link leads to nothing inside"), "");
        fs::remove_file(&passwd).expect("it is there");
        mknodat(CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).expect("it can be made");
        let fifo = read().expect_err("a fifo is no file");
        fs::remove_file(&passwd).expect("it is there");
        fs::write(&passwd, too_large).expect("it can be written");
        let large = read().expect_err("it is too large");

        let cause = |error: Error| std::error::Error::source(&error).expect("it has a cause").to_string();
        assert_eq!(cause(fifo), "it is no regular file");
        assert_eq!(cause(large), "it is larger than 4194304 bytes");
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(passwd in "[a-z0-9:\\n]{0,80}", group in "[a-z0-9:,\\n]{0,80}", wanted in "[a-z0-9:]{0,8}") {
            let _ = resolve(&passwd, &group, &wanted);
        }
    }
}
