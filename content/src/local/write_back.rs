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
pub(super) struct WriteBack {
    until: u64,
}

impl WriteBack {
    /// Takes note that the first `written` bytes of the file are there.
    ///
    /// It is a hint: a file system without such a thing refuses, and the sync of the commit does, and reports, it all.
    pub(super) fn advance(&mut self, file: &File, written: u64) {
        let length = written.saturating_sub(self.until);
        if length >= STEP {
            sync_file_range(
                file.as_raw_fd(),
                self.until.cast_signed(),
                length.cast_signed(),
                SYNC_FILE_RANGE_WRITE,
            );
            self.until = written;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_kernel_is_told_of_whole_steps_and_of_each_byte_once() {
        let mut file = tempfile::tempfile().expect("there is room");
        file.write_all(&vec![7; 20 << 20]).expect("there is room");
        let mut write_back = WriteBack::default();

        let until: Vec<_> = [1, STEP - 1, STEP, STEP + 1, 2 * STEP + 5, 2 * STEP + 6]
            .into_iter()
            .map(|written| {
                write_back.advance(&file, written);
                write_back.until
            })
            .collect();

        assert_eq!(until, [0, 0, STEP, STEP, 2 * STEP + 5, 2 * STEP + 5]);
        assert_eq!(
            sync_file_range(file.as_raw_fd(), 0, 0, SYNC_FILE_RANGE_WRITE),
            0,
            "the kernel knows this call"
        );
    }
}
