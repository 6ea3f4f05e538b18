use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use super::write::Sink;

/// A folder that was empty.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    file: Option<File>,
}

impl Folder {
    /// Makes a folder, unless it is there and empty.
    pub(super) fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        match fs::read_dir(&path)?.next() {
            None => Ok(Self { path, file: None }),
            Some(_) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
        }
    }

    fn file(&mut self) -> &mut File {
        self.file.as_mut().expect("bytes come after the file was begun")
    }
}

impl Write for Folder {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

impl Sink for Folder {
    fn folder(&mut self, name: &str) -> io::Result<()> {
        fs::create_dir(self.path.join(name))
    }

    fn begin(&mut self, name: &str, _size: u64) -> io::Result<()> {
        self.file = Some(File::create_new(self.path.join(name))?);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.file = None;
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}
