//! Reading a file of credentials, and replacing it so that nobody ever sees half of one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use super::json::Malformed;
use crate::{Error, Result};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 4 << 20;
/// How many symbolic links may follow one another.
const LINKS: usize = 40;

/// Reads a file. `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unusable = |reason: String| Error::File { path: path.to_owned(), line: None, reason };
    let unreadable = |error: io::Error| unusable(format!("it cannot be read: {error}"));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > LIMIT {
        return Err(unusable(format!("it has more than {LIMIT} bytes, which is the limit for such files")));
    }
    Ok(Some(bytes))
}

/// Replaces a file by what `edit` makes of it; a missing one counts as empty. `None` leaves it as it is.
///
/// Whoever reads meanwhile sees the old file or the new one; whoever updates it this way, in any process, waits. Mode
/// and owner stay; a new file is for its owner only. If the path is a symbolic link, its target is what changes.
/// Answers whether there was a change.
pub(super) fn update(
    path: &Path,
    edit: impl FnOnce(&[u8]) -> Result<Option<Vec<u8>>, Malformed>,
) -> Result<bool> {
    let target = follow(path)?;
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let create = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    create.map_err(io_error("create", folder))?;

    let lock_path = beside(&target, "lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&lock_path);
    let lock = lock.map_err(io_error("open", &lock_path))?;
    lock.lock().map_err(io_error("lock", &lock_path))?;

    let old = read(&target)?;
    let edited = edit(old.as_deref().unwrap_or_default()).map_err(|why| unusable(path, why))?;
    let Some(new) = edited else {
        return Ok(false);
    };
    replace(&target, folder, &new)?;
    Ok(true)
}

/// Says of a file what is wrong with its contents.
pub(super) fn unusable(path: &Path, Malformed { line, reason }: Malformed) -> Error {
    Error::File { path: path.to_owned(), line, reason }
}

/// Writes a file beside the target, and renames it when it is safely there. Whoever calls holds the lock.
fn replace(target: &Path, folder: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(target, "new");
    match fs::remove_file(&temporary) {
        // Somebody died over it.
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", &temporary)(error)),
    }
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary);
    let mut file = file.map_err(io_error("create", &temporary))?;
    let written = keep_rights(&file, target).and_then(|()| {
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &temporary))?;
        fs::rename(&temporary, target).map_err(io_error("replace", target))
    });
    if written.is_err() {
        // What went wrong before is what the caller needs to know.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}

/// Gives a new file the owner and the mode of the one that it will replace.
///
/// The mode alone would not do: read permission for a group must not become one for another group.
fn keep_rights(file: &File, target: &Path) -> Result<()> {
    let old = match fs::metadata(target) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("examine", target)(error)),
    };
    let new = file.metadata().map_err(io_error("examine", target))?;
    if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid())).map_err(io_error("keep the owner of", target))?;
    }
    let mode = fs::Permissions::from_mode(old.mode() & 0o777);
    file.set_permissions(mode).map_err(io_error("keep the mode of", target))
}

/// What a symbolic link leads to in the end, whether or not that exists.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("")).join(next),
            // It is no link, or nothing at all.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(target);
            }
            Err(error) => return Err(io_error("examine", &target)(error)),
        }
    }
    Err(io_error("follow", path)(io::ErrorKind::TooManyLinks.into()))
}

/// The name of a hidden file that belongs to `path`.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}

fn io_error(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { op, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it exists").mode() & 0o777
    }

    fn put(path: &Path, text: &str) -> Result<bool> {
        update(path, |_| Ok(Some(text.into())))
    }

    #[test]
    fn a_new_file_and_its_folder_are_for_the_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("containers").join("auth.json");

        assert!(put(&path, "new").expect("it can be written"));

        assert_eq!(fs::read(&path).expect("it is there"), b"new");
        assert_eq!((mode(&path), mode(path.parent().expect("it has one"))), (0o600, 0o700));
    }

    #[test]
    fn an_old_file_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().join("dotfiles.json");
        let link = folder.path().join("config.json");
        fs::write(&real, "old").expect("it can be written");
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("it is ours");
        symlink("dotfiles.json", &link).expect("it can be linked");

        assert!(put(&link, "new").expect("it can be written"));

        assert_eq!((fs::read(&real).expect("it is there"), mode(&real)), (b"new".to_vec(), 0o640));
        assert_eq!(fs::read_link(&link).expect("it is a link still"), Path::new("dotfiles.json"));
    }

    #[test]
    fn a_link_may_lead_to_what_is_not_there_yet() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("config.json");
        symlink("sub/real.json", &link).expect("it can be linked");

        assert!(put(&link, "new").expect("it can be written"));

        assert_eq!(fs::read(folder.path().join("sub/real.json")).expect("it is there"), b"new");
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let link = folder.path().join("config.json");
        symlink("config.json", &link).expect("it can be linked");

        assert!(matches!(put(&link, "new"), Err(Error::Io { op: "follow", .. })));
    }

    #[test]
    fn what_a_writer_left_when_it_died_is_in_nobodys_way() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        fs::write(folder.path().join(".config.json.new"), "half").expect("it can be written");

        assert!(put(&path, "whole").expect("it can be written"));

        assert_eq!(fs::read(&path).expect("it is there"), b"whole");
        assert!(!folder.path().join(".config.json.new").exists());
    }

    #[test]
    fn a_refused_edit_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.json");
        fs::write(&path, "old").expect("it can be written");
        let why = || Malformed { line: Some(3), reason: "no".into() };

        assert!(!update(&path, |_| Ok(None)).expect("nothing was asked"));
        let err = update(&path, |_| Err(why())).expect_err("the edit refused");

        assert_eq!(err.to_string(), format!("cannot use {}, line 3: no", path.display()));
        assert_eq!(fs::read(&path).expect("it is there"), b"old");
    }

    #[test]
    fn a_file_that_is_too_large_or_a_folder_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let large = folder.path().join("large.json");
        File::create(&large).and_then(|file| file.set_len(LIMIT + 1)).expect("it can be written");

        for (path, reason) in
            [(large.as_path(), "more than 4194304 bytes"), (folder.path(), "cannot be read")]
        {
            let err = read(path).expect_err(reason);
            assert!(matches!(&err, Error::File { .. }) && err.to_string().contains(reason), "{err}");
        }
        assert!(read(&folder.path().join("none")).expect("it is not there").is_none());
    }
}
