//! Locks of single bytes of a file, for as many names as one likes with one open file (fcntl(2), "Open file description locks").

use std::{
    ffi::{c_int, c_short},
    fs::File,
    io,
    os::fd::AsRawFd,
};

use windlass_content::lock::Patience;

/// `struct flock`, with 64-bit offsets: these commands take no other.
#[repr(C)]
struct Flock {
    kind: c_short,
    whence: c_short,
    start: i64,
    length: i64,
    process: c_int,
}

const WRITE: c_short = 1;
const UNLOCK: c_short = 2;
const FROM_THE_START: c_short = 0;
const SET: c_int = 37;
const SET_AND_WAIT: c_int = 38;

#[expect(unsafe_code, reason = "rustix does not have these commands")]
unsafe extern "C" {
    fn fcntl(file: c_int, command: c_int, ...) -> c_int;
}

/// Locks the byte at `place`, which need not be there, for this open file; gives whether it did. `file` is open for writing, and
/// has the lock until [`unlock`], or until it is closed. No other open file, of whatever process, has it meanwhile.
pub(super) fn lock(file: &File, place: i64, patience: Patience) -> io::Result<bool> {
    let command = match patience {
        Patience::None => SET,
        Patience::Endless => SET_AND_WAIT,
    };
    loop {
        match set(file, command, WRITE, place) {
            Ok(()) => return Ok(true),
            // A signal came to this thread; the wait is not over.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if patience == Patience::None && error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Gives the byte at `place` to whoever waits for it.
pub(super) fn unlock(file: &File, place: i64) -> io::Result<()> {
    set(file, SET, UNLOCK, place)
}

#[expect(unsafe_code, reason = "rustix does not have these commands")]
fn set(file: &File, command: c_int, kind: c_short, start: i64) -> io::Result<()> {
    let mut lock = Flock { kind, whence: FROM_THE_START, start, length: 1, process: 0 };
    // SAFETY: these commands read a `struct flock` through the third argument, which lives until the call is over.
    match unsafe { fcntl(file.as_raw_fd(), command, &raw mut lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn a_byte_belongs_to_one_open_file_until_it_is_unlocked_or_closed() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let open = || File::options().write(true).open(file.path()).expect("it is there");
        let (one, other) = (open(), open());
        let far = i64::MAX - 1;

        assert!(lock(&one, far, Patience::None).expect("the file system has locks"));
        assert!(!lock(&other, far, Patience::None).expect("it can be asked"));
        assert!(lock(&other, far - 1, Patience::None).expect("another byte is another lock"));
        unlock(&one, far).expect("it is locked");
        assert!(lock(&other, far, Patience::None).expect("it is free"));

        let (sender, receiver) = mpsc::channel();
        let waiting = thread::spawn(move || sender.send(lock(&one, far, Patience::Endless)));
        receiver.try_recv().expect_err("it waits");
        drop(other);
        assert!(receiver.recv().expect("it answers").expect("it is locked"));
        waiting.join().expect("it does not panic").expect("we listen");
    }
}
