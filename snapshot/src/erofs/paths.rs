//! Paths inside a tree. No link in them is followed.

use super::tree::{Node, Tree};

impl Tree {
    /// What a path is, none of whose names but the last may be a link.
    pub(super) fn at(&self, path: &[u8]) -> Option<Node> {
        let (above, name) = split(path);
        self.child(self.real(names_of(above))?, name)
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
