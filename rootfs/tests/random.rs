//! Random layers are the same tree, unpacked all at once or one by one, on every driver.

#[path = "../benches/unpack/one_by_one.rs"]
mod one_by_one;

use std::{fs, sync::Arc};

use one_by_one::OneByOne;
use proptest::{prelude::*, test_runner::TestRunner};
use windlass_content::{Ingest, Ingester, Labels, LocalStore, Options, WriterExt};
use windlass_rootfs::{Error, Unpacker};
use windlass_snapshot::{
    Btrfs, Durability, Erofs, ErofsOptions, Native, Overlay, Snapshotter,
    erofs::{Form, LayerForm},
    mount::{mount_all, unmount},
};
use windlass_testkit::{Image, ImageBuilder, Layer, LoopDisk, Tree};

/// Few names, so that entries meet often: in the same layer, and in layers above each other.
const PATHS: [&str; 14] = [
    "a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "b/a/b", "a/b/a", "c", "link", "link/a", "link/b/a",
    "a/link",
];
/// How many of them, the first ones, an image has where entries meet even more often: most links are then in circles.
const FEW: usize = 8;

const ON_MOUNTS: &str = "overlays, one by one";

/// One entry: what, where, and a number that it makes something of.
type Entry = (Kind, usize, usize);

#[derive(Clone, Copy, Debug)]
enum Kind {
    File,
    Folder,
    Link,
    LinkUp,
    HardLink,
    Fifo,
    Whiteout,
    Opaque,
}

/// An entry with one of the first `paths`.
fn entry(paths: usize) -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        4 => Just(Kind::File),
        3 => Just(Kind::Folder),
        3 => Just(Kind::Link),
        2 => Just(Kind::LinkUp),
        2 => Just(Kind::HardLink),
        1 => Just(Kind::Fifo),
        3 => Just(Kind::Whiteout),
        1 => Just(Kind::Opaque),
    ];
    (kind, 0..paths, 0..paths)
}

fn entries_of_layers(paths: usize) -> impl Strategy<Value = Vec<Vec<Entry>>> {
    proptest::collection::vec(proptest::collection::vec(entry(paths), 0..6), 1..6)
}

fn layer(entries: &[Entry], number: usize) -> Layer {
    // Without a root, it takes that of the layers below.
    let root =
        if number % 3 == 2 { Layer::new() } else { Layer::new().dir("./", 0o755).mtime(number as i64) };
    entries.iter().fold(root, |layer, &(kind, path, other)| {
        let (path, other, time) = (PATHS[path], PATHS[other], (100 * number + other) as i64);
        match kind {
            Kind::File => layer
                .file(path, 0o640, format!("{number} {other}").as_bytes())
                .owner(number as u64, 1)
                .mtime(time)
                .xattr("user.layer", &[number as u8]),
            Kind::Folder => layer.dir(path, 0o1700 + number as u32).owner(2, number as u64).mtime(time),
            Kind::Link => layer.symlink(path, format!("/{other}")).mtime(time),
            Kind::LinkUp => layer.symlink(path, format!("../{other}/..")).mtime(time),
            Kind::HardLink => layer.hardlink(path, other),
            Kind::Fifo => layer.fifo(path, 0o600).mtime(time),
            Kind::Whiteout => layer.whiteout(path),
            Kind::Opaque => layer.opaque(path),
        }
    })
}

async fn store(folder: &std::path::Path, image: &Image) -> LocalStore {
    let options = Options::default().durability(windlass_content::Durability::Fast);
    let store = LocalStore::open(folder.join("content"), options).expect("there is room");
    for descriptor in [vec![image.root.clone(), image.config()], image.layers()].concat() {
        let key = descriptor.digest().to_string();
        if let Ingest::Open(mut writer) = store.ingest(&key, &descriptor).await.expect("it opens") {
            writer.write(image.blob(descriptor.digest())).await.expect("it fits");
            writer.commit(Labels::new()).await.expect("the bytes are right");
        }
    }
    store
}

