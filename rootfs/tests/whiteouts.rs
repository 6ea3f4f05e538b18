//! Whiteouts hide lower layers and nothing of their own, in whatever order entries come, and on every driver.

mod support;

use std::path::Path;

use proptest::prelude::*;
use support::{both, overlay, paths, remove, root};
use windlass_testkit::Layer;

/// What most rows are put on.
fn lower() -> Layer {
    root()
        .file("file", 0o644, b"old")
        .symlink("link", "folder")
        .symlink("dangling", "nowhere/at/all")
        .dir("folder", 0o1750)
        .owner(5, 6)
        .mtime(7)
        .xattr("user.of", b"lower")
        .file("folder/old", 0o644, b"old")
        .dir("folder/sub", 0o700)
        .owner(7, 8)
        .mtime(9)
        .file("folder/sub/old", 0o644, b"old")
        .dir("empty", 0o755)
}

/// All that `lower` has but what begins with one of these.
fn lower_without(gone: &[&str]) -> Vec<String> {
    let lower = ["dangling", "empty", "file", "folder", "folder/old", "folder/sub", "folder/sub/old", "link"];
    let is_gone = |path: &str| gone.iter().any(|gone| Path::new(path).starts_with(gone));
    lower.iter().filter(|path| !is_gone(path)).map(|path| (*path).to_owned()).collect()
}

#[test]
fn what_is_hidden_is_gone_and_what_the_layer_has_stays() {
    let new = |layer: Layer, path: &str| layer.file(path, 0o600, b"new");
    for (what, layer, gone, there) in [
        ("a file", root().whiteout("file"), &["file"][..], &[][..]),
        ("a file, twice", root().whiteout("file").whiteout("file"), &["file"], &[]),
        ("a link", root().whiteout("link"), &["link"], &[]),
        ("a folder that is not empty", root().whiteout("folder"), &["folder"], &[]),
        ("nothing", root().whiteout("never"), &[], &[]),
        ("nothing, in a folder that is nowhere", root().whiteout("no/where/never"), &[], &[]),
        ("nothing, in a file", root().whiteout("file/never"), &[], &[]),
        ("below a link", root().whiteout("link/old"), &["folder/old"], &[]),
        ("a whole folder below a link", root().whiteout("link/sub"), &["folder/sub"], &[]),
        ("all below a link", root().opaque("link"), &["folder/old", "folder/sub"], &[]),
        ("before an entry of the name", new(root().whiteout("file"), "file"), &["file"], &["file"]),
        ("after an entry of the name", new(root(), "file").whiteout("file"), &["file"], &["file"]),
        (
            "a folder, made again",
            new(root().whiteout("folder").dir("folder", 0o700), "folder/new"),
            &["folder"],
            &["folder", "folder/new"],
        ),
        (
            "a folder, made again before",
            new(root().dir("folder", 0o700), "folder/new").whiteout("folder"),
            &["folder"],
            &["folder", "folder/new"],
        ),
        (
            "a folder, implied again",
            new(root().whiteout("folder"), "folder/sub/new"),
            &["folder"],
            &["folder", "folder/sub", "folder/sub/new"],
        ),
        (
            "a folder, implied before",
            new(root(), "folder/sub/new").whiteout("folder"),
            &["folder"],
            &["folder", "folder/sub", "folder/sub/new"],
        ),
        (
            "an opaque folder, mark last",
            new(root().dir("folder", 0o700), "folder/new").opaque("folder"),
            &["folder"],
            &["folder", "folder/new"],
        ),
        (
            "an opaque folder, mark first",
            new(root().opaque("folder").dir("folder", 0o700), "folder/new"),
            &["folder"],
            &["folder", "folder/new"],
        ),
        (
            "an opaque folder, mark before the folder's entry and in the middle",
            new(new(root(), "folder/new").opaque("folder").dir("folder", 0o700), "folder/sub/new"),
            &["folder"],
            &["folder", "folder/new", "folder/sub", "folder/sub/new"],
        ),
        (
            "an opaque folder, twice, that the layer does not declare",
            root().opaque("folder").opaque("folder"),
            &["folder/old", "folder/sub"],
            &[],
        ),
        ("an opaque folder that is nowhere", root().opaque("never/there"), &[], &[]),
        ("an opaque file", root().opaque("file"), &[], &[]),
        (
            "the root, mark last",
            new(root(), "new").opaque(""),
            &["dangling", "empty", "file", "folder", "link"],
            &["new"],
        ),
        (
            "the root, mark first, with something kept of a name below",
            new(root().opaque("").dir("folder", 0o700), "folder/sub/new"),
            &["dangling", "empty", "file", "folder", "link"],
            &["folder", "folder/sub", "folder/sub/new"],
        ),
        (
            "whiteouts in what is hidden, after",
            new(root().whiteout("folder"), "new").whiteout("folder/old").whiteout("folder/sub/old"),
            &["folder"],
            &["new"],
        ),
        (
            "whiteouts in what is hidden, before",
            root().whiteout("folder/old").whiteout("folder/sub/old").whiteout("folder"),
            &["folder"],
            &[],
        ),
        (
            "whiteouts in an opaque folder",
            root().whiteout("folder/sub/old").dir("folder", 0o755).opaque("folder").whiteout("folder/old"),
            &["folder"],
            &["folder"],
        ),
        (
            "entries beside whiteouts in folders that the layer does not declare",
            new(root().whiteout("folder/sub/old"), "folder/sub/new"),
            &["folder/sub/old"],
            &["folder/sub/new"],
        ),
        (
            "what AUFS left",
            root().dir(".wh..wh.plnk", 0o700).file(".wh..wh.plnk/1.2", 0o600, b"").file(
                ".wh..wh.aufs",
                0o444,
                b"",
            ),
            &[],
            &[],
        ),
        (
            "a link, for a folder behind it that is made again",
            new(root().whiteout("link"), "link/new"),
            &["link"],
            &["link", "link/new"],
        ),
    ] {
        let tree = both(&[lower(), layer]);
        let mut want = lower_without(gone);
        want.extend(there.iter().map(|path| (*path).to_owned()));
        want.sort_unstable();
        want.dedup();
        assert_eq!(paths(&tree), want, "{what}");
    }
}

