//! What a regular file holds: its pieces of data, with holes between them, and room for large pieces before they are written.

use std::{
    fs::File,
    io::{BufRead, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::fs::{FallocateFlags, fallocate, fstatfs};

use super::{archive::Archive, entry::Meta};
use crate::{Error, Result};

/// Room is asked for only where a piece has as many bytes as this: a small one is written as fast without.
const LARGE: u64 = 1 << 20;
/// How much room is asked for at once, in bytes. A layer that announces more than it has takes no more than that in vain.
const STEP: u64 = 32 << 20;
/// `EXT4_SUPER_MAGIC` of statfs(2), which ext2 and ext3 have, too.
const EXT4: u32 = 0xef53;

/// Whether a file system writes large files faster into room that it was asked for. Ext4 then reserves the blocks of a step together,
/// not each by itself as it is written. Others have other ways, or, as a compressing btrfs, do worse with it.
pub(super) fn likes_room(root: &OwnedFd) -> bool {
    fstatfs(root).is_ok_and(|statistics| u32::try_from(statistics.f_type) == Ok(EXT4))
}

/// Writes the content of a new file.
pub(super) fn write<R: BufRead>(
    file: &mut File,
    meta: &Meta,
    data: &mut Archive<R>,
    likes_room: bool,
) -> Result<()> {
    let failed = |source| Error::Io { op: "write", path: meta.path.clone(), source };
    let pieces = &meta.content.pieces;
    let is_whole = pieces.len() == 1 && pieces[0].0 == 0;
    let mut end = 0;
    for (offset, length) in pieces {
        let (mut at, next) = (*offset, offset + length);
        // Where room is to be asked for next.
        let mut room = if likes_room && *length >= LARGE { at } else { next };
        while at < next {
            if at >= room {
                room = next.min(at.saturating_add(STEP));
                // What there is no room for, the writing will say.
                let _ = fallocate(file.as_fd(), FallocateFlags::KEEP_SIZE, at, room - at);
            }
            let there = data.fill_buf();
            let there = match there {
                Ok(there) => there,
                Err(error) => return Err(data.failed(error)),
            };
            let some = there.len().min(usize::try_from(next - at).unwrap_or(usize::MAX));
            match is_whole {
                true => file.write_all(&there[..some]).map_err(failed)?,
                false => file.write_all_at(&there[..some], at).map_err(failed)?,
            }
            data.consume(some);
            at += some as u64;
        }
        // A map may end with an empty piece, which makes nothing.
        if *length > 0 {
            end = next;
        }
    }
    match end == meta.content.size {
        true => Ok(()),
        // It ends in a hole.
        false => file.set_len(meta.content.size).map_err(failed),
    }
}
