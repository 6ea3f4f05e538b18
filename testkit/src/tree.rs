//! Folders as values that can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use crate::image::sha256;

/// Everything below a folder, and the folder itself, whose path is empty. Links are not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// What is where, relative to the folder.
    pub nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Reads a folder, with the content of every file.
    ///
    /// # Panics
    ///
    /// If something in it cannot be read.
    pub fn read(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        let mut nodes = BTreeMap::new();
        let mut links: BTreeMap<(u64, u64), BTreeSet<PathBuf>> = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(path) = open.pop() {
            let at = root.join(&path);
            let metadata = must("look at", &at, fs::symlink_metadata(&at));
            if metadata.is_dir() {
                for entry in must("list", &at, fs::read_dir(&at)) {
                    open.push(path.join(must("list", &at, entry).file_name()));
                }
            } else if metadata.nlink() > 1 {
                links.entry((metadata.dev(), metadata.ino())).or_default().insert(path.clone());
            }
            nodes.insert(path, Node::read(&at, &metadata));
        }
        for group in links.into_values().filter(|group| group.len() > 1) {
            for path in &group {
                nodes.get_mut(path).expect("every path of a group was read").links = group.clone();
            }
        }
        Self { nodes }
    }

    /// The same tree, as if everything dated from the epoch.
    pub fn ignore_mtimes(mut self) -> Self {
        for node in self.nodes.values_mut() {
            node.mtime = (0, 0);
        }
        self
    }

    /// The same tree without the marks (`trusted.overlay.*`, `user.overlay.*`) that overlayfs keeps for itself.
    pub fn ignore_overlay_xattrs(mut self) -> Self {
        let is_mark = |name: &OsStr| {
            [&b"trusted.overlay."[..], b"user.overlay."]
                .iter()
                .any(|prefix| name.as_bytes().starts_with(prefix))
        };
        for node in self.nodes.values_mut() {
            node.xattrs.retain(|name, _| !is_mark(name));
        }
        self
    }

    /// What differs, one line each, `self` on the left. Empty if nothing does.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let paths: BTreeSet<_> = self.nodes.keys().chain(other.nodes.keys()).collect();
        let mut differences = Vec::new();
        for path in paths {
            let name = Path::new("/").join(path);
            match (self.nodes.get(path), other.nodes.get(path)) {
                (Some(left), Some(right)) => {
                    for (what, left, right) in
                        left.fields(right).into_iter().filter(|(_, left, right)| left != right)
                    {
                        differences.push(format!("{}: {what} {left} != {right}", name.display()));
                    }
                }
                (Some(_), None) => differences.push(format!("{}: only left", name.display())),
                (None, _) => differences.push(format!("{}: only right", name.display())),
            }
        }
        differences
    }
}

/// One file, folder, link or device of a [`Tree`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeType,
    /// The permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// The user who owns it.
    pub uid: u32,
    /// The group that owns it.
    pub gid: u32,
    /// The device number of a device, else 0.
    pub rdev: u64,
    /// The size of a regular file in bytes, else 0: the size of a folder is its file system's business.
    pub size: u64,
    /// Seconds since the epoch, and nanoseconds.
    pub mtime: (i64, i64),
    /// Where a symbolic link points.
    pub target: Option<PathBuf>,
    /// Values of extended attributes by name.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The digest of a regular file's content.
    pub content: Option<String>,
    /// All paths in the tree of a file that has several, this one too. Else empty.
    pub links: BTreeSet<PathBuf>,
}

impl Node {
    fn read(path: &Path, metadata: &Metadata) -> Self {
        let kind = NodeType::of(metadata);
        let is_file = kind == NodeType::File;
        let is_device = matches!(kind, NodeType::CharDevice | NodeType::BlockDevice);
        Self {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: if is_device { metadata.rdev() } else { 0 },
            size: if is_file { metadata.size() } else { 0 },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            target: (kind == NodeType::Symlink).then(|| must("read the link", path, fs::read_link(path))),
            xattrs: must("read the attributes of", path, xattrs(path)),
            content: is_file.then(|| sha256(&must("read", path, fs::read(path))).to_string()),
            links: BTreeSet::new(),
        }
    }

    /// Each field by name, here and there, in words.
    fn fields(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let field = |what, show: &dyn Fn(&Self) -> String| (what, show(self), show(other));
        let xattrs = |node: &Self| {
            let shown = node.xattrs.iter().map(|(name, value)| format!("{name:?}={}", value.escape_ascii()));
            shown.collect::<Vec<_>>().join(" ")
        };
        vec![
            field("type", &|it| format!("{:?}", it.kind)),
            field("mode", &|it| format!("{:04o}", it.mode)),
            field("owner", &|it| format!("{}:{}", it.uid, it.gid)),
            field("device", &|it| format!("{:#x}", it.rdev)),
            field("size", &|it| it.size.to_string()),
            field("mtime", &|it| format!("{}.{:09}", it.mtime.0, it.mtime.1)),
            field("target", &|it| format!("{:?}", it.target)),
            field("xattrs", &|it| format!("[{}]", xattrs(it))),
            field("content", &|it| it.content.clone().unwrap_or_default()),
            field("links", &|it| format!("{:?}", it.links)),
        ]
    }
}