#[test]
fn a_folder_that_is_hidden_gives_nothing_to_the_one_that_takes_its_place() {
    for (order, layer) in [
        ("whiteout first", root().whiteout("folder").file("folder/sub/new", 0o644, b"")),
        ("whiteout last", root().file("folder/sub/new", 0o644, b"").whiteout("folder")),
    ] {
        let tree = both(&[lower(), layer]);
        for path in ["folder", "folder/sub"] {
            let node = &tree.nodes[Path::new(path)];
            assert_eq!((node.mode, node.uid, node.mtime), (0o755, 0, (0, 0)), "{order}: {path}");
            assert!(node.xattrs.is_empty(), "{order}: {path}");
        }
    }
}

#[test]
fn a_folder_that_is_only_opaque_stays_what_it_is_below() {
    let tree = both(&[lower(), root().file("folder/sub/new", 0o644, b"").opaque("folder")]);

    let [folder, sub] = ["folder", "folder/sub"].map(|path| &tree.nodes[Path::new(path)]);
    assert_eq!((folder.mode, folder.uid, folder.mtime), (0o1750, 5, (7, 0)));
    assert_eq!((sub.mode, sub.uid, sub.mtime), (0o755, 0, (0, 0)), "the one in it is hidden");
}

#[test]
fn anything_takes_the_place_of_anything() {
    type Make = fn(Layer, &str) -> Layer;
    let kinds: [(&str, Make); 6] = [
        ("file", |layer, path| layer.file(path, 0o644, b"content").mtime(3)),
        ("folder", |layer, path| layer.dir(path, 0o711).mtime(4).file(format!("{path}/inner"), 0o600, b"x")),
        ("implied folder", |layer, path| layer.file(format!("{path}/deep/inner"), 0o600, b"x")),
        ("link", |layer, path| layer.symlink(path, "elsewhere").mtime(5)),
        ("fifo", |layer, path| layer.fifo(path, 0o640).mtime(6)),
        ("device", |layer, path| layer.device(path, 0o660, 1, 3).mtime(7)),
    ];
    for (old, below) in kinds {
        for (new, above) in kinds {
            // A link to nothing, below which something is put, is a case of its own.
            if old == "link" && new == "implied folder" {
                continue;
            }
            let in_two = both(&[below(root(), "it"), above(root(), "it")]);
            let in_one = both(&[above(below(root(), "it"), "it")]);
            let differences = in_two.diff(&in_one);
            assert!(differences.is_empty(), "{old}, then {new}: {differences:?}");
            let on_top = both(&[
                root().dir("it", 0o777).file("it/below", 0o644, b""),
                above(below(root(), "it"), "it"),
            ]);
            let kept = old == "folder" || old == "implied folder";
            let merged = kept && (new == "folder" || new == "implied folder");
            assert_eq!(on_top.nodes.contains_key(Path::new("it/below")), merged, "{old}, then {new}");
        }
    }
}

