//! What a layer has made so far, folder by folder. Paths in here are real ones: no links are in them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use rustix::fs::{Stat, Timespec, Timestamps};

/// Where a folder is in [`Made`].
pub(super) type Id = usize;
/// The root.
pub(super) const ROOT: Id = 0;

/// All folders that the layer made or went through.
#[derive(Debug)]
pub(super) struct Made {
    /// Those that are gone again, too.
    folders: Vec<Folder>,
    /// All hard links whose targets are in a layer below, whatever has become of them: name and target.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// Lower files that were gone through like folders, where a hard link is to be made to them.
    pub(super) through: BTreeSet<PathBuf>,
}

/// One folder, and what the layer made in it.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) above: Id,
    pub(super) name: OsString,
    /// The folders in it that the layer made or went through.
    pub(super) folders: HashMap<OsString, Id>,
    /// What else the layer made in it. Only noted where whiteouts remove things.
    pub(super) others: HashSet<OsString>,
    /// The whiteouts that were written into it.
    pub(super) whiteouts: HashSet<OsString>,
    /// Hard links whose targets are in a layer below, by name. Nothing is there yet.
    pub(super) links: HashMap<OsString, PathBuf>,
    /// It was there before the layer.
    pub(super) existed: bool,
    /// The layer has an entry for it.
    pub(super) declared: bool,
    /// Nothing of the layer was there, and a layer below could show a link here, which would lead elsewhere.
    pub(super) guessed: bool,
    /// It is in the layer, or something in it is. Else it was only gone through, or made for a whiteout.
    pub(super) real: bool,
    /// What the layer hides of it.
    pub(super) hides: Hides,
    /// Whiteouts have taken away all that the layers below had in it.
    pub(super) cleared: bool,
    /// What it gets in the end.
    pub(super) last: Option<Last>,
    /// What the kernel gives to what is made in it.
    pub(super) gives: Gives,
}

/// What of the layers below is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hides {
    #[default]
    Nothing,
    /// All that is in the folder.
    Content,
    /// The folder, and all that is in it.
    Itself,
}

/// What a folder gets when nothing more is made in it.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) times: Timestamps,
    /// Its mode, where it has another meanwhile.
    pub(super) mode: Option<u32>,
    /// The ACL of what will be made in it: what the layer makes must not get it.
    pub(super) default_acl: Option<Vec<u8>>,
    /// Its owner and attributes are those of a layer that is hidden.
    pub(super) reset: bool,
}

/// What files and folders get from the folder that they are made in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gives {
    /// The folder's own group.
    pub(super) group: u32,
    /// They get that group, and folders the set-group-id bit.
    pub(super) set_group: bool,
    /// They get an ACL.
    pub(super) acl: bool,
}

/// The beginning of time.
pub(super) const EPOCH: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 0, tv_nsec: 0 },
};

impl Last {
    pub(super) fn at(times: Timestamps) -> Self {
        Self { times, mode: None, default_acl: None, reset: false }
    }
}

impl Made {
    /// Nothing but the root is known.
    pub(super) fn new(gives: Gives) -> Self {
        let folders = vec![Folder::found(ROOT, OsStr::new(""), gives)];
        Self { folders, links: Vec::new(), through: BTreeSet::new() }
    }

    pub(super) fn at(&self, id: Id) -> &Folder {
        &self.folders[id]
    }

    pub(super) fn at_mut(&mut self, id: Id) -> &mut Folder {
        &mut self.folders[id]
    }

    pub(super) fn add(&mut self, folder: Folder) -> Id {
        let id = self.folders.len();
        self.folders[folder.above].folders.insert(folder.name.clone(), id);
        self.folders.push(folder);
        id
    }

    /// Forgets whatever has a name in a folder.
    pub(super) fn forget(&mut self, above: Id, name: &OsStr) {
        let above = &mut self.folders[above];
        above.folders.remove(name);
        above.others.remove(name);
        above.whiteouts.remove(name);
        above.links.remove(name);
    }

    /// Notes that a folder is in the layer.
    pub(super) fn keep(&mut self, id: Id) {
        let mut id = id;
        while !std::mem::replace(&mut self.folders[id].real, true) {
            id = self.folders[id].above;
        }
    }

    /// A folder of the layers below that the layer does not declare is hidden: nothing of it stays but what the layer has in it.
    /// Gives whether it is such a folder.
    pub(super) fn reset(&mut self, id: Id) -> bool {
        let folder = &mut self.folders[id];
        let is_lower = folder.existed && !folder.declared;
        if is_lower {
            folder.last = Some(Last { reset: true, mode: Some(0o755), ..Last::at(EPOCH) });
        }
        is_lower
    }

    /// Whether nothing of the layers below is seen in a folder.
    pub(super) fn is_hidden_in(&self, id: Id) -> bool {
        let hides = |id: Id| self.folders[id].hides != Hides::Nothing;
        hides(ROOT) || self.line(id).into_iter().any(hides)
    }

    /// A folder and those above it, without the root, highest first.
    pub(super) fn line(&self, id: Id) -> Vec<Id> {
        let mut line = Vec::new();
        let mut id = id;
        while id != ROOT {
            line.push(id);
            id = self.folders[id].above;
        }
        line.reverse();
        line
    }

    /// Where a folder is, relative to the root.
    pub(super) fn path(&self, id: Id) -> PathBuf {
        self.line(id).into_iter().map(|id| &self.folders[id].name).collect()
    }

    /// Whether anything must be no link in the layers below.
    pub(super) fn has_guesses(&self) -> bool {
        !self.through.is_empty() || self.folders.iter().any(|folder| folder.guessed)
    }

    /// What must be no link in the layers below, in order.
    pub(super) fn guesses(&self) -> Vec<PathBuf> {
        let guessed = (0..self.folders.len()).filter(|id| self.folders[*id].guessed);
        let mut paths: Vec<_> = guessed.map(|id| self.path(id)).chain(self.through.iter().cloned()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// All folders that are still there, each before those in it.
    pub(super) fn all(&self) -> Vec<Id> {
        let mut all = Vec::new();
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            all.push(id);
            open.extend(self.folders[id].folders.values());
        }
        all
    }
}

impl Folder {
    /// A folder that the layer makes.
    pub(super) fn made(above: Id, name: &OsStr, group: u32) -> Self {
        let last = Some(Last::at(EPOCH));
        let gives = Gives { group, ..Gives::default() };
        Self { existed: false, last, ..Self::found(above, name, gives) }
    }

    /// A folder that was there.
    pub(super) fn found(above: Id, name: &OsStr, gives: Gives) -> Self {
        Self {
            above,
            name: name.to_owned(),
            folders: HashMap::new(),
            others: HashSet::new(),
            whiteouts: HashSet::new(),
            links: HashMap::new(),
            existed: true,
            declared: false,
            guessed: false,
            real: false,
            hides: Hides::Nothing,
            cleared: false,
            last: None,
            gives,
        }
    }
}

/// The times of a file, as they are set.
pub(super) fn times_of(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec { tv_sec, tv_nsec: nanoseconds as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
