//! Whoever shares snapshots unpacks each layer once, in whatever order they come, and whoever of them fails.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use oci_spec::image::Digest;
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinSet};
use windlass_content::{Ingest, Ingester, Labels, LocalStore, Options, WriterExt};
use windlass_rootfs::{
    Applier, Error, ImageApplier, LayerStream, Result, TarApplier, UNPACK_PREFIX, Unpacked, Unpacker,
    apply::Applied,
};
use windlass_snapshot::{
    Btrfs, Durability, Erofs, Mount, Native, Overlay, Snapshotter, Whiteouts,
    mount::{mount_all, unmount},
};
use windlass_testkit::{Image, ImageBuilder, Layer, LoopDisk, Tree};

/// A store, and a folder of snapshots that each unpacker opens for itself, as processes do.
struct Shared {
    folder: TempDir,
    /// Where `folder` is, if it is on a disk of its own.
    _disk: Option<LoopDisk>,
    store: LocalStore,
    driver: Driver,
    applier: Watched,
}

#[derive(Clone, Copy, Debug)]
enum Driver {
    Overlay,
    Native,
    Erofs,
    Btrfs,
}

const DRIVERS: [Driver; 4] = [Driver::Overlay, Driver::Native, Driver::Erofs, Driver::Btrfs];

impl Shared {
    fn new(driver: Driver) -> Self {
        let disk = matches!(driver, Driver::Btrfs).then(|| LoopDisk::btrfs(512 << 20));
        let above = disk.as_ref().map_or_else(std::env::temp_dir, LoopDisk::path);
        let folder = tempfile::tempdir_in(above).expect("a temporary folder can be made");
        let options = Options::default().durability(windlass_content::Durability::Fast);
        let store = LocalStore::open(folder.path().join("content"), options).expect("it opens");
        Self { folder, _disk: disk, store, driver, applier: Watched::default() }
    }

    async fn with(driver: Driver, images: &[&Image]) -> Self {
        let this = Self::new(driver);
        for image in images {
            let descriptors = [vec![image.root.clone(), image.config()], image.layers()].concat();
            for descriptor in descriptors {
                let key = descriptor.digest().to_string();
                if let Ingest::Open(mut writer) =
                    this.store.ingest(&key, &descriptor).await.expect("it opens")
                {
                    writer.write(image.blob(descriptor.digest())).await.expect("it fits");
                    writer.commit(Labels::new()).await.expect("the bytes are right");
                }
            }
        }
        this
    }

    fn snapshotter(&self) -> Arc<dyn Snapshotter> {
        let root = self.folder.path().join("snapshots");
        match self.driver {
            Driver::Overlay => {
                Arc::new(Overlay::open(&root, Durability::Fast).expect("overlayfs works here"))
            }
            Driver::Native => Arc::new(Native::open(&root, Durability::Fast).expect("it opens")),
            Driver::Erofs => Arc::new(Erofs::open(&root, Durability::Fast).expect("EROFS works here")),
            Driver::Btrfs => Arc::new(Btrfs::open(&root, Durability::Fast).expect("it is a btrfs")),
        }
    }

    fn unpack(&self, image: &Image) -> impl Future<Output = Result<Unpacked>> + Send + use<> {
        let snapshotter = self.snapshotter();
        let inner: Arc<dyn Applier> = match self.driver {
            Driver::Erofs => Arc::new(ImageApplier::new(snapshotter.clone())),
            _ => Arc::new(TarApplier::default()),
        };
        let applier = Applying { inner, watched: self.applier.clone() };
        let unpacker = Unpacker::new(Arc::new(self.store.clone()), snapshotter);
        let (unpacker, manifest) = (unpacker.applier(applier), image.root.clone());
        async move { unpacker.unpack(&manifest).await }
    }

    fn tree(&self, unpacked: &Unpacked) -> Tree {
        let target = self.folder.path().join("mnt");
        fs::create_dir_all(&target).expect("it can be made");
        let name = unpacked.chain_id.as_ref().expect("it has layers").to_string();
        let snapshotter = self.snapshotter();
        let mounts = snapshotter.view("view", Some(&name)).expect("it is there");
        mount_all(&mounts, &target).expect("it can be mounted");
        let tree = Tree::read(&target);
        unmount(&target).expect("it is mounted");
        snapshotter.remove("view").expect("it is there");
        tree
    }

    /// Asserts that nothing half done is left, and that only so many snapshots are there.
    fn has_snapshots(&self, count: usize) {
        let mut names = Vec::new();
        let all = self.snapshotter().walk(&mut |info| {
            names.push(info.name);
            std::ops::ControlFlow::Continue(())
        });
        all.expect("they can be listed");
        assert!(!names.iter().any(|name| name.starts_with(UNPACK_PREFIX)), "{names:?}");
        assert_eq!(names.len(), count, "{names:?}");
    }
}