#[test]
fn entries_below_a_link_are_where_it_leads_inside_the_root() {
    for (what, lower, layer, there) in [
        (
            "relative",
            root().dir("a", 0o755).symlink("a/link", "../b").dir("b", 0o750),
            root().file("a/link/new", 0o644, b""),
            "b/new",
        ),
        (
            "absolute",
            root().symlink("link", "/b").dir("b", 0o750),
            root().file("link/new", 0o644, b""),
            "b/new",
        ),
        (
            "above the root",
            root().symlink("link", "../../../b").dir("b", 0o750),
            root().file("link/new", 0o644, b""),
            "b/new",
        ),
        (
            "through another link",
            root().symlink("a", "link").symlink("link", "b").dir("b", 0o750),
            root().file("a/new", 0o644, b""),
            "b/new",
        ),
        (
            "deep",
            root().symlink("link", "b").dir("b", 0o750).dir("b/c", 0o700),
            root().file("link/c/d/new", 0o644, b""),
            "b/c/d/new",
        ),
        ("to nothing", root().symlink("link", "b/c"), root().file("link/new", 0o644, b""), "b/c/new"),
        (
            "to a file",
            root().symlink("link", "b").file("b", 0o644, b""),
            root().file("link/new", 0o644, b""),
            "b/new",
        ),
        ("in a circle", root().symlink("link", "link"), root().file("link/new", 0o644, b""), "link/new"),
        (
            "of the same layer",
            root().dir("b", 0o750),
            root().symlink("link", "b").file("link/new", 0o644, b""),
            "b/new",
        ),
        (
            "of the same layer, to nothing",
            root(),
            root().symlink("link", "b").file("link/new", 0o644, b""),
            "b/new",
        ),
        (
            "with something there",
            root().symlink("link", "b").dir("b", 0o750).file("b/new", 0o644, b"old"),
            root().file("link/new", 0o644, b"new"),
            "b/new",
        ),
        (
            "a folder",
            root().symlink("link", "b").dir("b", 0o750).dir("b/c", 0o700).file("b/c/old", 0o644, b""),
            root().dir("link/c", 0o711).file("link/c/new", 0o600, b""),
            "b/c/new",
        ),
        (
            "hard links",
            root().symlink("link", "b").dir("b", 0o750).file("b/old", 0o644, b"old"),
            root().hardlink("hard", "link/old"),
            "hard",
        ),
    ] {
        let tree = both(&[lower, layer]);
        assert!(tree.nodes.contains_key(Path::new(there)), "{what}: {:?}", paths(&tree));
    }
}

