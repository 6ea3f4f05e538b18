//! Layers on top of each other as one tree: what overlayfs would show.

use std::collections::HashMap;

use super::tree::{Node, OPAQUE, Tree};

impl Tree {
    /// Puts a layer on top: its whiteouts and opaque folders hide what is here, and are not in the tree afterwards. What is in its
    /// image is on the first of `devices`, and what is in its tar on the second.
    ///
    /// # Errors
    ///
    /// In words, if the tree grows too large.
    pub(super) fn stack(&mut self, upper: &Self, devices: [u16; 2]) -> Result<(), &'static str> {
        // A file with several names in the layer has them here, too.
        let mut files: HashMap<Node, Node> = HashMap::new();
        let mut open = vec![(self.root(), upper.root())];
        while let Some((here, there)) = open.pop() {
            if upper.marked(there, OPAQUE).is_some() {
                for (name, _) in self.listed(here) {
                    self.remove(here, &name);
                }
            }
            let mut meta = upper.meta(there);
            meta.xattrs = self.sets.import(&upper.sets, meta.xattrs);
            self.set_meta(here, meta);
            self.mark(here, OPAQUE, None);
            for (name, child) in upper.children(there) {
                if upper.is_whiteout(child) {
                    self.remove(here, name);
                } else if upper.is_folder(child) {
                    let below = self.child(here, name).filter(|below| self.is_folder(*below));
                    let folder = match below {
                        Some(below) => below,
                        None => self.copy(upper, child, (here, name), devices)?,
                    };
                    open.push((folder, child));
                } else if let Some(known) = files.get(&child) {
                    self.link(here, name, *known)?;
                } else {
                    files.insert(child, self.copy(upper, child, (here, name), devices)?);
                }
            }
        }
        Ok(())
    }

    /// Copies one node of another tree, without what is below it.
    pub(super) fn copy(
        &mut self,
        other: &Self,
        node: Node,
        (folder, name): (Node, &[u8]),
        devices: [u16; 2],
    ) -> Result<Node, &'static str> {
        let inode = self.import(other, node, devices)?;
        let copy = self.adopt(inode);
        self.link(folder, name, copy)?;
        self.set_parent(copy, folder);
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Kind, Meta, paths::names_of};

    fn names(tree: &Tree, path: &str) -> Vec<String> {
        let folder = tree.real(names_of(path.as_bytes())).expect("it is there");
        let mut names: Vec<_> =
            tree.children(folder).map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort();
        names
    }

    fn tree(entries: &[(&str, Option<Kind<'_>>)]) -> Tree {
        let mut tree = Tree::new();
        for (path, kind) in entries {
            let (above, name) = crate::erofs::paths::split(path.as_bytes());
            let folder = tree.real(names_of(above)).expect("it is there");
            match kind {
                Some(kind) => {
                    tree.put(folder, name, Meta::default(), kind.clone()).expect("it is good");
                }
                None => tree.mark(tree.child(folder, name).expect("it is there"), OPAQUE, Some(b"y")),
            }
        }
        tree
    }

    #[test]
    fn whiteouts_and_opaque_folders_hide_and_are_gone() {
        let (folder, file, hidden) = (Some(Kind::Folder), Some(Kind::Fifo), Some(Kind::Char(0, 0)));
        let mut merged = tree(&[
            ("d", folder.clone()),
            ("d/old", file.clone()),
            ("o", folder.clone()),
            ("o/old", file.clone()),
            ("gone", file.clone()),
            ("f", folder.clone()),
            ("f/below", file.clone()),
        ]);
        let upper = tree(&[
            ("d", folder.clone()),
            ("d/new", file.clone()),
            ("d/never", hidden.clone()),
            ("o", folder),
            ("o/new", file.clone()),
            ("o", None),
            ("gone", hidden),
            ("f", file),
        ]);

        merged.stack(&upper, [0, 0]).expect("it is small");

        assert_eq!(names(&merged, ""), ["d", "f", "o"]);
        assert_eq!(names(&merged, "d"), ["new", "old"]);
        assert_eq!(names(&merged, "o"), ["new"]);
        let o = merged.child(merged.root(), b"o").expect("it is there");
        assert_eq!(merged.marked(o, OPAQUE), None);
    }
}
