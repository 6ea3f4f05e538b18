//! Loop devices, for kernels before 6.12, which mount no file.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use super::Mount;
use crate::sys;

/// The mount with loop devices in the place of its files. They are free again once nothing has them open: keep these until it
/// is mounted.
pub(super) fn attached(one: &Mount) -> io::Result<(Mount, Vec<File>)> {
    let mut devices = Vec::new();
    let mut attach = |path: &Path| -> io::Result<PathBuf> {
        let (device, name) = device_of(path)?;
        devices.push(device);
        Ok(name)
    };
    let source = attach(&one.source)?;
    let mut options = Vec::new();
    for option in &one.options {
        options.push(match option.strip_prefix("device=") {
            Some(path) => format!("device={}", attach(path.as_ref())?.display()),
            None => option.clone(),
        });
    }
    Ok((Mount { fstype: one.fstype.clone(), source, options }, devices))
}

/// A read-only loop device that shows a file.
fn device_of(path: &Path) -> io::Result<(File, PathBuf)> {
    let file = File::open(path)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control").map_err(|err| {
        io::Error::new(
            err.kind(),
            format!("/dev/loop-control: {err}: before Linux 6.12, an image is mounted through a loop device"),
        )
    })?;
    loop {
        let name = PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(control.as_fd())?));
        let device = File::open(&name)?;
        match sys::configure_loop_device(device.as_fd(), file.as_raw_fd().unsigned_abs()) {
            Ok(()) => return Ok((device, name)),
            // Somebody else took it.
            Err(Errno::BUSY) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::fs::FileExt};

    use super::*;

    #[test]
    fn a_loop_device_shows_a_file_and_cannot_be_written() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        file.as_file().write_all_at(&[7; 8192], 0).expect("there is room");
        let one = super::super::images::erofs(&file.path().display().to_string(), []);

        let (mount, _devices) = attached(&one).expect("root may use loop devices");

        let mut shown = Vec::new();
        File::open(&mount.source)
            .and_then(|mut device| device.read_to_end(&mut shown))
            .expect("it can be read");
        assert_eq!(shown, [7; 8192]);
        let written =
            File::options().write(true).open(&mount.source).and_then(|device| device.write_at(b"x", 0));
        assert!(written.is_err());
    }
}