/// What a [`Node`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    /// A block device.
    BlockDevice,
    /// A character device. Its number 0 is how overlayfs writes a whiteout.
    CharDevice,
    /// A folder.
    Dir,
    /// A named pipe.
    Fifo,
    /// A regular file.
    File,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
}

impl NodeType {
    fn of(metadata: &Metadata) -> Self {
        let kind = metadata.file_type();
        match () {
            () if kind.is_dir() => Self::Dir,
            () if kind.is_symlink() => Self::Symlink,
            () if kind.is_fifo() => Self::Fifo,
            () if kind.is_socket() => Self::Socket,
            () if kind.is_char_device() => Self::CharDevice,
            () if kind.is_block_device() => Self::BlockDevice,
            () => Self::File,
        }
    }
}

/// Asserts that two trees are the same.
///
/// # Panics
///
/// If they differ, with every difference.
#[track_caller]
pub fn assert_same(left: &Tree, right: &Tree) {
    let differences = left.diff(right);
    assert!(differences.is_empty(), "the trees differ:\n{}", differences.join("\n"));
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    // The kernel allows 64 KiB of names, and 64 KiB for a value.
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut value = vec![0; 64 << 10];
    let mut all = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        all.insert(name.to_owned(), value[..length].to_vec());
    }
    Ok(all)
}

fn must<T>(what: &str, path: &Path, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use tempfile::TempDir;

    use super::*;

    /// A folder with a file of two names, a link that leads nowhere, and an attribute.
    fn folder() -> TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir(at("sub")).expect("it is new");
        fs::write(at("sub/file"), "content").expect("it is new");
        fs::hard_link(at("sub/file"), at("same")).expect("it is new");
        symlink("/nowhere", at("link")).expect("it is new");
        rustix::fs::setxattr(at("same"), "user.note", b"\0", rustix::fs::XattrFlags::empty())
            .expect("the file system has attributes");
        dir
    }

    #[test]
    fn a_copy_differs_in_nothing_but_its_times() {
        let (left, right) = (Tree::read(folder()), Tree::read(folder()));

        assert!(left.diff(&right).iter().all(|line| line.contains(": mtime ")), "{:?}", left.diff(&right));
        assert_same(&left.clone().ignore_mtimes(), &right.ignore_mtimes());
        assert_eq!(left.nodes.len(), 5, "the root, a folder, two names, a link");
        let node = &left.nodes[Path::new("same")];
        assert_eq!(node.links, ["same", "sub/file"].map(PathBuf::from).into());
        assert_eq!(node.xattrs[OsStr::new("user.note")], b"\0");
        assert_eq!(left.nodes[Path::new("link")].target.as_deref(), Some(Path::new("/nowhere")));
    }

    #[test]
    fn each_change_is_named() {
        type Change = fn(&Path) -> io::Result<()>;
        let changes: [(&str, Change); 7] = [
            ("/sub/file: only left", |at| fs::remove_file(at.join("sub/file"))),
            ("/new: only right", |at| fs::write(at.join("new"), "")),
            ("/sub: mode 0755 != 1777", |at| {
                fs::set_permissions(at.join("sub"), PermissionsExt::from_mode(0o1777))
            }),
            ("/same: size 7 != 1", |at| fs::write(at.join("same"), "x")),
            ("/same: content ", |at| fs::write(at.join("same"), "CONTENT")),
            ("/link: target ", |at| {
                fs::remove_file(at.join("link")).and_then(|()| symlink("/else", at.join("link")))
            }),
            ("/same: links ", |at| {
                fs::copy(at.join("same"), at.join("copy"))
                    .and_then(|_| fs::rename(at.join("copy"), at.join("same")))
            }),
        ];
        for (want, change) in changes {
            let dir = folder();
            fs::set_permissions(dir.path().join("sub"), PermissionsExt::from_mode(0o755))
                .expect("it is ours");
            let before = Tree::read(&dir).ignore_mtimes();

            change(dir.path()).expect(want);

            let differences = before.diff(&Tree::read(&dir).ignore_mtimes());
            assert!(differences.iter().any(|line| line.starts_with(want)), "{want}: {differences:?}");
        }
    }

    #[test]
    fn overlay_marks_can_be_left_out() {
        let dir = folder();
        let before = Tree::read(&dir);
        rustix::fs::setxattr(
            dir.path().join("sub"),
            "user.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .expect("the file system has attributes");
        let after = Tree::read(&dir);

        assert_eq!(before.diff(&after).len(), 1);
        assert_same(&before, &after.ignore_overlay_xattrs());
    }
}
