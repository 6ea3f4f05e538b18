//! What a layer that was written alone takes from the layers below, once these are known.
//!
//! Whoever writes the layer leaves marks in its tree: attributes that no layer can bring, since `trusted.` is refused from layers.

use super::{
    paths::split,
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
        if self.marked(self.root(), OPAQUE).is_some() {
            if let Some(lower) = lower {
                self.hide_all(lower)?;
            }
            self.mark(self.root(), OPAQUE, None);
        }
        let marks = Marks::of(self);
        for (path, target) in &marks.links {
            self.settle_link(path, target, lower)?;
        }
        for path in &marks.whiteouts {
            self.settle_whiteout(path, lower);
        }
        for path in marks.implied.iter().rev() {
            self.settle_folder(path, lower)?;
        }
        if self.marked(self.root(), IMPLIED).is_some() {
            self.mark(self.root(), IMPLIED, None);
            if let Some(lower) = lower {
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

    fn settle_link(&mut self, path: &[u8], target: &[u8], lower: Option<&Self>) -> Result<(), Refused> {
        let shown = String::from_utf8_lossy(target);
        let nowhere = || refused(path, format!("it is a hard link to {shown:?}, which is in no layer below"));
        let lower = lower.ok_or_else(nowhere)?;
        let (above, name) = split(target);
        let lower_folder = lower.folder_at(above).map_err(|_| nowhere())?;
        let found = lower.child(lower_folder, name).ok_or_else(nowhere)?;
        if !lower.is_file(found) {
            return Err(refused(path, format!("it is a hard link to {shown:?}, which is no regular file")));
        }
        let folder = self.folder_like_below(lower, &lower.names_to(lower_folder), path)?;
        let there = self.child(folder, name).filter(|there| self.marked(*there, LINK).is_none());
        let node = match there {
            Some(there) if self.is_folder(there) => {
                return Err(refused(path, format!("it is a hard link to the folder {shown:?}")));
            }
            // The layer has it, or an earlier link of this layer copied it.
            Some(there) => there,
            None => self.copy(lower, found, (folder, name), 0).map_err(|reason| refused(path, reason))?,
        };
        let (above, name) = split(path);
        // The folder is gone where a later entry took its place.
        let Ok(folder) = self.folder_at(above) else { return Ok(()) };
        self.link(folder, name, node).map_err(|reason| refused(path, reason))
    }

    /// A folder of the layer; what is missing of it is made as it is below.
    fn folder_like_below(&mut self, lower: &Self, names: &[Vec<u8>], entry: &[u8]) -> Result<Node, Refused> {
        let (mut here, mut there) = (self.root(), lower.root());
        let mut path = Vec::new();
        for name in names {
            there = lower.child(there, name).expect("the names are from there");
            path.extend_from_slice(name);
            here = match self.child(here, name) {
                None => self.copy(lower, there, (here, name), 0).map_err(|reason| refused(entry, reason))?,
                Some(child) if self.is_folder(child) => child,
                // Where a link of the layer leads.
                Some(_) => self.folder_at(&path).map_err(|_| {
                    refused(
                        entry,
                        format!(
                            "it belongs to {:?}, which is no folder in its layer",
                            String::from_utf8_lossy(&path)
                        ),
                    )
                })?,
            };
            path.push(b'/');
        }
        Ok(here)
    }

    /// Overlayfs lists a whiteout in a folder that it does not merge: there it hides nothing, and is taken away.
    fn settle_whiteout(&mut self, path: &[u8], lower: Option<&Self>) {
        let (above, name) = split(path);
        let Ok(folder) = self.folder_at(above) else { return };
        let hides = lower.is_some_and(|lower| {
            lower.folder_at(above).is_ok_and(|folder| lower.child(folder, name).is_some())
        });
        let mut at = folder;
        let mut merged = true;
        while at != self.root() {
            merged &= self.marked(at, OPAQUE).is_none();
            at = self.parent(at).expect("it is a folder");
        }
        if !(hides && merged) && self.child(folder, name).is_some_and(|node| self.is_whiteout(node)) {
            self.remove(folder, name);
        }
    }

    fn settle_folder(&mut self, path: &[u8], lower: Option<&Self>) -> Result<(), Refused> {
        let (above, name) = split(path);
        // The folder above may have moved with an earlier one; then this one moved with it.
        let Ok(made) = self.folder_at(path) else { return Ok(()) };
        self.mark(made, IMPLIED, None);
        let below = lower.and_then(|lower| Some((lower, lower.folder_at(path).ok()?)));
        let Some((lower, below)) = below else {
            // A folder that was made for whiteouts alone, where nothing is below that they could hide, would be seen itself.
            if self.children(made).all(|(_, node)| self.is_whiteout(node))
                && let Ok(folder) = self.folder_at(above)
            {
                self.remove(folder, name);
            }
            return Ok(());
        };
        let named = lower.folder_at(above).ok().and_then(|folder| lower.child(folder, name));
        if named != Some(below) {
            return self.follow_lower_link(path, made, lower, below);
        }
        self.inherit(lower, below, made);
        Ok(())
    }

    /// The layer has entries below a path that is a link in the layers below: they belong to where it leads.
    fn follow_lower_link(
        &mut self,
        path: &[u8],
        made: Node,
        lower: &Self,
        below: Node,
    ) -> Result<(), Refused> {
        let place = self.folder_like_below(lower, &lower.names_to(below), path)?;
        self.move_all(made, place, path)?;
        let (above, name) = split(path);
        if let Ok(folder) = self.folder_at(above) {
            self.remove(folder, name);
        }
        Ok(())
    }

    /// Moves all entries of one folder into another; what is there already gives way, folders are merged.
    fn move_all(&mut self, from: Node, to: Node, path: &[u8]) -> Result<(), Refused> {
        let mut open = vec![(from, to)];
        while let Some((from, to)) = open.pop() {
            for (name, node) in self.listed(from) {
                let there = self.child(to, &name);
                match there.filter(|there| self.is_folder(*there) && self.is_folder(node)) {
                    Some(there) => open.push((node, there)),
                    None => {
                        self.link(to, &name, node).map_err(|reason| refused(path, reason))?;
                        self.set_parent(node, to);
                    }
                }
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
