//! The tar that an index is of.

use std::{
    fs::File,
    io::{self, Write},
};

use crate::sync_range::WriteBack;

/// Writes a tar as it comes, for an index ([`Writer::index`](super::Writer::index)).
#[derive(Debug)]
pub struct TarFile {
    file: File,
    length: u64,
    write_back: WriteBack,
}

impl TarFile {
    /// Begins in a file, which is emptied first.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub fn new(file: File) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self { file, length: 0, write_back: WriteBack::default() })
    }

    /// Writes what comes next. Large pieces are good: each is a call of the system.
    ///
    /// # Errors
    ///
    /// What the system answers; the file is then to be thrown away.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        self.write_back.advance(&self.file, self.length);
        Ok(())
    }

    /// How long it is, in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
}