/// Applies layers, if the one that watches it lets it.
#[derive(Debug)]
struct Applying {
    inner: Arc<dyn Applier>,
    watched: Watched,
}

/// Knows how often layers were applied; some are only when it is told to, and some not at all.
#[derive(Clone, Debug, Default)]
struct Watched {
    applied: Arc<Mutex<BTreeMap<String, usize>>>,
    orders: Arc<Mutex<HashMap<Digest, Order>>>,
}

#[derive(Clone, Debug)]
struct Order {
    begun: Arc<Semaphore>,
    go_on: Arc<Semaphore>,
}

impl Watched {
    /// The next time that this layer is applied, it waits for [`Order::fail`].
    fn hold(&self, layer: &Layer) -> Order {
        let order = Order { begun: Arc::new(Semaphore::new(0)), go_on: Arc::new(Semaphore::new(0)) };
        let digest = windlass_content::hash::sha256(&layer.blob());
        self.orders.lock().expect("nobody panicked").insert(digest, order.clone());
        order
    }

    fn counts(&self) -> Vec<usize> {
        self.applied.lock().expect("nobody panicked").values().copied().collect()
    }

    fn count(&self, layer: &Layer) -> usize {
        let digest = windlass_content::hash::sha256(&layer.blob()).to_string();
        self.applied.lock().expect("nobody panicked").get(&digest).copied().unwrap_or_default()
    }
}

impl Order {
    async fn begun(&self) {
        self.begun.acquire().await.expect("it is open").forget();
    }

    fn fail(&self) {
        self.go_on.add_permits(1);
    }
}

#[async_trait]
impl Applier for Applying {
    async fn apply(
        &self,
        layer: LayerStream,
        mounts: &[Mount],
        below: &[Mount],
        whiteouts: Whiteouts,
    ) -> Result<Applied> {
        let digest = layer.descriptor.digest().clone();
        *self.watched.applied.lock().expect("nobody panicked").entry(digest.to_string()).or_default() += 1;
        let order = self.watched.orders.lock().expect("nobody panicked").remove(&digest);
        if let Some(Order { begun, go_on }) = order {
            begun.add_permits(1);
            go_on.acquire().await.expect("it is open").forget();
            return Err(Error::Tar { entry: None, source: io::Error::other("it was told to") });
        }
        self.inner.apply(layer, mounts, below, whiteouts).await
    }
}

fn layer(name: &str) -> Layer {
    Layer::new().dir("./", 0o755).file(name, 0o644, name.as_bytes())
}

fn image(layers: impl IntoIterator<Item = Layer>) -> Image {
    layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer).build()
}

