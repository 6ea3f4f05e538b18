//! A disk of its own for a test: small enough to fill, and with a power switch.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::proc::require;

/// A file system in an image file, mounted over a loop device. Needs root.
///
/// It is unmounted, and its device and image are gone, when this is dropped.
#[derive(Debug)]
pub struct LoopDisk {
    /// Holds the image and the mount point.
    folder: TempDir,
    is_direct: bool,
}

impl LoopDisk {
    /// Makes an ext4 file system with a journal on a disk of `size` bytes, and mounts it. The journal takes a part of that size;
    /// 8 MiB is about the least.
    ///
    /// # Panics
    ///
    /// If it cannot be made or mounted, above all without root.
    pub fn ext4(size: u64) -> Self {
        // Without lazy initialisation nothing writes to the disk but the test. Blocks are as large as pages of memory, as on
        // disks that are not for tests: with smaller ones a full disk kills those who write to a file that they have mapped.
        Self::new(
            size,
            Command::new(require("mkfs.ext4", "e2fsprogs"))
                .args(["-q", "-F", "-m", "0", "-O", "has_journal", "-b", "4096"])
                .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"]),
        )
    }

    /// Makes a btrfs file system on a disk of `size` bytes, and mounts it. 128 MiB is about the least. It has no
    /// [power switch](Self::cut_power).
    ///
    /// # Panics
    ///
    /// If it cannot be made or mounted, above all without root.
    pub fn btrfs(size: u64) -> Self {
        Self::new(size, Command::new(require("mkfs.btrfs", "btrfs-progs")).arg("-q"))
    }

    /// The same disk, whose image is not in memory a second time: then it is as fast as one that is no image. For benches.
    ///
    /// # Panics
    ///
    /// If the temporary folder is on a file system without direct I/O.
    pub fn direct(mut self) -> Self {
        self.is_direct = true;
        self.set_direct();
        self
    }

    /// Runs `mkfs` on a new image.
    fn new(size: u64, mkfs: &mut Command) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let disk = Self { folder, is_direct: false };
        File::create(disk.image())
            .and_then(|image| image.set_len(size))
            .expect("the temporary folder has room for an image with holes");
        std::fs::create_dir(disk.path()).expect("the temporary folder is new");
        run(mkfs.arg(disk.image()));
        disk.mount();
        disk
    }

    /// The folder where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Stops the disk as a power cut does: what was not yet on it, journal included, never will be. From now on every
    /// call that needs the disk fails, until [`remount`](Self::remount).
    ///
    /// # Panics
    ///
    /// If the file system does not take the order.
    pub fn cut_power(&self) {
        // EXT4_IOC_SHUTDOWN has the number of the one of XFS. Without `-f` the journal is not written out first.
        let xfs_io = require("xfs_io", "xfsprogs");
        run(Command::new(xfs_io).args(["-x", "-c", "shutdown"]).arg(self.path()));
    }

    /// Unmounts and mounts again: after [`cut_power`](Self::cut_power) this is the next boot. Nobody may have a file on
    /// it open.
    ///
    /// # Panics
    ///
    /// If it is in use, or cannot be mounted any more.
    pub fn remount(&self) {
        run(Command::new(require("umount", "mount")).arg(self.path()));
        self.is_gone();
        self.mount();
    }

    /// Waits until nothing in the system has the disk: a process that was started in a mount namespace of its own meanwhile
    /// has a copy of the mount, and with it the disk would stay as it is, its power off.
    fn is_gone(&self) {
        let begun = std::time::Instant::now();
        loop {
            let devices = Command::new(require("losetup", "mount")).arg("-j").arg(self.image()).output();
            if devices.expect("losetup starts").stdout.is_empty() {
                return;
            }
            assert!(begun.elapsed().as_secs() < 60, "{} is still in use", self.path().display());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn mount(&self) {
        // `mount` makes the loop device, and the kernel removes it with the mount.
        run(Command::new(require("mount", "mount"))
            .args(["-o", "loop,noatime"])
            .args([self.image(), self.path()]));
        if self.is_direct {
            self.set_direct();
        }
    }

    fn set_direct(&self) {
        let losetup = require("losetup", "mount");
        let devices = Command::new(&losetup).args(["-n", "-O", "NAME", "-j"]).arg(self.image()).output();
        let device = String::from_utf8(devices.expect("losetup starts").stdout).expect("it prints text");
        run(Command::new(losetup).arg("--direct-io=on").arg(device.trim()));
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        if !is_mount_point(&self.path()).unwrap_or(true) {
            return;
        }
        // Lazily, so that a test that fails with a file open does not leave its disk behind.
        let unmounted = Command::new("umount").arg("--lazy").arg(self.path()).status();
        if !matches!(&unmounted, Ok(status) if status.success()) {
            eprintln!("{} stays mounted: {unmounted:?}", self.path().display());
        }
    }
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = path.parent().expect("a mount point is in a folder");
    Ok(path.metadata()?.dev() != parent.metadata()?.dev())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_power_cut_takes_what_was_not_synced() {
        let disk = LoopDisk::ext4(16 * MIB);
        let synced = fs::write(disk.path().join("synced"), "synced")
            .and_then(|()| File::open(disk.path().join("synced"))?.sync_all())
            .and_then(|()| File::open(disk.path())?.sync_all());
        synced.expect("the disk works");
        fs::write(disk.path().join("lost"), "lost").expect("the disk works");

        disk.cut_power();
        fs::write(disk.path().join("after"), "after").expect_err("the power is off");
        disk.remount();

        assert_eq!(fs::read_to_string(disk.path().join("synced")).expect("it was synced"), "synced");
        assert!(!disk.path().join("lost").exists(), "nothing told the disk of it");
    }

    #[test]
    fn it_can_be_filled() {
        let disk = LoopDisk::ext4(8 * MIB);
        let mut file = File::create(disk.path().join("file")).expect("the disk works");

        let err = file.write_all(&vec![7; 8 << 20]).expect_err("it is smaller than that");

        assert_eq!(err.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn btrfs_makes_snapshots_on_it() {
        let disk = LoopDisk::btrfs(128 * MIB);

        run(Command::new("btrfs").args(["subvolume", "create"]).arg(disk.path().join("subvolume")));

        assert!(disk.path().join("subvolume").is_dir());
    }

    #[test]
    fn nothing_stays_of_it_even_with_an_open_file() {
        let disk = LoopDisk::ext4(8 * MIB);
        let path = disk.path();
        let file = File::create(path.join("file")).expect("the disk works");

        drop(disk);

        assert!(!path.exists());
        drop(file);
    }
}
