//! One meaning for a layer: every driver shows the same tree, and what is hostile is refused and leaves nothing.

use std::{fs, path::Path, sync::Arc};

use proptest::prelude::*;
use tempfile::TempDir;
use windlass_content::{Ingest, Ingester, Labels, LocalStore, Options, WriterExt};
use windlass_rootfs::{Error, Unpacker};
use windlass_snapshot::{
    Durability, Native, Overlay, Snapshotter,
    mount::{mount_all, unmount},
};
use windlass_testkit::{Image, ImageBuilder, Layer, Tree, assert_same};

/// A store with an image, and all drivers that work everywhere.
struct Bench {
    folder: TempDir,
    store: LocalStore,
    drivers: Vec<Arc<dyn Snapshotter>>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let store = LocalStore::open(folder.path().join("content"), Options::default()).expect("it opens");
        let overlay =
            Overlay::open(&folder.path().join("overlay"), Durability::Fast).expect("overlayfs works here");
        let native = Native::open(&folder.path().join("native"), Durability::Fast).expect("it opens");
        let mut drivers: Vec<Arc<dyn Snapshotter>> = vec![Arc::new(overlay), Arc::new(native)];
        #[cfg(feature = "erofs")]
        {
            let erofs = windlass_snapshot::Erofs::open(&folder.path().join("erofs"), Durability::Fast);
            drivers.push(Arc::new(erofs.expect("EROFS works here")));
        }
        Self { folder, store, drivers }
    }

    async fn add(&self, image: &Image) {
        let descriptors = [vec![image.root.clone(), image.config()], image.layers()].concat();
        for descriptor in descriptors {
            let key = descriptor.digest().to_string();
            if let Ingest::Open(mut writer) = self.store.ingest(&key, &descriptor).await.expect("it opens") {
                writer.write(image.blob(descriptor.digest())).await.expect("it fits");
                writer.commit(Labels::new()).await.expect("the bytes are right");
            }
        }
    }

    /// What a driver makes of an image.
    async fn unpack(&self, image: &Image, driver: usize) -> Result<Tree, Error> {
        self.add(image).await;
        let snapshotter = self.drivers[driver].clone();
        let unpacker = Unpacker::new(Arc::new(self.store.clone()), snapshotter.clone());
        let chain_id = unpacker.unpack(&image.root).await?.chain_id.expect("it has layers").to_string();
        let target = self.folder.path().join("mnt");
        fs::create_dir_all(&target).expect("it can be made");
        let mounts = snapshotter.view("view", Some(&chain_id)).expect("it is there");
        mount_all(&mounts, &target).expect("it can be mounted");
        let tree = Tree::read(&target);
        unmount(&target).expect("it is mounted");
        snapshotter.remove("view").expect("it is there");
        Ok(tree.ignore_overlay_xattrs())
    }

    /// What all drivers make of an image, which must be the same.
    async fn unpack_on_all(&self, layers: Vec<Layer>) -> Tree {
        let image = image(layers);
        let overlay = self.unpack(&image, 0).await.expect("overlay unpacks it");
        let native = self.unpack(&image, 1).await.expect("native unpacks it");
        assert_same(&overlay, &native);
        for driver in 2..self.drivers.len() {
            let other = self.unpack(&image, driver).await.expect("all others unpack it");
            assert_same(&other, &native);
        }
        native
    }
}

fn image(layers: Vec<Layer>) -> Image {
    layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.nodes.contains_key(Path::new(path))
}

