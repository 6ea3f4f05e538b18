//! The few calls that rustix lacks, or gives as unsafe. The crate has no other unsafe code but btrfs's ioctls.

#![expect(unsafe_code, reason = "rustix has no safe way to make these calls")]

use std::{
    ffi::{c_long, c_uint},
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use linux_raw_sys::{
    general::{__NR_mount_setattr, AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_IDMAP, mount_attr},
    loop_device,
};
use rustix::{
    ioctl,
    mount::MountAttrFlags,
    thread::{UnshareFlags, unshare_unsafe},
};

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

/// `mount_setattr(2)`: sets attributes on a mount, and on those below it if `recursive`; with a user namespace, maps the
/// owners of its files through that.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: MountAttrFlags,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attributes =
        mount_attr { attr_set: u64::from(set.bits()), attr_clr: 0, propagation: 0, userns_fd: 0 };
    if let Some(namespace) = user_namespace {
        attributes.attr_set |= u64::from(MOUNT_ATTR_IDMAP);
        attributes.userns_fd = namespace.as_raw_fd().unsigned_abs().into();
    }
    let flags: c_uint = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: the arguments are those of mount_setattr(2): a handle, an empty path that ends with a zero, flags, a struct that
    // lives until the call returns, and its size.
    let result = unsafe {
        syscall(
            c_long::from(__NR_mount_setattr),
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The number of a loop device that nobody uses (`LOOP_CTL_GET_FREE`).
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    struct GetFree;
    // SAFETY: LOOP_CTL_GET_FREE takes no argument, and gives the number.
    unsafe impl ioctl::Ioctl for GetFree {
        type Output = u32;
        const IS_MUTATING: bool = false;
        fn opcode(&self) -> ioctl::Opcode {
            LOOP_CTL_GET_FREE
        }
        fn as_ptr(&mut self) -> *mut std::ffi::c_void {
            std::ptr::null_mut()
        }
        unsafe fn output_from_ptr(
            out: ioctl::IoctlOutput,
            _: *mut std::ffi::c_void,
        ) -> rustix::io::Result<u32> {
            u32::try_from(out).map_err(|_| rustix::io::Errno::NODEV)
        }
    }
    // SAFETY: see above.
    unsafe { ioctl::ioctl(control, GetFree) }
}

/// Lets a loop device show a file, read-only, until nobody has the device open (`LOOP_CONFIGURE`).
pub(crate) fn configure_loop_device(device: BorrowedFd<'_>, file: u32) -> rustix::io::Result<()> {
    // SAFETY: the struct is plain numbers, of which all zeros are fine.
    let mut config: loop_device::loop_config = unsafe { std::mem::zeroed() };
    config.fd = file;
    // LO_FLAGS_READ_ONLY and LO_FLAGS_AUTOCLEAR.
    config.info.lo_flags = 1 | 4;
    // SAFETY: LOOP_CONFIGURE reads such a struct.
    unsafe { ioctl::ioctl(device, ioctl::Setter::<LOOP_CONFIGURE, loop_device::loop_config>::new(config)) }
}

const LOOP_CTL_GET_FREE: ioctl::Opcode = loop_device::LOOP_CTL_GET_FREE;
const LOOP_CONFIGURE: ioctl::Opcode = loop_device::LOOP_CONFIGURE;

/// Runs `work` on a thread whose working directory is `folder`; that of all others stays what it is.
pub(crate) fn in_folder<T: Send>(
    folder: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: the thread ends here, and no other one sees what it unshares: its working directory, root and umask.
            unsafe { unshare_unsafe(UnshareFlags::FS) }?;
            rustix::process::fchdir(folder)?;
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes a user namespace, and lets `with` see the id of the only process in it, which is gone afterwards.
///
/// A namespace needs a process to be made, and that process must not have threads: so it is a child that never becomes a
/// program.
pub(crate) fn in_new_user_namespace<T>(with: impl FnOnce(u32) -> io::Result<T>) -> io::Result<T> {
    let (mut ready, tell) = io::pipe()?;
    let (wait, mut end) = io::pipe()?;
    let ours = end.as_raw_fd();
    std::thread::scope(|scope| {
        let spawning = scope.spawn(move || {
            // It is never run: the closure always fails.
            let mut command = Command::new("/");
            let mut pipes = Some((wait, tell));
            // SAFETY: between fork and exit the child only makes system calls: it takes no lock and no memory. What it closes
            // is its copy of the parent's end, which nothing in the child uses, and which would keep it waiting.
            unsafe {
                command.pre_exec(move || {
                    rustix::io::close(ours);
                    Err(pipes.take().map_or_else(io::Error::last_os_error, hold))
                });
            }
            command.spawn().map(drop)
        });
        let mut id = [0; 4];
        let answer = ready.read_exact(&mut id).and_then(|()| with(u32::from_ne_bytes(id)));
        // Not only by closing it: a child of another thread that does the same may have a copy, and wait itself. If the child has
        // failed, nobody reads this.
        let _ = end.write_all(&[0]);
        drop(end);
        let spawned = spawning.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (answer, spawned) {
            // The child did not come so far.
            (Err(err), Err(why)) if err.kind() == io::ErrorKind::UnexpectedEof => Err(why),
            (answer, _) => answer,
        }
    })
}

/// What the child does: says that its namespace is there, and waits until the parent is done or dead.
fn hold((mut wait, mut tell): (PipeReader, PipeWriter)) -> io::Error {
    let held = (|| {
        // SAFETY: the child of a fork has one thread, and shares nothing but files with its parent.
        unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
        // A new namespace forgets this, so it comes after.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let id = rustix::process::getpid().as_raw_nonzero().get();
        tell.write_all(&id.to_ne_bytes())?;
        let _ended = wait.read(&mut [0])?;
        Ok(())
    })();
    // Some error has to be given, for the child to end.
    held.err().unwrap_or_else(|| io::Error::from_raw_os_error(rustix::io::Errno::CANCELED.raw_os_error()))
}
