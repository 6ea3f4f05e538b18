//! Layers that want out of their root, or to take all the time and all the handles of the machine.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use support::{Place, both, open, paths, root};
use windlass_rootfs::apply::{Options, apply};
use windlass_testkit::{Layer, Tree, assert_same};

/// What must not change, whatever a layer does.
fn outside(place: &Place) -> Tree {
    Tree::read(place.outside())
}

/// Layers that try to get at a folder beside their root. Each applies in both ways, or fails in both; nothing outside changes.
fn attempts(there: &Path) -> Vec<(&'static str, Vec<Layer>)> {
    let target = |name: &str| there.join(name);
    // As many `..` as lead to the real root from anywhere.
    let up = PathBuf::from("../".repeat(40));
    let relative = up.join(there.strip_prefix("/").expect("it is absolute"));
    let bad = b"written by a layer";
    vec![
        ("a path with dots", vec![root().file("../outside/file", 0o777, bad)]),
        ("an absolute path", vec![root().file(target("file"), 0o777, bad)]),
        (
            "a link out, then a file through it",
            vec![root().symlink("out", there).file("out/file", 0o777, bad)],
        ),
        (
            "a relative link out, then a file through it",
            vec![root().symlink("out", &relative).file("out/file", 0o777, bad)],
        ),
        (
            "a link out in a lower layer",
            vec![root().symlink("out", there), root().file("out/file", 0o777, bad)],
        ),
        (
            "a link to a file out, then a file over it",
            vec![root().symlink("out", target("file")).file("out", 0o777, bad)],
        ),
        (
            "a link to a file out below, then a file over it",
            vec![root().symlink("out", target("file")), root().file("out", 0o777, bad)],
        ),
        (
            "a link out, then a folder over it",
            vec![root().symlink("out", there).dir("out", 0o777).owner(7, 7).mtime(7)],
        ),
        (
            "a folder, then a link out in its place, whose times come last",
            vec![root().dir("out", 0o777).mtime(7).symlink("out", there)],
        ),
        (
            "a folder below a folder that becomes a link",
            vec![
                root()
                    .dir("a", 0o755)
                    .dir("a/outside", 0o777)
                    .mtime(7)
                    .symlink("a", there.parent().expect("it has one")),
            ],
        ),
        ("a hard link with dots", vec![root().hardlink("hard", "../outside/file").file("hard", 0o777, bad)]),
        ("an absolute hard link", vec![root().hardlink("hard", target("file"))]),
        (
            "a hard link through a link out",
            vec![root().symlink("out", there).hardlink("hard", "out/file").file("hard", 0o777, bad)],
        ),
        (
            "a hard link through a link out below",
            vec![root().symlink("out", there), root().hardlink("hard", "out/file")],
        ),
        (
            "a hard link to a link out, then a file over it",
            vec![root().symlink("out", target("file")).hardlink("hard", "out").file("hard", 0o777, bad)],
        ),
        (
            "a hard link to a link out, then a file through it",
            vec![root().symlink("out", there).hardlink("hard", "out").file("hard/file", 0o777, bad)],
        ),
        (
            "a hard link whose target becomes a link",
            vec![
                root()
                    .file("a", 0o644, b"")
                    .hardlink("b", "a")
                    .symlink("a", target("file"))
                    .hardlink("b", "a")
                    .file("b", 0o777, bad),
            ],
        ),
        ("a whiteout through a link out", vec![root().symlink("out", there), root().whiteout("out/file")]),
        ("a whiteout with dots", vec![root().file("a/../../outside/.wh.file", 0o644, b"")]),
        ("an opaque link out", vec![root().symlink("out", there), root().opaque("out")]),
        ("a whiteout of the folder above", vec![root().file(".wh...", 0o644, b"")]),
        ("a whiteout of this folder", vec![root().file(".wh..", 0o644, b"")]),
        ("a whiteout of a name with a slash", vec![root().dir(".wh.a", 0o755)]),
        (
            "a chain of links",
            vec![root().symlink("a", "b/c").symlink("b", ".").symlink("c", "../../..").file(
                Path::new("a").join(there.strip_prefix("/").expect("it is absolute")).join("file"),
                0o777,
                bad,
            )],
        ),
        (
            "a link to the folder above in a moved folder",
            vec![
                root().dir("d", 0o755).symlink("d/up", ".."),
                root().symlink("l", "d").file("l/up/up/up/outside/file", 0o777, bad),
            ],
        ),
        (
            "a magic link",
            vec![
                root().symlink("out", "/proc/self/root"),
                root().file(
                    Path::new("out").join(target("file").strip_prefix("/").expect("it is absolute")),
                    0o777,
                    bad,
                ),
            ],
        ),
        (
            "a handle of ours",
            vec![root().symlink("out", "/proc/self/fd/1"), root().file("out/file", 0o777, bad)],
        ),
        ("the root as a link", vec![root().symlink(".", there)]),
        ("the root as a file", vec![root().file("/", 0o777, bad)]),
        ("the root as a hard link", vec![root().hardlink("hard", "/")]),
        ("a device that hides", vec![root().device("hole", 0o600, 0, 0)]),
        ("a device that hides, by overflow", vec![root().device("hole", 0o600, 0, 1 << 20)]),
        (
            "marks of overlayfs",
            vec![
                root()
                    .dir("d", 0o755)
                    .xattr("trusted.overlay.redirect", b"/outside")
                    .xattr("user.overlay.redirect", b"/outside"),
            ],
        ),
        (
            "a file, a folder through it",
            vec![root().file("f", 0o644, b"").dir("f/g", 0o755).symlink("f/g/out", there).file(
                "f/g/out/file",
                0o777,
                bad,
            )],
        ),
        ("a fifo in the place of a file that is opened", vec![root().fifo("f", 0o666).file("f", 0o644, bad)]),
    ]
}

