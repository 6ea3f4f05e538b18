//! Starting write-back early, so that the sync of the commit is short.

use std::{
    ffi::{c_int, c_uint},
    fs::File,
    os::fd::AsRawFd,
};

/// How many bytes come together before the kernel is told to write them.
const STEP: u64 = 8 << 20;
/// Begins to write what is dirty, and waits for nothing (sync_file_range(2)).
const SYNC_FILE_RANGE_WRITE: c_uint = 2;

#[expect(unsafe_code, reason = "rustix does not have this call")]
unsafe extern "C" {
    /// The C library's, whose offsets have 64 bits on every Linux.
    safe fn sync_file_range(file: c_int, offset: i64, bytes: i64, flags: c_uint) -> c_int;
}

/// How much of a file the kernel was told to write.
#[derive(Debug, Default)]
pub(crate) struct WriteBack {
    until: u64,
}

impl WriteBack {
    /// Takes note that the first `written` bytes of the file are there. It is a hint: a file system without such a thing refuses,
    /// and the sync of the commit does, and reports, it all.
    pub(crate) fn advance(&mut self, file: &File, written: u64) {
        let length = written.saturating_sub(self.until);
        if length >= STEP {
            let (from, length) = (self.until.cast_signed(), length.cast_signed());
            sync_file_range(file.as_raw_fd(), from, length, SYNC_FILE_RANGE_WRITE);
            self.until = written;
        }
    }
}
