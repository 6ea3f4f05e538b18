//! Paths inside a tree: links lead where they would lead if the tree's root were `/`.

use std::borrow::Cow;

use super::tree::{Node, Tree};

/// How many links a path may go through: what the kernel allows.
const LINKS: usize = 40;

/// Why a path leads to no folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Something on the way, or the last name, is not there.
    NotThere,
    /// Something on the way is no folder.
    NotFolder,
    /// It goes through too many links.
    Loop,
}

impl Tree {
    /// The folder that a path leads to, through links as if the tree's root were `/`.
    ///
    /// # Errors
    ///
    /// [`Missing`].
    pub fn folder_at(&self, path: &[u8]) -> Result<Node, Missing> {
        let mut at = self.root();
        let mut rest = Cow::Borrowed(path);
        let mut done = 0;
        let mut links = 0;
        while done < rest.len() {
            let name = rest[done..].split(|byte| *byte == b'/').next().unwrap_or_default();
            let after = (done + name.len() + 1).min(rest.len());
            match name {
                b"" | b"." => {}
                b".." => at = self.parent(at).expect("it is a folder"),
                name => {
                    let child = self.child(at, name).ok_or(Missing::NotThere)?;
                    if let Some(target) = self.target(child) {
                        links += 1;
                        if links > LINKS {
                            return Err(Missing::Loop);
                        }
                        if target.starts_with(b"/") {
                            at = self.root();
                        }
                        rest = Cow::Owned([target, b"/", &rest[after..]].concat());
                        done = 0;
                        continue;
                    }
                    if !self.is_folder(child) {
                        return Err(Missing::NotFolder);
                    }
                    at = child;
                }
            }
            done = after;
        }
        Ok(at)
    }

    /// The names from the root to a folder.
    pub(super) fn names_to(&self, folder: Node) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = folder;
        while at != self.root() {
            let above = self.parent(at).expect("it is a folder");
            let found = self.children(above).find(|(_, node)| *node == at);
            names.push(found.expect("a folder is in its parent").0.to_vec());
            at = above;
        }
        names.reverse();
        names
    }
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
            ("", Ok(root)),
            ("a/b", Ok(b)),
            ("/a//./b/..", Ok(a)),
            ("a/b/up", Ok(root)),
            ("a/b/up/a/b/top/b", Ok(b)),
            ("loop", Err(Missing::Loop)),
            ("dangling", Err(Missing::NotThere)),
            ("a/c", Err(Missing::NotThere)),
            ("file/x", Err(Missing::NotFolder)),
            ("file", Err(Missing::NotFolder)),
        ] {
            assert_eq!(tree.folder_at(path.as_bytes()), found, "{path}");
        }
        assert_eq!(tree.names_to(b), [b"a", b"b"]);
    }
}
