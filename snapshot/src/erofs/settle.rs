//! What a layer that was written alone takes from the layers below, once these are known.
//!
//! Whoever writes the layer leaves marks in its tree: attributes that no layer can bring, since `trusted.` is refused from layers.

use std::collections::HashMap;

use super::{
    paths::{Resolved, names_of, split},
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

    /// Gives a layer what it takes from below, and takes the marks away. `lower` is the merged tree of the layers below; `None`
    /// for the lowest layer. Files that were copied from there keep the place of their data.
    ///
    /// # Errors
    ///
    /// The entry that cannot be.
    pub(super) fn settle(&mut self, lower: Option<&Self>) -> Result<(), Refused> {
        let marks = Marks::of(self);
        let opaque_root = self.marked(self.root(), OPAQUE).is_some();
        if let Some(lower) = lower
            && opaque_root
        {
            self.hide_all(lower)?;
        }
        let mut copies = HashMap::new();
        for (path, target) in &marks.links {
            self.settle_link(path, target, lower, opaque_root, &mut copies)?;
        }
        for path in &marks.whiteouts {
            self.settle_whiteout(path, lower);
        }
        // Inner ones first.
        for path in marks.implied.iter().rev() {
            self.settle_folder(path, lower)?;
        }
        let undeclared_root = self.marked(self.root(), IMPLIED).is_some();
        self.mark(self.root(), IMPLIED, None);
        self.mark(self.root(), OPAQUE, None);
        if let Some(lower) = lower
            && undeclared_root
        {
            self.inherit(lower, lower.root(), self.root());
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

    /// Makes a hard link to a file of the layers below: a copy of it, which is also put over it.
    fn settle_link(
        &mut self,
        path: &[u8],
        target: &[u8],
        lower: Option<&Self>,
        opaque_root: bool,
        copies: &mut HashMap<Node, Node>,
    ) -> Result<(), Refused> {
        let shown = String::from_utf8_lossy(target);
        let nowhere = || refused(path, format!("it is a hard link to {shown:?}, which is in no layer below"));
        let lower = lower.ok_or_else(nowhere)?;
        let (above, target_name) = split(target);
        let above = lower.resolve(above).ok_or_else(nowhere)?;
        let found = above.folder.and_then(|folder| lower.child(folder, target_name)).ok_or_else(nowhere)?;
        if lower.is_folder(found) {
            return Err(refused(path, format!("it is a hard link to the folder {shown:?}")));
        }
        let (folder, name) = split(path);
        let folder = self.real(names_of(folder)).expect("the link was found there");
        if let Some(copy) = copies.get(&found) {
            return self.link(folder, name, *copy).map_err(|reason| refused(path, reason));
        }
        let copy = self.copy(lower, found, (folder, name), 0).map_err(|reason| refused(path, reason))?;
        copies.insert(found, copy);
        if let Some(over) = self.folder_like_below(lower, &above.real, opaque_root, path)?
            // Else the layer has something else there, which came later.
            && self.child(over, target_name).is_none()
        {
            self.link(over, target_name, copy).map_err(|reason| refused(path, reason))?;
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
        let hides = lower.is_some_and(|lower| {
            let folder = lower.resolve(above).and_then(|above| above.folder);
            folder.is_some_and(|folder| lower.child(folder, name).is_some())
        });
        if let Some(folder) = self.real(names_of(above)).filter(|_| !hides) {
            self.remove(folder, name);
        }
    }

    /// Gives a folder that the layer does not declare what the layers below say of it.
    fn settle_folder(&mut self, path: &[u8], lower: Option<&Self>) -> Result<(), Refused> {
        // The folder above may have moved with an earlier one; then this one moved with it.
        let Some(made) = self.real(names_of(path)) else { return Ok(()) };
        self.mark(made, IMPLIED, None);
        let (above, name) = split(path);
        let found = lower.and_then(|lower| {
            let folder = lower.resolve(above)?.folder?;
            Some((lower, lower.child(folder, name)?))
        });
        match found {
            Some((lower, below)) if lower.is_folder(below) => {
                self.inherit(lower, below, made);
                Ok(())
            }
            Some((lower, below)) if lower.target(below).is_some() => match lower.resolve(path) {
                Some(to) => self.move_to(path, made, &to, lower),
                // It leads nowhere, and the folder takes its place.
                None => {
                    self.remove_if_empty(path, made);
                    Ok(())
                }
            },
            _ => {
                self.remove_if_empty(path, made);
                Ok(())
            }
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

    /// The layer has entries below a path that is a link in the layers below: they belong to where it leads.
    fn move_to(&mut self, path: &[u8], made: Node, to: &Resolved, lower: &Self) -> Result<(), Refused> {
        let real = &to.real;
        let opaque = self.marked(made, OPAQUE).is_some() && to.folder.is_some();
        if opaque || self.children(made).next().is_some() {
            let mut place = self.root();
            for (depth, name) in real.iter().enumerate() {
                let there = self.child(place, name);
                place = match there.filter(|there| self.is_folder(*there)) {
                    Some(inner) => inner,
                    None => {
                        let inner = self.make_like_below(lower, place, &real[..=depth], path)?;
                        if there.is_some() {
                            self.mark(inner, OPAQUE, Some(b"y"));
                        }
                        inner
                    }
                };
            }
            if opaque {
                self.mark(place, OPAQUE, Some(b"y"));
            }
            self.merge(made, place, path)?;
        }
        let (above, name) = split(path);
        if let Some(folder) = self.real(names_of(above)) {
            self.remove(folder, name);
        }
        Ok(())
    }

    /// Moves all that is in one folder into another: what is there gives way, folders are merged.
    fn merge(&mut self, from: Node, to: Node, path: &[u8]) -> Result<(), Refused> {
        let mut open = vec![(from, to)];
        while let Some((from, to)) = open.pop() {
            for (name, node) in self.listed(from) {
                let there = self.child(to, &name);
                match there {
                    Some(there) if self.is_folder(there) && self.is_folder(node) => {
                        open.push((node, there));
                        continue;
                    }
                    Some(there) if self.is_whiteout(node) => {
                        if self.is_folder(there) {
                            self.mark(there, OPAQUE, Some(b"y"));
                        }
                        continue;
                    }
                    Some(_) if self.is_folder(node) => self.mark(node, OPAQUE, Some(b"y")),
                    _ => {}
                }
                self.link(to, &name, node).map_err(|reason| refused(path, reason))?;
                self.set_parent(node, to);
            }
        }
        Ok(())
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

fn refused(entry: &[u8], reason: impl Into<String>) -> Refused {
    Refused { entry: entry.to_owned(), reason: reason.into() }
}