#[test]
fn nothing_outside_the_root_is_touched() {
    let place = Place::new();
    for (what, layers) in attempts(&place.outside()) {
        let before = outside(&place);
        let results = [support::remove(&layers), support::overlay(&layers)];
        assert_same(&before, &outside(&place));
        match &results {
            [Ok(removed), Ok(overlaid)] => {
                let differences = removed.diff(overlaid);
                assert!(differences.is_empty(), "{what}: {differences:?}");
                for node in removed.nodes.values() {
                    assert!(node.xattrs.is_empty(), "{what}: no marks");
                }
            }
            [Err(_), Err(_)] => {}
            _ => panic!("{what}: {results:?}"),
        }
        // Also beside the root itself, and the root moved nowhere.
        let beside = Place::new();
        let untouched = outside(&beside);
        for layer in &layers {
            let _ = beside.apply(&layer.tar(), &Options::default());
        }
        assert_same(&untouched, &outside(&beside));
        assert_eq!(fs::read_dir(beside.folder.path()).expect("it is there").count(), 2, "{what}");
    }
}

#[test]
fn nothing_outside_is_touched_while_another_process_changes_the_tree() {
    let place = Place::new();
    let before = outside(&place);
    let (root, there) = (place.root(), place.outside());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Swaps the folder, and what is in it, for links out of the root, as fast as it can.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (folder, aside, link) = (root.join("d"), root.join("aside"), root.join("link"));
                let _ = std::os::unix::fs::symlink(&there, &link);
                let _ = fs::rename(&folder, &aside);
                let _ = fs::rename(&link, &folder);
                let _ = fs::remove_file(&folder);
                let _ = fs::rename(&aside, &folder);
                for name in ["file", "fifo"] {
                    let _ = fs::remove_file(folder.join(name));
                    let _ = std::os::unix::fs::symlink(there.join("file"), folder.join(name));
                }
            }
        });
        let layer = support::root()
            .dir("d", 0o777)
            .owner(7, 7)
            .mtime(7)
            .file("d/file", 0o4777, b"written by a layer")
            .owner(7, 7)
            .xattr("user.x", b"x")
            .fifo("d/fifo", 0o4777)
            .owner(7, 7)
            .dir("d/sub", 0o777)
            .file("d/sub/file", 0o777, b"x")
            .file("d/file", 0o777, b"again")
            .whiteout("d/old")
            .opaque("d");
        let tar = layer.tar();
        for _ in 0..150 {
            // It may fail: what it made is gone under its hands.
            let _ = apply(&tar[..], &open(&root), &Options::default());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_same(&before, &outside(&place));
}

/// Layers whose entries come in an order that would cost the most, were they searched for each other. `benches/apply.rs` says what
/// they cost.
#[test]
fn entries_that_undo_each_other_leave_the_same_on_every_driver() {
    let each = |start: Layer, make: &dyn Fn(Layer, usize) -> Layer| (0..300).fold(start, make);
    let wide = |layer: Layer| each(layer, &|layer, n| layer.file(format!("d/{n}"), 0o644, b""));
    let implied = each(root(), &|layer, n| layer.file(format!("{n}/f"), 0o644, b""));
    let links = each(root(), &|layer, n| layer.hardlink(format!("l/{n}"), "below"));
    let in_turn = |layer: Layer, n: usize| {
        if n.is_multiple_of(2) { layer.dir("d", 0o755) } else { layer.file("d", 0o644, b"") }
    };
    for (what, layer, count) in [
        ("whiteouts of one folder", each(wide(root()), &|layer, _| layer.whiteout("d")), 302),
        ("marks in one folder", each(wide(root()), &|layer, _| layer.opaque("d")), 302),
        ("marks at the root", each(wide(root()), &|layer, _| layer.opaque("")), 301),
        ("implied folders, then declared", each(implied, &|layer, n| layer.dir(n.to_string(), 0o755)), 603),
        ("folders and files in turn", each(wide(root()), &in_turn), 2),
        ("links, then replaced", each(links, &|layer, n| layer.file(format!("l/{n}"), 0o644, b"")), 304),
        ("whiteouts of nothing", each(root(), &|layer, n| layer.whiteout(format!("w/{n}"))), 3),
    ] {
        let lower = root().file("below", 0o644, b"").dir("d", 0o755).file("d/old", 0o644, b"");

        let tree = both(&[lower, layer]);

        assert_eq!(paths(&tree).len(), count, "{what}");
    }
}

#[test]
fn global_headers_cost_once() {
    let mut globals = Vec::new();
    for n in 0..20_000 {
        let record = format!("comment.{n:05}={}\n", "x".repeat(100));
        globals.extend(format!("{} {record}", record.len() + 4).into_bytes());
    }
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XGlobalHeader);
    header.set_size(globals.len() as u64);
    header.set_cksum();
    globals.splice(0..0, header.as_bytes().iter().copied());
    globals.resize(globals.len().next_multiple_of(512), 0);
    let layer = (0..1000).fold(root().raw(&globals), |layer, n| layer.file(n.to_string(), 0o644, b""));

    let tree = both(&[layer]);

    assert_eq!(paths(&tree).len(), 1000);
}
