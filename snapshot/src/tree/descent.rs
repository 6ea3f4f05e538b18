use std::{
    ffi::CStr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{fs::fstat, io::Errno};

use super::open_folder;

/// How many handles a descent keeps open.
const KEPT: usize = 16;

/// A way down into a tree and up again, at any depth with a fixed number of open handles.
///
/// The handles of the folders far above are closed, and opened again through `..` on the way up. A folder that was moved away
/// meanwhile is noticed: what is above it is then another than the one that was left, and nothing outside the tree is ever
/// reached.
#[derive(Debug)]
pub(crate) struct Descent {
    /// The topmost first. The handle of the last one is always open.
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    folder: Option<OwnedFd>,
    id: (u64, u64),
}

impl Descent {
    /// Begins at the top of a tree.
    pub(crate) fn new(top: OwnedFd) -> rustix::io::Result<Self> {
        Ok(Self { levels: vec![Level { id: id(&top)?, folder: Some(top) }] })
    }

    /// The folder where we are.
    pub(crate) fn here(&self) -> BorrowedFd<'_> {
        let last = self.levels.last().and_then(|level| level.folder.as_ref());
        last.expect("the handle of the last level is open").as_fd()
    }

    /// Goes down into a folder, not through a link.
    pub(crate) fn enter(&mut self, name: &CStr) -> rustix::io::Result<()> {
        let folder = open_folder(self.here(), name)?;
        let id = id(&folder)?;
        self.levels.push(Level { folder: Some(folder), id });
        if let Some(far) = self.levels.len().checked_sub(KEPT + 1) {
            self.levels[far].folder = None;
        }
        Ok(())
    }

    /// Goes up again.
    ///
    /// # Errors
    ///
    /// [`Errno::STALE`] if the folder was moved to somewhere else meanwhile.
    pub(crate) fn leave(&mut self) -> rustix::io::Result<()> {
        let left = self.levels.pop().and_then(|level| level.folder).expect("the last level is open");
        let above = self.levels.last_mut().expect("nobody leaves the top");
        if above.folder.is_none() {
            let folder = open_folder(&left, "..")?;
            if id(&folder)? != above.id {
                return Err(Errno::STALE);
            }
            above.folder = Some(folder);
        }
        Ok(())
    }
}

fn id(folder: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let stat = fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::{ffi::CString, fs};

    use rustix::fs::{CWD, Mode, mkdirat};

    use super::*;

    #[test]
    fn a_folder_that_is_moved_away_meanwhile_leads_nowhere_else() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("tree")).expect("a folder");
        fs::create_dir(dir.path().join("outside")).expect("a folder");
        let top = open_folder(CWD, dir.path().join("tree")).expect("it is there");
        let mut descent = Descent::new(top).expect("it is open");
        let name = CString::new("d").expect("it holds no zero");
        for _ in 0..=KEPT {
            mkdirat(descent.here(), &name, Mode::RWXU).expect("it is new");
            descent.enter(&name).expect("it is a folder");
        }

        fs::rename(dir.path().join("tree/d"), dir.path().join("outside/d")).expect("moved away");
        let left = (0..=KEPT).try_for_each(|_| descent.leave());

        assert_eq!(left, Err(Errno::STALE));
    }

    #[test]
    fn links_are_not_entered() {
        let dir = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::symlink("/", dir.path().join("link")).expect("a link");
        let mut descent =
            Descent::new(open_folder(CWD, dir.path()).expect("it is there")).expect("it is open");

        let entered = descent.enter(c"link");

        assert!(matches!(entered, Err(Errno::NOTDIR | Errno::LOOP)), "{entered:?}");
    }
}