fn files(tree: &Tree) -> Vec<&Path> {
    tree.nodes.keys().map(std::path::PathBuf::as_path).filter(|path| !path.as_os_str().is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_unpack_each_layer_of_an_image_once() {
    for driver in DRIVERS {
        let image = image(["a", "b", "c", "d"].map(layer));
        let shared = Shared::with(driver, &[&image]).await;

        let unpacking: JoinSet<_> = (0..16).map(|_| shared.unpack(&image)).collect();
        let unpacked = unpacking.join_all().await;

        for unpacked in unpacked {
            assert_eq!(unpacked.expect("it works").manifest, image.root);
        }
        assert_eq!(shared.applier.counts(), [1; 4], "{driver:?}");
        shared.has_snapshots(4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_share_layers_unpack_these_once() {
    for driver in DRIVERS {
        let base = ["a", "b", "c"].map(layer);
        let images: Vec<_> = (0..8)
            .map(|number| {
                image(base.clone().into_iter().chain([layer("d"), layer(&format!("own-{number}"))]))
            })
            .collect();
        let shared = Shared::with(driver, &images.iter().collect::<Vec<_>>()).await;

        let unpacking: JoinSet<_> = images.iter().map(|image| shared.unpack(image)).collect();
        let unpacked = unpacking.join_all().await;

        for unpacked in unpacked {
            assert_eq!(files(&shared.tree(&unpacked.expect("it works"))).len(), 5);
        }
        assert_eq!(shared.applier.counts(), [1; 4 + 8], "{driver:?}");
        shared.has_snapshots(4 + 8);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_share_a_config_are_both_unpacked_from_what_either_brings() {
    for driver in DRIVERS {
        let layers = ["a", "b"].map(layer);
        let gzip = image(layers.clone());
        let zstd = image(layers.map(Layer::zstd));
        assert_eq!(gzip.config().digest(), zstd.config().digest());
        let shared = Shared::with(driver, &[&gzip, &zstd]).await;

        let (one, other) = tokio::join!(shared.unpack(&gzip), shared.unpack(&zstd));

        let (one, other) = (one.expect("it works"), other.expect("it works"));
        assert_eq!((&one.manifest, &other.manifest), (&gzip.root, &zstd.root));
        assert_eq!(one.chain_id, other.chain_id);
        assert_eq!(files(&shared.tree(&other)), [Path::new("a"), Path::new("b")]);
        assert_eq!(shared.applier.counts().iter().sum::<usize>(), 2, "{driver:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_layer_of_somebody_who_fails_makes_it_and_waits_for_nobody_who_waits_for_them() {
    let [a, b, c, d] = ["a", "b", "c", "d"].map(layer);
    let first = image([a.clone()]);
    let second = image([a.clone(), b.clone()]);
    let third = image([a.clone(), b.clone(), c.clone()]);
    let fourth = image([a.clone(), b.clone(), d.clone()]);
    for driver in DRIVERS {
        let shared = Shared::with(driver, &[&first, &second, &third, &fourth]).await;
        let held = shared.applier.hold(&a);
        let failing = tokio::spawn(shared.unpack(&first));
        held.begun().await;
        // Each has what those before them left; all wait for the lowest layer.
        let mut waiting = JoinSet::new();
        for image in [&second, &third, &fourth, &third, &second] {
            waiting.spawn(shared.unpack(image));
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(shared.applier.count(&a), 1, "nobody else began it");

        held.fail();

        failing.await.expect("it does not panic").expect_err("it was told to");
        for unpacked in waiting.join_all().await {
            unpacked.expect("another one makes the layer");
        }
        assert_eq!(shared.applier.count(&a), 2, "{driver:?}");
        for layer in [&b, &c, &d] {
            assert_eq!(shared.applier.count(layer), 1, "{driver:?}");
        }
        shared.has_snapshots(4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_given_up_leaves_its_layers_to_those_who_wait() {
    for driver in DRIVERS {
        let layers = ["a", "b"].map(layer);
        let image = image(layers.clone());
        let shared = Shared::with(driver, &[&image]).await;
        let held = shared.applier.hold(&layers[0]);
        let given_up = tokio::spawn(shared.unpack(&image));
        held.begun().await;
        let waiting = tokio::spawn(shared.unpack(&image));

        given_up.abort();

        let unpacked = waiting.await.expect("it does not panic").expect("it goes on alone");
        assert_eq!(files(&shared.tree(&unpacked)).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_layer_may_come_twice_and_layers_may_be_empty_or_missing() {
    for driver in DRIVERS {
        let (a, hides_a, empty) = (layer("a"), Layer::new().whiteout("a"), Layer::new());
        let image_of = |layers: &[&Layer]| image(layers.iter().map(|layer| (*layer).clone()));
        for (image, want) in [
            (image_of(&[&a, &a]), &["a"][..]),
            (image_of(&[&a, &hides_a, &a]), &["a"]),
            (image_of(&[&a, &hides_a, &a, &hides_a]), &[]),
            (image_of(&[&empty, &empty, &a, &empty, &empty]), &["a"]),
            (image_of(&[&empty]), &[]),
        ] {
            let shared = Shared::with(driver, &[&image]).await;

            let unpacked = shared.unpack(&image).await.expect("it works");

            let tree = shared.tree(&unpacked);
            assert_eq!(files(&tree), want.iter().map(Path::new).collect::<Vec<_>>(), "{driver:?}");
            shared.has_snapshots(image.layers().len());
        }
        let nothing = image([]);
        let shared = Shared::with(driver, &[&nothing]).await;
        assert_eq!(shared.unpack(&nothing).await.expect("it works").chain_id, None);
        shared.has_snapshots(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_layers_are_unpacked_by_two_at_once() {
    // Each is committed on top of all before it, and each third takes something from below.
    let layers = (0..1000).map(|number: usize| match number % 3 {
        0 => layer(&format!("a/{number}")),
        1 => Layer::new().file(format!("a/{number}"), 0o644, b"x"),
        _ => Layer::new().dir("./", 0o755).dir("a", 0o750).whiteout(format!("a/{}", number - 1)),
    });
    let image = image(layers);
    let shared = Shared::with(Driver::Overlay, &[&image]).await;

    let (one, other) = tokio::join!(shared.unpack(&image), shared.unpack(&image));

    let (one, other) = (one.expect("it works"), other.expect("it works"));
    assert_eq!(one, other);
    assert_eq!(shared.applier.counts().iter().sum::<usize>(), 1000);
    let tree = shared.tree(&one);
    assert_eq!(files(&tree).len(), 1 + 334, "{:?}", files(&tree));
    shared.has_snapshots(1000);
}