fn root() -> Layer {
    Layer::new().dir("./", 0o755)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_only_a_lower_layer_declares_keeps_its_owner_mode_and_times() {
    let lower = root().dir("tmp", 0o1777).owner(7, 8).mtime(1_000_000).dir("tmp/in", 0o700);
    let upper = Layer::new().file("tmp/in/file", 0o644, b"x");

    let tree = Bench::new().unpack_on_all(vec![lower, upper]).await;

    let tmp = &tree.nodes[Path::new("tmp")];
    assert_eq!((tmp.mode & 0o7777, tmp.uid, tmp.gid), (0o1777, 7, 8));
    assert_eq!(tree.nodes[Path::new("tmp/in")].mode & 0o7777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_below_a_lower_link_is_where_the_link_leads() {
    let lower = root().dir("real", 0o750).file("real/old", 0o644, b"old").symlink("link", "real");
    let upper = Layer::new().file("link/new", 0o644, b"new");

    let tree = Bench::new().unpack_on_all(vec![lower, upper]).await;

    assert!(has(&tree, "real/new") && has(&tree, "real/old") && has(&tree, "link"));
    assert!(!has(&tree, "link/new"), "the link is still a link");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hard_link_to_a_lower_file_is_that_file() {
    let lower = root().dir("data", 0o755).file("data/target", 0o640, b"content").owner(3, 4);
    let upper = Layer::new().dir("data", 0o755).hardlink("data/link", "data/target");

    let tree = Bench::new().unpack_on_all(vec![lower, upper]).await;

    let (link, target) = (&tree.nodes[Path::new("data/link")], &tree.nodes[Path::new("data/target")]);
    assert_eq!((link.uid, link.mode), (target.uid, target.mode));
    assert_eq!(link.uid, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let lower = root()
        .file("a", 0o644, b"")
        .dir("d", 0o755)
        .file("d/old", 0o644, b"")
        .dir("o", 0o755)
        .file("o/old", 0o644, b"")
        .dir("r", 0o755)
        .file("r/old", 0o644, b"");
    let upper = root()
        .whiteout("a")
        .whiteout("a")
        .whiteout("never")
        .dir("o", 0o755)
        .file("o/new", 0o644, b"")
        .opaque("o")
        .whiteout("r")
        .dir("r", 0o755)
        .file("r/new", 0o644, b"")
        .dir("d", 0o755)
        .file("d/new", 0o644, b"")
        .whiteout("d");

    let tree = Bench::new().unpack_on_all(vec![lower, upper]).await;

    for gone in ["a", "never", "o/old", "r/old", "d/old"] {
        assert!(!has(&tree, gone), "{gone} is hidden");
    }
    for kept in ["o/new", "r/new", "d/new"] {
        assert!(has(&tree, kept), "{kept} is of the same layer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_replaced_by_anything() {
    let lower = root()
        .file("f", 0o644, b"")
        .dir("d", 0o755)
        .file("d/x", 0o644, b"")
        .symlink("s", "d")
        .fifo("p", 0o600);
    let upper = root()
        .dir("f", 0o711)
        .file("d", 0o4755, b"now a file")
        .dir("s", 0o700)
        .file("p", 0o644, b"")
        .xattr("user.key", b"value")
        .symlink("n", "/nowhere")
        .device("null", 0o666, 1, 3);

    let tree = Bench::new().unpack_on_all(vec![lower, upper]).await;

    assert!(!has(&tree, "d/x"));
    assert_eq!(tree.nodes[Path::new("d")].mode & 0o7777, 0o4755, "set-user-id survives the change of owner");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_hostile_is_refused_and_leaves_nothing() {
    let outside = tempfile::tempdir().expect("a temporary folder can be made");
    let there = outside.path().to_str().expect("it is UTF-8");
    for (layer, why) in [
        (Layer::new().file("../escaped", 0o644, b"x"), "`..`"),
        (Layer::new().hardlink("link", "../../etc/passwd"), "`..`"),
        (Layer::new().hardlink("link", "nowhere"), "no layer below"),
        (Layer::new().file(".wh.", 0o644, b""), "hides nothing"),
        (Layer::new().device("hole", 0o600, 0, 0), "0/0"),
        (Layer::new().symlink("./", "/"), "the root"),
        (Layer::new().raw(&[7; 2048]), "tar"),
    ] {
        let bench = Bench::new();
        let image = image(vec![layer]);
        for (number, driver) in bench.drivers.iter().enumerate() {
            let err = bench.unpack(&image, number).await.expect_err(why);
            let chain = format!("{err}: {:?}", std::error::Error::source(&err).map(ToString::to_string));
            assert!(chain.contains(why), "{why}: {chain}");
            let mut left = 0;
            driver
                .walk(&mut |_| {
                    left += 1;
                    std::ops::ControlFlow::Continue(())
                })
                .expect("it lists");
            assert_eq!(left, 0, "{why} with {driver:?}");
        }
    }

    // A link that points out of the root leads nowhere outside.
    let through = root().symlink("out", there).dir(&there[1..], 0o755).file("out/file", 0o644, b"x");
    Bench::new().unpack_on_all(vec![through]).await;
    assert_eq!(fs::read_dir(outside.path()).expect("it is there").count(), 0, "nothing was written outside");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_the_one_in_the_config_is_refused() {
    let other = Layer::new().file("other", 0o644, b"").diff_id().to_string();
    let image = ImageBuilder::new()
        .layer(Layer::new().file("file", 0o644, b"content"))
        .config(move |config| config["rootfs"]["diff_ids"] = serde_json::json!([other]))
        .build();
    let bench = Bench::new();
    for driver in 0..bench.drivers.len() {
        let err = bench.unpack(&image, driver).await.expect_err("it is another");
        assert!(matches!(err, Error::DiffId { .. }), "{err:?}");
    }
}

/// One entry of a random layer: few names, so that they meet often.
fn entry() -> impl Strategy<Value = (u8, usize)> {
    (0..7u8, 0..PATHS.len())
}

const PATHS: [&str; 7] = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "c"];

fn layer(entries: &[(u8, usize)], number: usize) -> Layer {
    // Within one layer every path is there once: a folder where something is below it, else as drawn.
    let mut kinds = std::collections::BTreeMap::new();
    for &(kind, path) in entries {
        kinds.insert(PATHS[path], kind);
    }
    let names: Vec<_> = kinds.keys().copied().collect();
    kinds.into_iter().fold(root().mtime(5), |layer, (path, kind)| {
        let below = names.iter().any(|other| other.starts_with(&format!("{path}/")));
        let content = format!("{number}");
        match kind {
            _ if below => layer.dir(path, 0o755).mtime(6),
            0 | 1 => layer.file(path, 0o644, content.as_bytes()).mtime(7),
            2 => layer.dir(path, 0o700).mtime(8),
            3 | 4 => layer.whiteout(path),
            5 => layer.dir(path, 0o755).mtime(9).opaque(path),
            _ => layer.symlink(path, "nowhere").mtime(9),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn random_layers_are_the_same_tree_on_every_driver(
        layers in proptest::collection::vec(proptest::collection::vec(entry(), 0..5), 1..5)
    ) {
        let layers: Vec<_> = layers.iter().enumerate().map(|(number, entries)| layer(entries, number)).collect();
        let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
        runtime.block_on(async { Bench::new().unpack_on_all(layers).await });
    }
}