#[test]
fn hard_links_to_what_is_below_are_what_is_below() {
    let below = || {
        root()
            .dir("d", 0o700)
            .owner(3, 4)
            .mtime(5)
            .file("d/file", 0o4711, b"content")
            .owner(1, 2)
            .mtime(3)
            .xattr("user.note", b"x")
            .symlink("d/link", "nowhere")
            .mtime(4)
            .fifo("d/fifo", 0o640)
            .owner(5, 5)
            .mtime(6)
            .device("d/null", 0o666, 1, 3)
            .mtime(8)
    };
    for (what, layer) in [
        ("a file", root().hardlink("new", "d/file")),
        ("one twice", root().hardlink("new", "d/file").hardlink("other", "/d/file").hardlink("third", "new")),
        ("a link", root().hardlink("new", "d/link")),
        ("a fifo", root().hardlink("new", "d/fifo")),
        ("a device", root().hardlink("new", "d/null")),
        ("in the place of another", root().hardlink("d/link", "d/file")),
        (
            "before the name gets another file",
            root().hardlink("new", "d/file").file("d/file", 0o600, b"other"),
        ),
        ("before the name is hidden", root().hardlink("new", "d/file").whiteout("d/file")),
        ("before the folder is hidden", root().hardlink("new", "d/file").whiteout("d")),
        ("and a file in its place", root().hardlink("new", "d/file").file("new", 0o600, b"other")),
        ("and a folder in its place", root().hardlink("new", "d/file").dir("new", 0o700)),
        ("and something below it", root().hardlink("new", "d/file").file("new/inner", 0o700, b"")),
        ("itself", root().hardlink("d/file", "d/file")),
        ("beside a whiteout of its name", root().hardlink("new", "d/file").whiteout("new")),
        (
            "what is in the folder that it replaces",
            root().file("new/inner", 0o600, b"own").hardlink("new", "new/inner"),
        ),
    ] {
        let tree = both(&[below(), layer]);
        assert!(tree.nodes.contains_key(Path::new("d")) || what.contains("hidden"), "{what}");
    }
    for (what, layer) in [
        ("nothing", root().hardlink("new", "d/never")),
        ("in no folder", root().hardlink("new", "never/never")),
        ("a folder", root().hardlink("new", "d")),
        ("what is hidden", root().whiteout("d/file").hardlink("new", "d/file")),
        ("what is in a hidden folder", root().whiteout("d").hardlink("new", "d/file")),
        ("what is in an opaque folder", root().opaque("d").hardlink("new", "d/file")),
    ] {
        let layers = [below(), layer];
        for answer in [remove(&layers), overlay(&layers)] {
            let err = answer.expect_err(what);
            assert!(err.to_string().contains("\"new\""), "{what}: {err}");
        }
    }
}

/// One entry of a random layer: few names, so that they meet often.
fn entry() -> impl Strategy<Value = (u8, usize)> {
    (0..9u8, 0..PATHS.len())
}

const PATHS: [&str; 8] = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "c"];

/// Entries in any order, also several of one path.
fn layer(entries: &[(u8, usize)], number: usize) -> Layer {
    entries.iter().enumerate().fold(root(), |layer, (index, (kind, path))| {
        let (path, time) = (PATHS[*path], 10 + index as i64);
        match kind {
            0 | 1 => layer.file(path, 0o644, format!("{number}-{index}").as_bytes()).mtime(time),
            2 => layer.dir(path, 0o700).mtime(time).xattr("user.n", &[number as u8]),
            3 | 4 => layer.whiteout(path),
            5 => layer.opaque(path),
            6 => layer.fifo(path, 0o600).mtime(time),
            7 => layer.dir(path, 0o755).mtime(time).opaque(path),
            _ => layer.opaque(""),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]
    #[test]
    fn random_layers_are_the_same_in_both_ways(
        layers in proptest::collection::vec(proptest::collection::vec(entry(), 0..8), 1..4)
    ) {
        let layers: Vec<_> = layers.iter().enumerate().map(|(number, entries)| layer(entries, number)).collect();
        both(&layers);
    }
}
