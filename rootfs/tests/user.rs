//! Layers are applied without root: as a user, and in a user namespace.

mod support;

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

use support::{Place, open, paths, root};
use windlass_rootfs::apply::{IdMap, Options, Settled, apply, settle};
use windlass_snapshot::Whiteouts;
use windlass_testkit::{Layer, Tree, require};

/// Where the test that is run again as somebody else finds its folder.
const FOLDER: &str = "WINDLASS_TEST_FOLDER";
const NOBODY: u32 = 65534;

/// Runs the test of this name again as nobody, in a folder of nobody's; before it `within`, such as `unshare -Ur`. What it made
/// is then the caller's to look at.
fn as_nobody(test: &str, within: &[&str]) -> Place {
    let place = Place::new();
    for folder in [place.folder.path(), &place.root()] {
        chown(folder, Some(NOBODY), Some(NOBODY)).expect("we are root");
    }
    // The build may be where nobody may go.
    let program = place.folder.path().join("test");
    // A program that is still open for writing, in a child of another test too, cannot be started.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let writing = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    fs::copy(env::current_exe().expect("it is running"), &program).expect("there is room");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let child = Command::new(require("setpriv", "util-linux"))
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(within)
        .arg(&program)
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, place.root())
        .env("TMPDIR", place.folder.path())
        .current_dir(place.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv starts");
    drop(writing);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "it ran");
    place
}

fn layers() -> [Layer; 2] {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let lower = root()
        .dir("closed", 0o555)
        .mtime(5)
        .file("closed/old", 0o444, b"old")
        .owner(1000, 1000)
        .dir("locked", 0o000)
        .mtime(6)
        .file("locked/old", 0o000, b"old")
        .file("program", 0o4555, b"x")
        .xattr("user.note", b"x")
        .xattr("security.capability", &capability)
        .device("null", 0o666, 1, 3)
        .fifo("fifo", 0o600)
        .symlink("link", "closed")
        .owner(7, 7);
    let upper = root()
        .file("closed/new", 0o400, b"new")
        .whiteout("closed/old")
        .file("locked/new", 0o400, b"new")
        .opaque("locked")
        .file("link/through", 0o600, b"");
    [lower, upper]
}

#[test]
fn a_user_gets_all_that_a_user_can_make() {
    const NAME: &str = "a_user_gets_all_that_a_user_can_make";
    if let Some(folder) = env::var_os(FOLDER) {
        let root = open(Path::new(&folder));
        let [lower, upper] = layers();
        let err =
            apply(&lower.tar()[..], &root, &Options::default()).expect_err("nobody may give files away");
        assert!(
            format!("{err}: {}", std::error::Error::source(&err).expect("why")).contains("squash"),
            "{err:?}"
        );
        let squashed = Options::default().ids(IdMap::squash());
        let err =
            apply(&lower.tar()[..], &root, &squashed).expect_err("nobody may make devices or capabilities");
        assert!(err.to_string().contains("program") || err.to_string().contains("null"), "{err}");
        let options = squashed.skip_privileged(true);
        let applied = apply(&lower.tar()[..], &root, &options).expect("it can be made");
        assert_eq!(applied.skipped, 1);
        apply(&upper.tar()[..], &root, &options).expect("modes keep nobody out of what is his own");
        return;
    }

    let place = as_nobody(NAME, &[]);

    let tree = place.tree();
    let want = ["closed", "closed/new", "closed/through", "fifo", "link", "locked", "locked/new", "program"];
    assert_eq!(paths(&tree), want);
    for (path, mode, time) in
        [("closed", 0o555, 5), ("locked", 0o000, 6), ("program", 0o4555, 0), ("closed/new", 0o400, 0)]
    {
        let node = &tree.nodes[Path::new(path)];
        assert_eq!((node.mode, node.mtime.0, node.uid, node.gid), (mode, time, NOBODY, NOBODY), "{path}");
    }
    assert_eq!(tree.nodes[Path::new("program")].xattrs.len(), 1, "the note, and no capability");
}

#[test]
fn root_of_a_user_namespace_unpacks_for_overlays_of_its_own() {
    const NAME: &str = "root_of_a_user_namespace_unpacks_for_overlays_of_its_own";
    if env::var_os(FOLDER).is_some() {
        // Only root's id is here; the others become root's.
        let map = IdMap::ranges(["0 0 1".parse().expect("a range")], ["0 0 1".parse().expect("a range")]);
        let options = Options::default().ids(map.squash_unmapped(true)).skip_privileged(true);
        let folders = ["0", "1"].map(|name| env::temp_dir().join(name));
        let lower = root()
            .dir("d", 0o750)
            .file("d/old", 0o644, b"")
            .file("gone", 0o644, b"")
            .dir("o", 0o755)
            .owner(5, 5)
            .file("o/old", 0o600, b"")
            .device("null", 0o666, 1, 3);
        let upper = root()
            .whiteout("gone")
            .file("d/new", 0o644, b"")
            .file("o/new", 0o600, b"")
            .opaque("o")
            .hardlink("hard", "d/old");
        let mut pending = Vec::new();
        for (folder, (layer, whiteouts)) in
            folders.iter().zip([(lower, Whiteouts::Remove), (upper, Whiteouts::UserOverlay)])
        {
            fs::create_dir(folder).expect("it is new");
            let applied = apply(&layer.tar()[..], &open(folder), &options.clone().whiteouts(whiteouts))
                .expect("it can be made");
            pending.push(applied.pending);
        }
        let settled = settle(&pending[1], &open(&folders[1]), Some(&open(&folders[0])));
        assert_eq!(settled.expect("it is below"), Settled::Done);
        let target = env::temp_dir().join("root");
        let mounts = support::mounts(&folders, Whiteouts::UserOverlay);
        windlass_snapshot::mount::mount_all(&mounts, &target).expect("overlays work in user namespaces");
        let tree = Tree::read(&target);
        assert_eq!(paths(&tree), ["d", "d/new", "d/old", "hard", "o", "o/new"]);
        assert_eq!(tree.nodes[Path::new("d")].mode, 0o750);
        return;
    }

    let place = as_nobody(NAME, &["unshare", "-U", "-r", "-m"]);

    let gone = Tree::read(place.folder.path().join("1"));
    assert_eq!(gone.nodes[Path::new("gone")].rdev, 0, "a whiteout is a device that anybody may make");
}
