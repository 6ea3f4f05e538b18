//! Goes through the upper tree, beside the lower one, and writes what differs.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Timespec, openat, statat},
    io::Errno,
};
use tar::EntryType;

use super::{
    Options,
    archive::{Archive, Entry},
    changed, content, failed, joined,
    links::Links,
    listing::{Listing, Marks},
    node::{Node, Nodes},
    refused_by_output,
    track::{Id, Track, id},
};
use crate::{Result, apply::refused};

/// What of the walk does not change on its way.
pub(super) struct Walk<'a, W> {
    options: &'a Options,
    /// Whether the upper tree holds changes alone, as overlayfs writes them.
    is_overlay: bool,
    latest: Option<Timespec>,
    archive: Archive<W>,
    upper: Track,
    lower: Option<Track>,
    links: Option<[Links; 2]>,
    nodes: Nodes,
    lower_nodes: Nodes,
    levels: Vec<Level>,
    /// The first name of each file that has several, as it was written.
    first_names: HashMap<Id, Vec<u8>>,
    /// Whether a file with several names differs.
    verdicts: HashMap<Id, bool>,
    skipped: Vec<PathBuf>,
    buffer: Vec<u8>,
}

/// A folder that the walk is in.
struct Level {
    path: Vec<u8>,
    lower: Lower,
    /// Whether the folder shows all that there is: what only the lower one has is gone.
    is_complete: bool,
    /// The folder itself, until it is written.
    unwritten: Option<Node>,
    names: std::vec::IntoIter<CString>,
}

/// What the lower tree has in the place of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lower {
    /// A folder, which is the innermost of the lower track.
    Folder,
    /// No folder.
    Nothing,
    /// Nobody knows: there is no lower tree to look at.
    Unknown,
}

impl<'a, W: Write> Walk<'a, W> {
    pub(super) fn new(
        upper: &OwnedFd,
        lower: Option<&OwnedFd>,
        archive: Archive<W>,
        options: &'a Options,
    ) -> Result<Self> {
        let opaque = options.whiteouts.opaque();
        let prefix = opaque.map(|name| name.trim_end_matches("opaque").as_bytes().to_vec());
        let links = match (opaque, lower) {
            (None, Some(lower)) => Some([Links::of(upper)?, Links::of(lower)?]),
            _ => None,
        };
        Ok(Self {
            options,
            is_overlay: opaque.is_some(),
            latest: options.latest_timespec(),
            archive,
            upper: Track::new(upper)?,
            lower: lower.map(Track::new).transpose()?,
            links,
            nodes: Nodes::new(prefix),
            lower_nodes: Nodes::new(None),
            levels: Vec::new(),
            first_names: HashMap::new(),
            verdicts: HashMap::new(),
            skipped: Vec::new(),
            buffer: vec![0; content::CHUNK],
        })
    }

    /// Walks, and gives the archive, which is not ended yet, and what was left out.
    pub(super) fn run(mut self) -> Result<(Archive<W>, Vec<PathBuf>)> {
        let root = self.nodes.of(self.upper.top(), Path::new("/"))?;
        let (below, like) = match &self.lower {
            Some(lower) => (Lower::Folder, root.is_like(&self.lower_nodes.of(lower.top(), Path::new("/"))?)),
            None if self.is_overlay => (Lower::Unknown, false),
            None => (Lower::Nothing, false),
        };
        self.enter(Vec::new(), root, below, !self.is_overlay, !like)?;
        while let Some(level) = self.levels.last_mut() {
            match level.names.next() {
                Some(name) => self.visit(&name)?,
                None => self.leave()?,
            }
        }
        Ok((self.archive, self.skipped))
    }

    /// Begins a folder, which is the innermost of the upper track already.
    fn enter(
        &mut self,
        path: Vec<u8>,
        node: Node,
        lower: Lower,
        is_complete: bool,
        differs: bool,
    ) -> Result<()> {
        let shown = shown(&path).to_owned();
        let opaque = node.mark("opaque").map(<[u8]>::to_vec);
        if node.mark("redirect").is_some() {
            let reason = "its folder was renamed by an overlay mount with redirect_dir=on, and its files are elsewhere: mount \
                overlays with redirect_dir=off, or copy it";
            return Err(refused(&shown, reason));
        }
        let marks = match (self.is_overlay, opaque.as_deref()) {
            (false, _) => Marks::None,
            (true, Some(b"x")) => Marks::DevicesAndFiles,
            (true, _) => Marks::Devices,
        };
        let is_opaque = opaque.as_deref() == Some(b"y");
        let is_complete = is_complete || is_opaque;
        let listing = Listing::read(&self.upper, marks, &mut self.nodes, &shown)?;
        let gone = self.gone(&listing, lower, is_complete, &shown)?;
        self.skipped
            .extend(listing.sockets.iter().map(|name| shown.join(OsStr::from_bytes(name.to_bytes()))));
        self.levels.push(Level {
            path,
            lower,
            is_complete,
            unwritten: Some(node),
            names: listing.names.into_iter(),
        });
        if differs {
            self.write_folders()?;
        }
        if is_opaque && lower == Lower::Unknown {
            self.write_whiteout(c".wh..opq")?;
        }
        for name in gone {
            self.write_whiteout(&name)?;
        }
        Ok(())
    }

