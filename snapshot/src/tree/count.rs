use std::{collections::HashSet, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, Stat, fstat, statat},
    io::Errno,
};

use super::{Descent, is_folder, names, open_folder};
use crate::{Result, Usage, folders::io};

/// What a tree takes, its top folder included. A file with several names counts once.
pub(crate) fn usage(path: &Path) -> Result<Usage> {
    let mut total = Usage::default();
    let counted = open_folder(CWD, path).and_then(|top| {
        visit(top, |stat| {
            add(&mut total, stat);
            Ok(())
        })
    });
    counted.map_err(|err: Errno| io("count the files of", path, err.into()))?;
    Ok(total)
}

/// What a tree takes that began as a snapshot of `parent`, without the files that still are as they were there.
///
/// On a file system whose snapshots keep inode numbers: a file is unchanged if it has its number and its change time. `check`
/// may refuse a file of the tree.
#[cfg(feature = "btrfs")]
pub(crate) fn usage_beside(
    path: &Path,
    parent: Option<&Path>,
    check: impl Fn(&Stat) -> rustix::io::Result<()>,
) -> Result<Usage> {
    let fail = |path, err: Errno| io("count the files of", path, err.into());
    let mut before = std::collections::HashMap::new();
    let state = |stat: &Stat| (stat.st_ctime, stat.st_ctime_nsec);
    if let Some(parent) = parent {
        let read = open_folder(CWD, parent).and_then(|top| {
            visit(top, |stat| {
                before.insert(stat.st_ino, state(stat));
                Ok(())
            })
        });
        read.map_err(|err| fail(parent, err))?;
    }
    let mut total = Usage::default();
    let counted = open_folder(CWD, path).and_then(|top| {
        visit(top, |stat| {
            check(stat)?;
            if before.get(&stat.st_ino) != Some(&state(stat)) {
                add(&mut total, stat);
            }
            Ok(())
        })
    });
    counted.map_err(|err| fail(path, err))?;
    Ok(total)
}

/// Shows each file and folder once.
fn visit(top: OwnedFd, mut see: impl FnMut(&Stat) -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    see(&fstat(&top)?)?;
    let mut at = Descent::new(top)?;
    let mut seen = HashSet::new();
    let mut left = vec![names(at.here())?];
    while let Some(folder) = left.last_mut() {
        let Some(name) = folder.pop() else {
            left.pop();
            if !left.is_empty() {
                at.leave()?;
            }
            continue;
        };
        let stat = statat(at.here(), &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if is_folder(&stat) {
            see(&stat)?;
            at.enter(&name)?;
            left.push(names(at.here())?);
        } else if stat.st_nlink == 1 || seen.insert((stat.st_dev, stat.st_ino)) {
            see(&stat)?;
        }
    }
    Ok(())
}

fn add(total: &mut Usage, stat: &Stat) {
    total.inodes += 1;
    total.bytes += stat.st_blocks.cast_unsigned() * 512;
}
