//! The ioctls of btrfs (`linux/btrfs.h`).

#![expect(unsafe_code, reason = "rustix knows no ioctls of btrfs")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::{
    io::{Errno, Result},
    ioctl::{Getter, Opcode, Setter, ioctl, opcode},
};

const MAGIC: u8 = 0x94;
const SUBVOL_CREATE: Opcode = opcode::write::<Named>(MAGIC, 14);
const SNAP_DESTROY: Opcode = opcode::write::<Named>(MAGIC, 15);
const SNAP_CREATE_V2: Opcode = opcode::write::<Snapshot>(MAGIC, 23);
const SUBVOL_GETFLAGS: Opcode = opcode::read::<u64>(MAGIC, 25);
const SUBVOL_SETFLAGS: Opcode = opcode::write::<u64>(MAGIC, 26);
/// BTRFS_SUBVOL_RDONLY
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`
#[repr(C)]
struct Named {
    handle: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`
#[repr(C)]
struct Snapshot {
    handle: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

const _: () = assert!(size_of::<Named>() == 4096 && size_of::<Snapshot>() == 4096);

/// Makes an empty subvolume of that name in a folder.
pub(super) fn create(folder: impl AsFd, name: &str) -> Result<()> {
    // SAFETY: this is BTRFS_IOC_SUBVOL_CREATE, which reads the struct that it is given.
    unsafe { ioctl(folder, Setter::<SUBVOL_CREATE, _>::new(named(name)?)) }
}

/// Makes a snapshot of a subvolume, of that name in a folder.
pub(super) fn snapshot(subvolume: BorrowedFd<'_>, folder: impl AsFd, name: &str) -> Result<()> {
    let handle = subvolume.as_raw_fd().into();
    let arguments = Snapshot { handle, transaction: 0, flags: 0, unused: [0; 4], name: text(name)? };
    // SAFETY: this is BTRFS_IOC_SNAP_CREATE_V2, which reads the struct that it is given; without flags it writes nothing back.
    unsafe { ioctl(folder, Setter::<SNAP_CREATE_V2, _>::new(arguments)) }
}

/// Removes a subvolume with all that is in it, but not one that holds others.
pub(super) fn destroy(folder: impl AsFd, name: &str) -> Result<()> {
    // SAFETY: this is BTRFS_IOC_SNAP_DESTROY, which reads the struct that it is given.
    unsafe { ioctl(folder, Setter::<SNAP_DESTROY, _>::new(named(name)?)) }
}

/// Makes a subvolume read-only, or writable again.
pub(super) fn set_read_only(subvolume: impl AsFd, read_only: bool) -> Result<()> {
    let subvolume = subvolume.as_fd();
    // SAFETY: this is BTRFS_IOC_SUBVOL_GETFLAGS, which writes a number of 64 bits.
    let now: u64 = unsafe { ioctl(subvolume, Getter::<SUBVOL_GETFLAGS, u64>::new()) }?;
    let then = if read_only { now | READ_ONLY } else { now & !READ_ONLY };
    if now == then {
        return Ok(());
    }
    // SAFETY: this is BTRFS_IOC_SUBVOL_SETFLAGS, which reads a number of 64 bits.
    unsafe { ioctl(subvolume, Setter::<SUBVOL_SETFLAGS, u64>::new(then)) }
}

fn named(name: &str) -> Result<Named> {
    Ok(Named { handle: 0, name: text(name)? })
}

/// With a zero at its end.
fn text<const N: usize>(name: &str) -> Result<[u8; N]> {
    let mut text = [0; N];
    if name.len() >= N {
        return Err(Errno::NAMETOOLONG);
    }
    text[..name.len()].copy_from_slice(name.as_bytes());
    Ok(text)
}
