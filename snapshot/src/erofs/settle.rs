//! What a layer that was written alone takes from the layers below, once these are known.
//!
//! Whoever writes the layer leaves marks in its tree: attributes that no layer can bring, since `trusted.` is refused from layers.

use std::{
    collections::HashMap,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{
    paths::{names_of, split},
    tree::{Kind, Meta, Node, OPAQUE, Tree},
};

/// Marks a folder that the layer does not declare: it is made like the lower one of that path.
pub const IMPLIED: &[u8] = b"trusted.windlass.implied";
/// Marks what stands for a hard link to a file that is not in the layer. Its value is the target's path.
pub const LINK: &[u8] = b"trusted.windlass.link";

/// An entry of a layer that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its path.
    pub entry: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// The paths that have marks.
#[derive(Debug, Default)]
struct Marks {
    implied: Vec<Vec<u8>>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    whiteouts: Vec<Vec<u8>>,
}

impl Marks {
    fn of(layer: &Tree) -> Self {
        let mut marks = Self::default();
        let mut open = vec![(layer.root(), Vec::new())];
        while let Some((folder, path)) = open.pop() {
            for (name, child) in layer.children(folder) {
                let path = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                if layer.is_whiteout(child) {
                    marks.whiteouts.push(path);
                } else if layer.is_folder(child) {
                    if layer.marked(child, IMPLIED).is_some() {
                        marks.implied.push(path.clone());
                    }
                    open.push((child, path));
                } else if let Some(target) = layer.marked(child, LINK) {
                    marks.links.push((path, target));
                }
            }
        }
        // Parents before children, and the same order whatever the order of the tree is.
        marks.implied.sort();
        marks.links.sort();
        marks
    }
}

impl Tree {
    /// Whether the layer takes nothing from below, and hides nothing.
    pub(super) fn is_settled(&self) -> bool {
        let marks = Marks::of(self);
        let root = [OPAQUE, IMPLIED].iter().any(|mark| self.marked(self.root(), mark).is_some());
        !root && marks.implied.is_empty() && marks.links.is_empty() && marks.whiteouts.is_empty()
    }

    /// The first path that was taken for a folder, and is a link.
    pub(super) fn link_among<'a>(&self, folders: &'a [PathBuf]) -> Option<&'a Path> {
        let is_link = |path: &&PathBuf| {
            let there = self.at(path.as_os_str().as_bytes());
            there.is_some_and(|there| self.target(there).is_some())
        };
        folders.iter().find(is_link).map(PathBuf::as_path)
    }

    /// Gives a layer what it takes from below, and takes the marks away. `lower` is the merged tree of the layers below; `None`
    /// for the lowest layer. `targets` are hard links to what is there, those that the layer has replaced itself, too. Files that were
    /// copied from there keep the place of their data.
    ///
    /// # Errors
    ///
    /// The entry that cannot be.
    pub(super) fn settle(
        &mut self,
        lower: Option<&Self>,
        targets: &[(PathBuf, PathBuf)],
    ) -> Result<(), Refused> {
        let marks = Marks::of(self);
        let opaque_root = self.marked(self.root(), OPAQUE).is_some();
        for (path, target) in targets {
            let (path, target) = (path.as_os_str().as_bytes(), target.as_os_str().as_bytes());
            target_of(path, target, lower)?;
        }
        let mut copies = HashMap::new();
        for (path, target) in &marks.links {
            self.settle_link(path, target, lower, &mut copies)?;
        }
        if let Some(lower) = lower
            && opaque_root
        {
            self.hide_all(lower)?;
        }
        for path in &marks.whiteouts {
            self.settle_whiteout(path, lower);
        }
        // Inner ones first.
        for path in marks.implied.iter().rev() {
            self.settle_folder(path, lower);
        }
        let undeclared_root = self.marked(self.root(), IMPLIED).is_some();
        self.mark(self.root(), IMPLIED, None);
        self.mark(self.root(), OPAQUE, None);
        if let Some(lower) = lower {
            self.put_over(lower, &copies, opaque_root)?;
            if undeclared_root {
                self.inherit(lower, lower.root(), self.root());
            }
        }
        Ok(())
    }

    /// Writes a whiteout for each lower name in the root that the layer does not have: overlayfs takes no root for opaque.
    fn hide_all(&mut self, lower: &Self) -> Result<(), Refused> {
        for (name, _) in lower.children(lower.root()) {
            match self.child(self.root(), name) {
                Some(kept) if self.is_folder(kept) => self.mark(kept, OPAQUE, Some(b"y")),
                Some(_) => {}
                None => {
                    let put = self.put(self.root(), name, Meta::default(), Kind::Char(0, 0));
                    put.map_err(|reason| refused(name, reason))?;
                }
            }
        }
        Ok(())
    }

    /// Makes a hard link to a file of the layers below: a copy of it.
    fn settle_link(
        &mut self,
        path: &[u8],
        target: &[u8],
        lower: Option<&Self>,
        copies: &mut HashMap<Node, Node>,
    ) -> Result<(), Refused> {
        let (lower, found) = target_of(path, target, lower)?;
        let (folder, name) = split(path);
        let folder = self.real(names_of(folder)).expect("the link was found there");
        if let Some(copy) = copies.get(&found) {
            return self.link(folder, name, *copy).map_err(|reason| refused(path, reason));
        }
        let copy = self.copy(lower, found, (folder, name), [0, 1]).map_err(|reason| refused(path, reason))?;
        copies.insert(found, copy);
        Ok(())
    }

    /// Links the copies of lower files to all names of these that the layer shows.
    fn put_over(
        &mut self,
        lower: &Self,
        copies: &HashMap<Node, Node>,
        opaque_root: bool,
    ) -> Result<(), Refused> {
        if copies.is_empty() {
            return Ok(());
        }
        let mut open = vec![lower.root()];
        while let Some(folder) = open.pop() {
            for (name, child) in lower.children(folder) {
                if lower.is_folder(child) {
                    open.push(child);
                } else if let Some(copy) = copies.get(&child) {
                    let above = lower.path(folder);
                    let above: Vec<_> = names_of(&above).map(<[u8]>::to_vec).collect();
                    if let Some(over) = self.folder_like_below(lower, &above, opaque_root, name)?
                        // Else the layer has something else there, which came later.
                        && self.child(over, name).is_none()
                    {
                        self.link(over, name, *copy).map_err(|reason| refused(name, reason))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A folder of the layer; what is missing of it is made as it is below. `None` where the layer hides the one below.
    fn folder_like_below(
        &mut self,
        lower: &Self,
        names: &[Vec<u8>],
        opaque_root: bool,
        entry: &[u8],
    ) -> Result<Option<Node>, Refused> {
        let mut here = self.root();
        for (depth, name) in names.iter().enumerate() {
            if depth == 0 && opaque_root {
                return Ok(None);
            }
            here = match self.child(here, name) {
                None => self.make_like_below(lower, here, &names[..=depth], entry)?,
                Some(inner) if self.is_folder(inner) && self.marked(inner, OPAQUE).is_none() => inner,
                Some(_) => return Ok(None),
            };
        }
        Ok(Some(here))
    }

    /// Makes a folder as it is below; as nobody's where there is none.
    fn make_like_below(
        &mut self,
        lower: &Self,
        here: Node,
        names: &[Vec<u8>],
        entry: &[u8],
    ) -> Result<Node, Refused> {
        let name = names.last().expect("the root is there");
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let made = self.put(here, name, meta, Kind::Folder).map_err(|reason| refused(entry, reason))?;
        if let Some(below) = lower.real(names.iter().map(Vec::as_slice)) {
            self.inherit(lower, below, made);
        }
        Ok(made)
    }

    /// Overlayfs lists a whiteout in a folder that it does not merge: where it hides nothing, it is taken away.
    fn settle_whiteout(&mut self, path: &[u8], lower: Option<&Self>) {
        let (above, name) = split(path);
        if let Some(folder) = self.real(names_of(above))
            && lower.is_none_or(|lower| lower.at(path).is_none())
        {
            self.remove(folder, name);
        }
    }

    /// Gives a folder that the layer does not declare what the layers below say of it.
    fn settle_folder(&mut self, path: &[u8], lower: Option<&Self>) {
        let made = self.real(names_of(path)).expect("only those in it have gone");
        self.mark(made, IMPLIED, None);
        let below = lower.and_then(|lower| Some((lower, lower.real(names_of(path))?)));
        match below {
            Some((lower, below)) => self.inherit(lower, below, made),
            None => self.remove_if_empty(path, made),
        }
    }

    /// A folder that was made for whiteouts alone, where nothing is below that they could hide, would be seen itself.
    fn remove_if_empty(&mut self, path: &[u8], made: Node) {
        let (above, name) = split(path);
        if self.children(made).next().is_none()
            && let Some(folder) = self.real(names_of(above))
        {
            self.remove(folder, name);
        }
    }

    /// Gives a folder the owner, mode, attributes and times of a lower one. It stays opaque if it is.
    fn inherit(&mut self, lower: &Self, from: Node, to: Node) {
        let opaque = self.marked(to, OPAQUE).is_some();
        let mut meta = lower.meta(from);
        meta.xattrs = self.sets.import(&lower.sets, meta.xattrs);
        self.set_meta(to, meta);
        if opaque {
            self.mark(to, OPAQUE, Some(b"y"));
        }
    }
}

/// The lower target of a hard link, and the tree that it is in; an error if it cannot be one.
fn target_of<'a>(path: &[u8], target: &[u8], lower: Option<&'a Tree>) -> Result<(&'a Tree, Node), Refused> {
    let shown = String::from_utf8_lossy(target);
    let found = lower.and_then(|lower| Some((lower, lower.at(target)?)));
    match found {
        None => Err(refused(path, format!("it is a hard link to {shown:?}, which is in no layer below"))),
        Some((lower, found)) if lower.is_folder(found) => {
            Err(refused(path, format!("it is a hard link to the folder {shown:?}")))
        }
        Some(found) => Ok(found),
    }
}

fn refused(entry: &[u8], reason: impl Into<String>) -> Refused {
    Refused { entry: entry.to_owned(), reason: reason.into() }
}
