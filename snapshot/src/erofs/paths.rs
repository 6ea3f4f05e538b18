//! Paths inside a tree: links lead where they would lead if the tree's root were `/`.

use super::tree::{Node, Tree};

/// How many links a path may go through: what the kernel allows.
const LINKS: usize = 40;

/// Where a path leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// The names on the way there, without links. Some may not be there.
    pub(super) real: Vec<Vec<u8>>,
    /// The folder there, if there is one.
    pub(super) folder: Option<Node>,
}

impl Tree {
    /// Follows a path. `None` if it goes in circles.
    pub(super) fn resolve(&self, path: &[u8]) -> Option<Resolved> {
        let mut rest: Vec<Vec<u8>> = names_of(path).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut folder = Some(self.root());
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                real.pop();
                folder = self.real(real.iter().map(Vec::as_slice));
                continue;
            }
            let child = folder.and_then(|folder| self.child(folder, &name));
            match child.and_then(|child| self.target(child)) {
                Some(_) if links == LINKS => return None,
                Some(target) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        real.clear();
                        folder = Some(self.root());
                    }
                    rest.extend(names_of(target).rev().map(<[u8]>::to_vec));
                }
                None => {
                    real.push(name);
                    folder = child.filter(|child| self.is_folder(*child));
                }
            }
        }
        Some(Resolved { real, folder })
    }

    /// The folder that some names lead to, none of which is a link.
    pub(super) fn real<'a>(&self, names: impl IntoIterator<Item = &'a [u8]>) -> Option<Node> {
        let mut at = self.root();
        for name in names {
            at = self.child(at, name).filter(|child| self.is_folder(*child))?;
        }
        Some(at)
    }
}

/// The names in a path, without those that mean nothing.
pub(super) fn names_of(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// A path's folder and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::{Kind, Meta};

    #[test]
    fn links_lead_where_they_would_if_the_root_were_the_top() {
        let mut tree = Tree::new();
        let root = tree.root();
        let mut put = |folder, name: &str, kind| {
            tree.put(folder, name.as_bytes(), Meta::default(), kind).expect("the name is good")
        };
        let a = put(root, "a", Kind::Folder);
        let b = put(a, "b", Kind::Folder);
        put(b, "up", Kind::Symlink(b"../../../.."));
        put(b, "top", Kind::Symlink(b"/a"));
        put(root, "loop", Kind::Symlink(b"loop"));
        put(root, "dangling", Kind::Symlink(b"nowhere"));
        put(root, "file", Kind::Fifo);

        for (path, found) in [
            ("", Some(("", Some(root)))),
            ("a/b", Some(("a/b", Some(b)))),
            ("/a//./b/..", Some(("a", Some(a)))),
            ("a/b/up", Some(("", Some(root)))),
            ("a/b/up/a/b/top/b", Some(("a/b", Some(b)))),
            ("loop", None),
            ("dangling/x", Some(("nowhere/x", None))),
            ("a/c/../b", Some(("a/b", Some(b)))),
            ("file/x", Some(("file/x", None))),
            ("file", Some(("file", None))),
        ] {
            let resolved = tree.resolve(path.as_bytes());
            let real =
                resolved.as_ref().map(|it| String::from_utf8(it.real.join(&b'/')).expect("it is text"));
            let shown = resolved.as_ref().map(|it| (real.as_deref().expect("it is there"), it.folder));
            assert_eq!(shown, found, "{path}");
        }
    }
}