async fn unpack(
    folder: &std::path::Path,
    store: &LocalStore,
    image: &Image,
    snapshotter: Arc<dyn Snapshotter>,
) -> Result<Tree, Error> {
    let unpacker = Unpacker::new(Arc::new(store.clone()), snapshotter.clone());
    let chain_id = unpacker.unpack(&image.root).await?.chain_id.expect("it has layers").to_string();
    let target = folder.join("mnt");
    fs::create_dir_all(&target).expect("it can be made");
    let mounts = snapshotter.view("view", Some(&chain_id)).expect("it is there");
    mount_all(&mounts, &target).expect("it can be mounted");
    let tree = Tree::read(&target);
    unmount(&target).expect("it is mounted");
    Ok(tree.ignore_overlay_xattrs())
}

fn without_links(tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    tree.nodes.values_mut().for_each(|node| node.links.clear());
    tree
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Asserts that all ways give the same tree, or that all refuse the image. `disk` is a btrfs.
async fn is_the_same(layers: Vec<Layer>, disk: &LoopDisk) -> Result<(), TestCaseError> {
    let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let folder = tempfile::tempdir().expect("there is room");
    let on_disk = tempfile::tempdir_in(disk.path()).expect("there is room");
    let folder = folder.path();
    let store = store(folder, &image).await;
    let fast = Durability::Fast;
    let overlay = |name: &str| Overlay::open(&folder.join(name), fast).expect("overlayfs works here");
    let erofs = |name: &str, form, layers| {
        let options = ErofsOptions::default().form(form).layers(layers);
        Erofs::open_with(&folder.join(name), fast, options).expect("EROFS works here")
    };
    let ways: [(&str, Arc<dyn Snapshotter>); 7] = [
        ("copies, one by one", Arc::new(Native::open(&folder.join("native"), fast).expect("it opens"))),
        ("overlays, all at once", Arc::new(overlay("at-once"))),
        (ON_MOUNTS, Arc::new(OneByOne(overlay("one-by-one")))),
        ("images, merged", Arc::new(erofs("merged", Form::Merged, LayerForm::Full))),
        ("images, stacked", Arc::new(erofs("stacked", Form::Stacked, LayerForm::Full))),
        ("indexes, merged", Arc::new(erofs("index", Form::Merged, LayerForm::Index))),
        ("subvolumes", Arc::new(Btrfs::open(on_disk.path(), fast).expect("it is a btrfs"))),
    ];
    let mut first: Option<Result<Tree, String>> = None;
    for (way, snapshotter) in ways {
        let unpacked = unpack(folder, &store, &image, snapshotter).await.map_err(|error| chain(&error));
        let Some(first) = &first else {
            first = Some(unpacked);
            continue;
        };
        match (first, &unpacked) {
            (Ok(want), Ok(tree)) if way == ON_MOUNTS => {
                // Overlayfs without an index copies one name of a lower file up, and knows no longer that it had others.
                let differences = without_links(want).diff(&without_links(tree));
                prop_assert!(differences.is_empty(), "{way}:\n{}", differences.join("\n"));
            }
            (Ok(want), Ok(tree)) => {
                let differences = want.diff(tree);
                prop_assert!(differences.is_empty(), "{way}:\n{}", differences.join("\n"));
            }
            (Err(_), Err(_)) => {}
            differ => prop_assert!(false, "{way} takes what is refused else, or refuses it: {differ:?}"),
        }
    }
    Ok(())
}

/// 48 cases, or as many as `PROPTEST_CASES` says.
fn config() -> ProptestConfig {
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = std::env::var_os("PROPTEST_CASES").map_or(48, |_| default.cases);
    ProptestConfig { cases, ..default }
}

#[test]
fn random_layers_are_the_same_tree_in_all_ways() {
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let disk = LoopDisk::btrfs(512 << 20);
    let layers = prop_oneof![entries_of_layers(FEW), entries_of_layers(PATHS.len())];
    let tested = TestRunner::new(config()).run(&layers, |layers| {
        let layers = layers.iter().enumerate().map(|(number, entries)| layer(entries, number));
        runtime.block_on(is_the_same(layers.collect(), &disk))
    });
    tested.unwrap_or_else(|failed| panic!("{failed}"));
}

#[tokio::test]
async fn what_random_layers_have_found_stays_the_same_tree() {
    let disk = LoopDisk::btrfs(512 << 20);
    let root = || Layer::new().dir("./", 0o755);
    let link = || root().symlink("link", "b").dir("b", 0o750).file("b/a", 0o640, b"lower");
    for layers in [
        // The same name, directly and through a lower link, in both orders.
        vec![link(), root().file("link/a", 0o600, b"first").file("b/a", 0o644, b"second")],
        vec![link(), root().file("b/a", 0o644, b"first").file("link/a", 0o600, b"second")],
        // What comes through a link that the layer then hides, or replaces.
        vec![link(), root().file("link/new", 0o600, b"").whiteout("link")],
        vec![link(), root().file("link/new", 0o600, b"").file("link", 0o600, b"")],
        vec![link(), root().file("link/new", 0o600, b"").dir("link", 0o700)],
        // A file with two names, linked again: all are one.
        vec![root().file("a", 0o644, b"").hardlink("b", "a"), root().hardlink("c", "a")],
        // A hard link to nothing that is replaced, one to a folder that its own path implies, and one to itself.
        vec![root(), root().hardlink("new", "never").file("new", 0o600, b"")],
        vec![root().file("a", 0o644, b""), root().hardlink("a/b", "a")],
        vec![root().file("a", 0o644, b""), root().hardlink("a", "a").whiteout("a")],
        vec![
            root().file("a", 0o644, b"").dir("new", 0o700).file("new/old", 0o600, b""),
            root().hardlink("new", "a").file("new/inner", 0o600, b""),
        ],
        // A lower link that leads through links of several layers.
        vec![root().symlink("a", "/link/a"), root().symlink("link", "/a").file("link/a", 0o600, b"")],
        // A hard link to nothing that is replaced by what is no file.
        vec![root(), root().hardlink("c", "a").fifo("c", 0o600)],
        // A hard link to a link below, gone through like a folder; and a link that such a link leads to.
        vec![link(), root().hardlink("other", "link"), root().file("other/new", 0o600, b"")],
        vec![link(), root().hardlink("other", "link").file("other/new", 0o600, b"")],
        vec![root().symlink("a", "link"), link(), root().file("a/new", 0o600, b"").whiteout("a/a")],
        // Links that step back, out of links of their own layer and of those below.
        vec![link(), root().dir("c", 0o700).symlink("c/up", "../link/../new").file("c/up/a", 0o600, b"")],
        vec![
            root().dir("a", 0o700).dir("a/deep", 0o700).symlink("link", "a/deep"),
            root().symlink("b", "link/../beside").file("b/new", 0o600, b""),
        ],
        vec![
            root().dir("a", 0o700).dir("a/deep", 0o700).symlink("link", "/a/deep").symlink("b", "link/.."),
            root().file("b/new", 0o600, b"").whiteout("b/deep"),
        ],
        // Layers that all need those below at hand.
        vec![
            link(),
            root().symlink("c", "link").file("link/c", 0o600, b""),
            root().file("c/new", 0o600, b"").whiteout("c/a"),
            root().hardlink("a", "c/new").file("c/b/a", 0o600, b""),
        ],
        // Circles that go through links below: the link that led into one is no folder, for whiteouts neither.
        vec![root().symlink("b/a", "/b/a/b"), root().symlink("link", "/b/a").whiteout("link/a")],
        vec![
            root().symlink("a/a", "/a/a").symlink("b/a", "/a/a"),
            root().whiteout("b/a/b").fifo("a/a", 0o600).file("b/a/b", 0o640, b""),
        ],
        vec![
            root().symlink("b", "/a/a"),
            root().symlink("a", "/a/a"),
            root().whiteout("a/a").file("b/a", 0o640, b""),
        ],
        // A whiteout through a hard link to a link below; and a link that steps out of what hides all below.
        vec![
            root().file("b/a/b", 0o640, b""),
            root().symlink("a/a", "/b/a"),
            root().hardlink("a", "a/a").whiteout("a/b"),
        ],
        vec![root(), root().fifo("a", 0o600).symlink("a/a", "../a/b/..").hardlink("a", "a/a/a")],
        // A file that takes the place of the link below that it comes through.
        vec![root().symlink("b", "/"), root().file("b/b", 0o640, b"").file("b/a", 0o640, b"")],
    ] {
        is_the_same(layers, &disk).await.expect("all ways agree");
    }
}