    /// What the lower folder has and the upper one hides. Where nobody knows what is below, all that may hide something.
    fn gone(&self, listing: &Listing, lower: Lower, is_complete: bool, path: &Path) -> Result<Vec<CString>> {
        let Listing { names, hidden, sockets } = listing;
        let track = match (lower, &self.lower) {
            (Lower::Folder, Some(track)) => track,
            (Lower::Unknown, _) => {
                let mut all: Vec<_> = hidden.iter().chain(sockets).cloned().collect();
                all.sort_unstable();
                return Ok(all);
            }
            _ => return Ok(Vec::new()),
        };
        if is_complete {
            let there = track.names().map_err(failed("list below", path))?.into_iter();
            return Ok(there.map(|(name, _)| name).filter(|it| names.binary_search(it).is_err()).collect());
        }
        let mut gone = Vec::new();
        for name in hidden.iter().chain(sockets) {
            match statat(track.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => gone.push(name.clone()),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed("look at", path)(errno)),
            }
        }
        gone.sort_unstable();
        Ok(gone)
    }

    /// Ends a folder.
    fn leave(&mut self) -> Result<()> {
        let level = self.levels.pop().expect("the walk is in it");
        self.upper.pop();
        self.upper.settle()?;
        if level.lower == Lower::Folder
            && let Some(lower) = &mut self.lower
        {
            lower.pop();
            lower.settle()?;
        }
        Ok(())
    }

    fn visit(&mut self, name: &CStr) -> Result<()> {
        let level = self.levels.last().expect("the walk is in a folder");
        let path = joined(&level.path, name);
        let shown = shown(&path).to_owned();
        let stat = statat(self.upper.top(), name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| gone_or("look at", &shown)(errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.visit_folder(name, path, &shown),
            FileType::RegularFile => self.visit_file(name, path, &shown),
            _ => {
                let node = self.nodes.at(self.upper.top(), name, &shown)?;
                if self.differs(name, &node, None, &path, &shown)? {
                    self.write_folders()?;
                    self.write(&node, path)?;
                }
                Ok(())
            }
        }
    }

    fn visit_folder(&mut self, name: &CStr, path: Vec<u8>, shown: &Path) -> Result<()> {
        let level = self.levels.last().expect("the walk is in a folder");
        let is_complete = level.is_complete;
        let (mut below, mut differs) = (level.lower, true);
        let folder = self.upper.open(name).map_err(gone_or("open", shown))?;
        let node = self.nodes.of(folder.as_fd(), shown)?;
        if let (Lower::Folder, Some(lower)) = (below, &mut self.lower) {
            match lower.open(name) {
                Ok(folder) => {
                    let other = self.lower_nodes.of(folder.as_fd(), shown)?;
                    differs = !node.is_like(&other);
                    lower.push(name, folder, &other.stat);
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => below = Lower::Nothing,
                Err(errno) => return Err(failed("open below", shown)(errno)),
            }
        }
        self.upper.push(name, folder, &node.stat);
        self.enter(path, node, below, is_complete, differs)
    }

    fn visit_file(&mut self, name: &CStr, path: Vec<u8>, shown: &Path) -> Result<()> {
        let file = open_file(&self.upper, name).map_err(gone_or("open", shown))?;
        let node = self.nodes.of(file.as_fd(), shown)?;
        if node.kind != FileType::RegularFile {
            return Err(changed(shown));
        }
        if let Some(reason) = ["metacopy", "nlink"].iter().find_map(|mark| node.mark(mark).map(|_| *mark)) {
            let reason = match reason {
                "metacopy" => {
                    "an overlay mount with metacopy=on has not copied its content: mount with metacopy=off"
                }
                _ => "an overlay mount with index=on keeps other names of it elsewhere: mount with index=off",
            };
            return Err(refused(shown, reason));
        }
        if self.differs(name, &node, Some(&file), &path, shown)? {
            self.write_folders()?;
            self.write_file(&node, &file, path, shown)?;
        }
        Ok(())
    }

    /// Whether the lower tree has something else than `node` there. In an overlay's upper folder everything counts as changed: that
    /// is why it is there, and a copy that looks the same is a file of its own, no longer one with its lower names.
    fn differs(
        &mut self,
        name: &CStr,
        node: &Node,
        file: Option<&File>,
        path: &Vec<u8>,
        shown: &Path,
    ) -> Result<bool> {
        let level = self.levels.last().expect("the walk is in a folder");
        let (Lower::Folder, Some(track), false) = (level.lower, &self.lower, self.is_overlay) else {
            return Ok(true);
        };
        let has_names = node.stat.st_nlink > 1;
        if let Some(verdict) = self.verdicts.get(&id(&node.stat)).filter(|_| has_names) {
            return Ok(*verdict);
        }
        let other = match statat(track.top(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Some(self.lower_nodes.at(track.top(), name, shown)?),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed("look below at", shown)(errno)),
        };
        let is_same = match (&other, &self.links) {
            (Some(other), Some([here, below])) => {
                node.is_like(other)
                    && here.names(&node.stat, path) == below.names(&other.stat, path)
                    && match file {
                        Some(file) if !self.options.trust_times => {
                            let lower = open_file(track, name).map_err(failed("open below", shown))?;
                            content::is_same(file, &lower, &mut self.buffer, shown)?
                        }
                        _ => true,
                    }
            }
            _ => false,
        };
        if has_names {
            self.verdicts.insert(id(&node.stat), !is_same);
        }
        Ok(!is_same)
    }

    /// Writes the folders that the walk is in, if they are not yet: no reader has to guess what they are.
    fn write_folders(&mut self) -> Result<()> {
        for level in &mut self.levels {
            let Some(node) = level.unwritten.take() else { continue };
            let path = if level.path.is_empty() { b"./".to_vec() } else { [&level.path[..], b"/"].concat() };
            self.archive.entry(&node.entry(&path, self.latest)).map_err(refused_by_output)?;
        }
        Ok(())
    }

    fn write_whiteout(&mut self, name: &CStr) -> Result<()> {
        self.write_folders()?;
        let folder = &self.levels.last().expect("the walk is in a folder").path;
        let mut path = folder.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(b".wh.");
        path.extend_from_slice(name.to_bytes());
        self.archive.entry(&Entry::new(&path, EntryType::Regular)).map_err(refused_by_output)
    }

    /// Writes what has no content.
    fn write(&mut self, node: &Node, path: Vec<u8>) -> Result<()> {
        if self.write_link(node, &path)? {
            return Ok(());
        }
        self.archive.entry(&node.entry(&path, self.latest)).map_err(refused_by_output)?;
        self.remember(node, path);
        Ok(())
    }

    fn write_file(&mut self, node: &Node, file: &File, path: Vec<u8>, shown: &Path) -> Result<()> {
        if self.write_link(node, &path)? {
            return Ok(());
        }
        let pieces = content::pieces(file, &node.stat, shown)?;
        let entry = Entry { pieces: pieces.as_deref(), ..node.entry(&path, self.latest) };
        self.archive.entry(&entry).map_err(refused_by_output)?;
        content::copy(file, &node.stat, pieces.as_deref(), &mut self.archive, &mut self.buffer, shown)?;
        self.remember(node, path);
        Ok(())
    }

    /// Writes a further name of a file that was written. Returns whether it is one.
    fn write_link(&mut self, node: &Node, path: &[u8]) -> Result<bool> {
        let first = self.first_names.get(&id(&node.stat)).filter(|_| node.stat.st_nlink > 1);
        let Some(first) = first else { return Ok(false) };
        let entry = node.entry(path, self.latest);
        let entry =
            Entry { kind: EntryType::Link, link: first, xattrs: &[], size: 0, device: (0, 0), ..entry };
        self.archive.entry(&entry).map_err(refused_by_output)?;
        Ok(true)
    }

    fn remember(&mut self, node: &Node, path: Vec<u8>) {
        if node.stat.st_nlink > 1 {
            self.first_names.insert(id(&node.stat), path);
        }
    }
}

/// Opens a regular file. Should it have become a fifo meanwhile, nobody waits for its writer.
fn open_file(track: &Track, name: &CStr) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(track.top(), name, flags, Mode::empty()).map(File::from)
}

fn shown(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// What was listed a moment ago is gone or something else only if somebody changed it.
fn gone_or(op: &'static str, path: &Path) -> impl FnOnce(Errno) -> crate::Error {
    move |errno| match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => changed(path),
        errno => failed(op, path)(errno),
    }
}
