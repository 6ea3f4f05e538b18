//! Changes to a folder, decoded from any bytes: for tests with random trees.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lremovexattr, lsetxattr, makedev,
    mknodat, utimensat,
};

/// How many bytes say one change.
const LENGTH: usize = 6;

/// Changes to what is in a folder. Any bytes are some; the same bytes are the same changes.
///
/// Names are few, so that later changes meet what earlier ones made; one is not UTF-8, one is long. All stays in the folder.
#[derive(Clone, Debug)]
pub struct Edits(Vec<[u8; LENGTH]>);

impl Edits {
    /// Changes as bytes say. What is left at the end says nothing.
    pub fn decode(bytes: &[u8]) -> Self {
        Self(bytes.as_chunks::<LENGTH>().0.to_vec())
    }

    /// Makes the changes one after the other. One that is impossible, such as a file below a file, changes nothing.
    pub fn apply(&self, root: &Path) {
        for edit in &self.0 {
            // Impossible changes are part of the game.
            let _ = change(root, edit);
        }
    }
}

fn change(root: &Path, edit: &[u8; LENGTH]) -> io::Result<()> {
    let [what, first, second, third, x, y] = *edit;
    let path = root.join(path(first, second));
    match what % 20 {
        0 | 1 => fs::create_dir(&path)?,
        2..=4 => write(&path, x, y)?,
        5 => symlink(OsStr::from_bytes(names()[usize::from(x) % 5]), &path)?,
        6 | 7 => fs::hard_link(root.join(self::path(third, x)), &path)?,
        8 => match x % 4 {
            0 => mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0)?,
            1 => mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, makedev(1, u32::from(y)))?,
            2 => mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR, makedev(7, 1000 + u32::from(y)))?,
            _ => drop(UnixListener::bind(&path)?),
        },
        9 | 10 => remove(&path)?,
        11 | 12 => fs::rename(&path, root.join(self::path(third, x)))?,
        13 => {
            let mode = (u32::from(x) << 8 | u32::from(y)) & 0o7777;
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        }
        14 => {
            let id = u32::from(x) * 20_001;
            if y % 2 == 0 { lchown(&path, Some(id), None) } else { chown(&path, None, Some(id)) }?;
        }
        15 => {
            let (name, value) =
                (["user.a", "user.b", "security.c"][usize::from(x) % 3], [y].repeat(y.into()));
            lsetxattr(&path, name, &value, XattrFlags::empty())?;
        }
        16 => lremovexattr(&path, ["user.a", "user.b", "security.c"][usize::from(x) % 3])?,
        17 => {
            let seconds = [0, -1, -31_536_000, 1_000_000_000, 10_000_000_000];
            let time = Timespec {
                tv_sec: seconds[usize::from(x) % seconds.len()],
                tv_nsec: i64::from(y) * 3_921_567,
            };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        18 => {
            // The same name, and nothing of what was in it.
            remove(&path)?;
            fs::create_dir(&path)?;
        }
        _ => {
            only_file(&path)?;
            File::options().write(true).open(&path)?.set_len(u64::from(x) * 1000)?;
        }
    }
    Ok(())
}

fn names() -> [&'static [u8]; 5] {
    const LONG: &[u8] = &[b'n'; 150];
    [b"a", b"b", b"c c", b"\xff\xfe", LONG]
}

/// A path of one to three names.
fn path(first: u8, second: u8) -> PathBuf {
    let name = |byte: u8| OsStr::from_bytes(names()[usize::from(byte) % 5]);
    let depth = 1 + usize::from(first) % 3;
    [name(first / 3), name(second), name(second / 5)].iter().take(depth).collect()
}

/// Writes a file, whatever is there: small or large, with or without holes, in place or appended.
fn write(path: &Path, x: u8, y: u8) -> io::Result<()> {
    match only_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).custom_flags(0o4000); // O_NONBLOCK
    let mut file = match x % 4 {
        0 => options.truncate(true).open(path)?,
        1 => options.append(true).open(path)?,
        _ => options.open(path)?,
    };
    let content = [y].repeat(if y.is_multiple_of(7) { 70_000 } else { y.into() });
    if x % 4 == 2 {
        // A hole, data, and a hole again.
        file.set_len(1 << 20)?;
        file.seek(SeekFrom::Start(300_000))?;
    }
    file.write_all(&content)
}

/// Whether it is a file, so that nobody opens a fifo or a device.
fn only_file(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path)?.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tree;

    #[test]
    fn any_bytes_are_changes_and_the_same_bytes_the_same_ones() {
        let bytes: Vec<u8> = (0_u32..6 * 400).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let trees = [(); 2].map(|()| {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            Edits::decode(&bytes).apply(folder.path());
            Tree::read(folder.path()).ignore_mtimes()
        });

        crate::assert_same(&trees[0], &trees[1]);
        assert!(trees[0].nodes.len() > 5, "{trees:?}");
    }
}
