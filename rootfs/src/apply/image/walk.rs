//! Finds folders in the tree of an image, and makes those that are missing: what `apply::walk` does with folders, done in memory.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use rustix::io::Errno;
use windlass_snapshot::erofs::{Kind, LINK, Meta as Attributes, Node};

use super::target::Target;
use crate::{
    Result,
    apply::{
        made::Hides,
        refused, rules,
        walk::{LINKS, Makes, names_of, read_lower_link, steps_back},
    },
};

impl Target<'_> {
    /// The folder of a path, all that is missing of it made. Links lead where they would lead inside the root.
    pub(super) fn make(&mut self, path: &Path) -> Result<Node> {
        if let Some((last, folder)) = &self.last
            && last == path
        {
            return Ok(*folder);
        }
        let folder = self.walk(path, Makes::All)?.expect("what is missing was made");
        // Where a link was followed, an entry may take the place of a link below, unnoticed.
        self.last = (self.path(folder) == path).then(|| (path.to_owned(), folder));
        Ok(folder)
    }

    /// The folder of a path. `None` if there is none, and none was made.
    pub(super) fn walk(&mut self, path: &Path, makes: Makes) -> Result<Option<Node>> {
        let mut at = self.tree.root();
        // As long as it goes through no link, nothing is to be remembered.
        let mut rest = path.iter();
        while let Some(name) = rest.clone().next()
            && let Some(child) = self.tree.child(at, name.as_bytes())
            && self.tree.is_folder(child)
        {
            at = child;
            rest.next();
        }
        // What is still to be walked, last name first.
        let mut rest: Vec<OsString> = rest.rev().map(OsStr::to_owned).collect();
        let mut links = 0;
        // The link in `path` that is being followed, and what comes after it, until the name after it is looked up.
        let mut detour: Option<(Node, OsString, Vec<OsString>)> = None;
        while let Some(mut name) = rest.pop() {
            if name == ".." {
                at = self.tree.parent(at).expect("it is a folder");
                continue;
            }
            let mut there = self.tree.child(at, name.as_bytes());
            if let Some(there) = there.filter(|there| self.tree.is_folder(*there)) {
                at = there;
                continue;
            }
            let target = match there.and_then(|there| self.tree.target(there)) {
                Some(target) => Some(OsString::from_vec(target.to_vec())),
                None => self.lower_link(at, &name, there).map_err(rules::at("look below at", path))?,
            };
            let taken = there.is_some() || target.is_some();
            if let Some(target) = target {
                if links < LINKS {
                    links += 1;
                    if detour.as_ref().is_none_or(|(_, _, after)| rest.len() < after.len()) {
                        detour = Some((at, name, rest.clone()));
                    }
                    if target.as_bytes().starts_with(b"/") {
                        at = self.tree.root();
                    }
                    rest.extend(names_of(Path::new(&target)).into_iter().rev());
                    continue;
                }
                // A circle: the link that led into it is no folder.
                (at, name, rest) = detour.take().expect("a link was followed");
                there = self.tree.child(at, name.as_bytes());
            }
            // Where a layer below may have a folder, one is made; if it stays empty and there is none, it goes again.
            if let Some(back) = steps_back(&rest)
                && (taken || !self.alone || self.is_hidden_in(at))
            {
                self.goes_through(there);
                rest.truncate(rest.len() - back);
                continue;
            }
            // What is there and no folder hides what is below, like a link that is made later.
            let may = makes == Makes::All || makes == Makes::Seen && !taken && !self.is_hidden_in(at);
            if !may {
                self.goes_through(there);
                return Ok(None);
            }
            at = self.make_implied(at, &name, path)?;
        }
        Ok(Some(at))
    }

    /// Where the link points that a name is in the layers below, if it is none of the layer and they are at hand.
    fn lower_link(&self, above: Node, name: &OsStr, there: Option<Node>) -> Result<Option<OsString>, Errno> {
        let Some(lower) = self.lower else { return Ok(None) };
        let real = match there {
            None if self.is_hidden_in(above) => return Ok(None),
            None => self.path(above).join(name),
            // A hard link to what is below.
            Some(there) => match self.tree.marked(there, LINK) {
                Some(target) => OsString::from_vec(target).into(),
                None => return Ok(None),
            },
        };
        read_lower_link(lower, &real)
    }

    /// Makes a folder that the layer does not declare, in the place of anything else, and notes what that supposes of those below.
    fn make_implied(&mut self, above: Node, name: &OsStr, path: &Path) -> Result<Node> {
        self.goes_through(self.tree.child(above, name.as_bytes()));
        let made = self.make_folder(above, name, path)?;
        let seen = self.known(made).hides == Hides::Nothing && !self.is_hidden_in(above);
        if seen && self.alone && self.lower.is_none() {
            self.folders_below.insert(self.path(made));
        }
        Ok(made)
    }

    /// Notes that a hard link to what is below was taken for what is no link.
    fn goes_through(&mut self, there: Option<Node>) {
        if self.lower.is_none()
            && let Some(target) = there.and_then(|there| self.tree.marked(there, LINK))
        {
            self.folders_below.insert(OsString::from_vec(target).into());
        }
    }

    /// Makes a folder where there is none. Anything else that is there goes.
    pub(super) fn make_folder(&mut self, folder: Node, name: &OsStr, path: &Path) -> Result<Node> {
        let there = self.tree.child(folder, name.as_bytes());
        self.remove(folder, name);
        let meta = Attributes { mode: 0o755, ..Attributes::default() };
        let made = self.tree.put(folder, name.as_bytes(), meta, Kind::Folder);
        let made = made.map_err(|reason| refused(path, reason))?;
        if there.is_some() && self.alone {
            // What was there, a whiteout perhaps, hid what is below; so must the folder.
            self.make_opaque(made, Hides::Itself);
        }
        Ok(made)
    }
}
