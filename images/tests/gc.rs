//! What is promised of garbage collection, one thing at a time.

mod common;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use oci_spec::image::{Descriptor, MediaType};
use serde_json::json;
use windlass_content::{Ingest, Ingester, Provider, Store as _, WriterExt, hash::sha256};
use windlass_images::{
    BoxError, LeaseOptions, Resource, chain_ids,
    gc::{Collector, Options, Policy, Report, Snapshot},
};

use self::common::{Blob, Root, image, image_with, index, layer, open};

async fn collect(root: &Root) -> Report {
    root.gc().run(&Options::default()).await.expect("it collects")
}

/// Which of these are there.
async fn there(root: &Root, blobs: &[Blob]) -> Vec<bool> {
    let mut there = Vec::new();
    for blob in blobs {
        there.push(root.has(blob).await);
    }
    there
}

#[tokio::test]
async fn what_no_image_needs_is_removed_and_counted() {
    let root = Root::new();
    let kept = image("kept", &[layer("shared"), layer("own")]);
    let dropped = image("dropped", &[layer("shared"), layer("other")]);
    let target = root.add_image(&kept).await;
    root.store.put("kept", &target).expect("it is recorded");
    root.store.put("dropped", &root.add_image(&dropped).await).expect("it is recorded");
    assert_eq!(collect(&root).await.bytes, 0);

    root.store.delete("dropped").expect("it deletes");
    let dry = root.gc().run(&Options::default().dry_run(true)).await.expect("it looks");
    assert_eq!(there(&root, &dropped).await, [true; 4]);
    let report = collect(&root).await;

    assert_eq!(there(&root, &kept).await, [true; 4]);
    assert_eq!(there(&root, &dropped).await, [false, false, true, false]);
    let gone = [&dropped[0], &dropped[1], &dropped[3]];
    assert_eq!(report.bytes, gone.iter().map(|it| it.descriptor.size()).sum::<u64>());
    let digests = |report: &Report| {
        let mut digests: Vec<_> = report.blobs.iter().map(|it| it.digest.to_string()).collect();
        digests.sort();
        digests
    };
    let mut expected = gone.map(|it| it.digest().to_string());
    expected.sort();
    assert_eq!(digests(&report), expected);
    assert_eq!((dry.dry_run, digests(&dry), dry.bytes), (true, digests(&report), report.bytes));
    let json = serde_json::to_value(&report).expect("it can be written");
    assert_eq!(json["bytes"], report.bytes);
}

#[tokio::test]
async fn other_platforms_that_were_never_fetched_are_no_error() {
    let root = Root::new();
    let here = image("here", &[layer("a")]);
    let elsewhere = image("elsewhere", &[layer("b")]);
    let index = index(&[&elsewhere[0].descriptor, &here[0].descriptor]);
    root.add_image(&here).await;
    root.store.put("both", &root.add(&index).await).expect("it is recorded");

    let report = collect(&root).await;

    assert_eq!(report.blobs, []);
    assert_eq!(there(&root, &here).await, [true; 3]);
}

/// More than is read, noted and removed at once.
#[tokio::test]
async fn thousands_of_manifests_below_one_index_stay_and_thousands_of_others_go() {
    let root = Root::new();
    let manifests = |text: &str| -> Vec<Blob> {
        (0..1100).map(|n| image(&format!("{text} {n}"), &[layer("shared")]).swap_remove(0)).collect()
    };
    let (kept, dropped) = (manifests("kept"), manifests("dropped"));
    for blob in kept.iter().chain(&dropped) {
        root.add(blob).await;
    }
    let index = index(&kept.iter().map(|it| &it.descriptor).collect::<Vec<_>>());
    root.store.put("index", &root.add(&index).await).expect("it is recorded");
    let lease = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    let held: Vec<_> = dropped[..10].iter().map(|it| Resource::Blob(it.digest())).collect();
    lease.hold_all(&held).await.expect("it holds");

    let dry = root.gc().run(&Options::default().dry_run(true)).await.expect("it looks");
    let report = collect(&root).await;

    assert_eq!((dry.blobs.len(), report.blobs.len()), (1090, 1090));
    assert_eq!(there(&root, &kept).await, [true; 1100]);
    let there = there(&root, &dropped).await;
    assert_eq!((&there[..10], &there[10..]), (&[true; 10][..], &[false; 1090][..]));
}

#[tokio::test]
async fn a_lease_holds_a_blob_alone_and_a_tree_with_all_below_it() {
    let root = Root::new();
    let [tree, blob, neither] = ["tree", "blob", "neither"].map(|it| image(it, &[layer(it)]));
    for image in [&tree, &blob, &neither] {
        root.add_image(image).await;
    }
    let nested = index(&[&tree[0].descriptor]);
    root.add(&nested).await;
    let lease = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    let held = [Resource::Tree(nested.digest()), Resource::Blob(blob[0].digest())];
    lease.hold_all(&held).await.expect("it holds");

    collect(&root).await;
    assert!(root.has(&nested).await);
    assert_eq!(there(&root, &tree).await, [true; 3]);
    assert_eq!(there(&root, &blob).await, [true, false, false]);
    assert_eq!(there(&root, &neither).await, [false; 3]);

    drop(lease);
    assert_eq!(collect(&root).await.blobs.len(), 5);
}

#[tokio::test]
async fn a_lease_that_is_dead_holds_nothing_and_is_removed() {
    let root = Root::new();
    let [kept, expired] = ["kept", "expired"].map(layer);
    for (blob, time) in [(&kept, Duration::from_secs(3600)), (&expired, Duration::ZERO)] {
        root.add(blob).await;
        let id = String::from_utf8_lossy(&blob.bytes);
        let lease = root.store.lease(LeaseOptions::default().id(id)).await.expect("it is made");
        lease.hold(&Resource::Blob(blob.digest())).await.expect("it holds");
        lease.keep(time).await.expect("it is kept");
    }
    std::fs::write(root.dir.path().join("leases/stray"), "").expect("a crash can leave it");

    let report = collect(&root).await;

    assert_eq!(report.leases, ["expired"]);
    assert_eq!(there(&root, &[kept, expired]).await, [true, false]);
    let files = root.dir.path().join("leases").read_dir().expect("it is there");
    assert_eq!(files.map(|it| it.expect("it reads").file_name()).collect::<Vec<_>>(), ["kept"]);
}

#[tokio::test]
async fn referrers_stay_with_their_subject_and_go_with_it() {
    let root = Root::new();
    let subject = image("subject", &[layer("a")]);
    let signature = image_with("signature", &[layer("s")], json!({"subject": subject[0].descriptor}));
    let of_signature = image_with("of signature", &[layer("t")], json!({"subject": signature[0].descriptor}));
    let stranger = image_with(
        "stranger",
        &[],
        json!({"subject": Descriptor::new(MediaType::ImageManifest, 1, sha256(b"gone"))}),
    );
    for image in [&subject, &signature, &of_signature, &stranger] {
        root.add_image(image).await;
    }
    root.store.put("subject", &subject[0].descriptor).expect("it is recorded");

    assert_eq!(collect(&root).await.blobs.len(), 2);
    assert_eq!(there(&root, &[signature, of_signature].concat()).await, [true; 6]);

    root.store.delete("subject").expect("it deletes");
    assert_eq!(collect(&root).await.blobs.len(), 9);
}

#[tokio::test]
async fn a_damaged_manifest_is_kept_without_what_is_below_it() {
    let root = Root::new();
    let broken = image("broken", &[layer("a")]);
    root.store.put("broken", &root.add_image(&broken).await).expect("it is recorded");
    let path = root.content.path(broken[0].descriptor.digest());
    std::fs::remove_file(&path).expect("it is there");
    std::fs::write(&path, vec![b' '; broken[0].bytes.len()]).expect("it can be written");

    collect(&root).await;

    assert_eq!(there(&root, &broken).await, [true, false, false]);
}

#[tokio::test]
async fn a_blob_that_is_read_while_it_is_collected_can_be_read_on() {
    let root = Root::new();
    let large = Blob::new(MediaType::ImageLayer, vec![7; 3 << 20]);
    root.add(&large).await;
    let open = root.content.open(&large.descriptor).await.expect("it is there");

    let report = collect(&root).await;

    assert_eq!(report.bytes, 3 << 20);
    let read = open.bytes(large.descriptor.digest(), 4 << 20).await.expect("it is open");
    assert_eq!(read, large.bytes);
}

#[tokio::test]
async fn an_idle_ingest_is_discarded_unless_it_is_held() {
    let root = Root::new();
    for key in ["held", "left"] {
        let blob = Blob::new(MediaType::ImageLayer, key.repeat(2));
        let Ingest::Open(mut writer) = root.content.ingest(key, &blob.descriptor).await.expect("it opens")
        else {
            panic!("it is there")
        };
        writer.write(blob.bytes.slice(..4)).await.expect("it is written");
    }
    let lease = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    lease.hold(&Resource::Ingest("held".into())).await.expect("it holds");

    assert_eq!(collect(&root).await.ingests, []);
    let options = Options::default().idle_ingests(Duration::ZERO);
    // A writer's thread gives its ingest up a moment after the writer is dropped.
    let begun = std::time::Instant::now();
    let report = loop {
        let report = root.gc().run(&options).await.expect("it collects");
        if !report.ingests.is_empty() || begun.elapsed() > Duration::from_secs(30) {
            break report;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };

    assert_eq!((report.ingests.len(), report.ingests[0].key.as_str(), report.bytes), (1, "left", 4));
    let active: Vec<_> =
        root.content.active().await.expect("it lists").into_iter().map(|it| it.key).collect();
    assert_eq!(active, ["held"]);
}

#[tokio::test]
async fn a_second_collection_is_told_that_one_runs() {
    let root = Root::new();
    let lock = std::fs::File::create(root.dir.path().join("gc.run")).expect("it can be made");
    lock.lock().expect("nobody has it");

    let told = root.gc().try_run(&Options::default()).await.expect("it answers");
    let gc = root.gc();
    let waiting = tokio::spawn(async move { gc.run(&Options::default()).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!((told, waiting.is_finished()), (None, false));
    lock.unlock().expect("it is locked");

    waiting.await.expect("it ends").expect("it collects");
}

/// Snapshots in memory. Before each removal it does something, as somebody else might.
struct Memory {
    snapshots: Mutex<BTreeMap<String, Option<String>>>,
    busy: Vec<String>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

#[derive(Debug)]
struct Shared(Arc<Memory>);

impl Collector for Shared {
    fn driver(&self) -> &str {
        "memory"
    }

    fn list(&self) -> Result<Vec<Snapshot>, BoxError> {
        let snapshots = self.0.snapshots.lock().expect("nobody panics");
        let snapshot = |(name, parent): (&String, &Option<String>)| Snapshot {
            name: name.clone(),
            parent: parent.clone(),
            pinned: name.starts_with("container"),
            size: 10,
        };
        Ok(snapshots.iter().map(snapshot).collect())
    }

    fn remove(&self, name: &str) -> Result<bool, BoxError> {
        if self.0.busy.iter().any(|it| it == name) {
            return Ok(false);
        }
        let mut snapshots = self.0.snapshots.lock().expect("nobody panics");
        assert!(snapshots.values().all(|it| it.as_deref() != Some(name)), "{name} has children");
        Ok(snapshots.remove(name).is_some())
    }

    fn cleanup(&self) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn snapshots_of_images_leases_and_containers_stay_with_their_parents() {
    let root = Root::new();
    let [kept, dropped] = ["kept", "dropped"].map(|it| image(it, &[layer("base"), layer(it)]));
    root.store.put("kept", &root.add_image(&kept).await).expect("it is recorded");
    root.add_image(&dropped).await;
    let chain = |image: &[Blob]| {
        chain_ids(&[image[2].digest(), image[3].digest()]).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (kept_chain, dropped_chain) = (chain(&kept), chain(&dropped));
    let snapshots: BTreeMap<_, _> = [
        (kept_chain[0].as_str(), ""),
        (&kept_chain[1], &kept_chain[0]),
        (&dropped_chain[1], &kept_chain[0]),
        ("below", ""),
        ("container", "below"),
        ("below held", ""),
        ("held", "below held"),
        ("below busy", ""),
        ("busy", "below busy"),
        ("gone", ""),
    ]
    .into_iter()
    .map(|(name, parent)| (name.to_owned(), (!parent.is_empty()).then(|| parent.to_owned())))
    .collect();
    let memory = Arc::new(Memory { snapshots: Mutex::new(snapshots), busy: vec!["busy".into()] });
    let lease = root.store.lease(LeaseOptions::default()).await.expect("it is made");
    let snapshot = |driver: &str, name: &str| Resource::Snapshot { driver: driver.into(), name: name.into() };
    lease.hold_all(&[snapshot("memory", "held"), snapshot("other", "gone")]).await.expect("it holds");
    let gc = root.gc().collector(Shared(memory.clone()));

    let dry = gc.run(&Options::default().dry_run(true)).await.expect("it looks");
    let report = gc.run(&Options::default()).await.expect("it collects");

    let removed = |report: &Report| {
        let mut names: Vec<_> = report.snapshots.iter().map(|it| it.name.clone()).collect();
        names.sort();
        names
    };
    let mut expected = vec![dropped_chain[1].clone(), "gone".into()];
    expected.sort();
    assert_eq!(removed(&report), expected);
    // A dry run does not find out what is in use.
    assert_eq!(removed(&dry).len(), 4);
    assert_eq!(memory.snapshots.lock().expect("nobody panics").len(), 8);
    assert_eq!(
        report.bytes,
        20 + dropped.iter().take(2).chain(&dropped[3..]).map(|it| it.descriptor.size()).sum::<u64>()
    );
}

#[tokio::test]
async fn a_policy_drops_names_and_then_their_content_goes() {
    let root = Root::new();
    for (name, text) in [("a.io/x:1", "1"), ("a.io/x:2", "2"), ("a.io/x:3", "3"), ("a.io/y:1", "4")] {
        let target = root.add_image(&image(text, &[layer("shared"), layer(text)])).await;
        root.store.put(name, &target).expect("it is recorded");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let newest = Options::default().policy(Policy::default().keep_newest(2));
    let none = Options::default().policy(Policy::default().max_total_size(0).keep_label("keep"));

    let dry = root.gc().run(&newest.clone().dry_run(true)).await.expect("it looks");
    let report = root.gc().run(&newest).await.expect("it collects");

    assert_eq!((&dry.images, &dry.blobs.len()), (&report.images, &3));
    assert_eq!((report.images, report.blobs.len()), (vec!["a.io/x:1".to_owned()], 3));
    let keep = windlass_images::Update::default().set_label("keep", "");
    root.store.update("a.io/x:2", &keep).expect("it updates");
    let report = root.gc().run(&none).await.expect("it collects");
    assert_eq!(report.images, ["a.io/x:3", "a.io/y:1"]);
    assert_eq!(report.blobs.len(), 6);
}

/// The first mark is over, the sweep is not: this is where a pull can go wrong.
#[tokio::test]
async fn what_is_held_recorded_or_let_go_during_a_collection_stays() {
    #[derive(Debug)]
    struct Meanwhile(tokio::sync::mpsc::Sender<()>, Mutex<std::sync::mpsc::Receiver<()>>);

    impl Collector for Meanwhile {
        fn driver(&self) -> &str {
            "meanwhile"
        }

        fn list(&self) -> Result<Vec<Snapshot>, BoxError> {
            self.0.blocking_send(()).expect("somebody waits");
            self.1.lock().expect("nobody panics").recv().expect("somebody answers");
            Ok(Vec::new())
        }

        fn remove(&self, _: &str) -> Result<bool, BoxError> {
            Ok(true)
        }

        fn cleanup(&self) -> Result<(), BoxError> {
            Ok(())
        }
    }

    let root = Root::new();
    let images = ["held", "let go", "pulled", "tagged", "neither"].map(|it| image(it, &[layer(it)]));
    for image in &images {
        root.add_image(image).await;
    }
    let [held, let_go, pulled, tagged, neither] = images;
    let subject = layer("subject");
    let referrer = image_with("referrer", &[], json!({"subject": subject.descriptor}));
    root.add(&subject).await;
    root.add_image(&referrer).await;
    root.store.put("z", &tagged[0].descriptor).expect("it is recorded");
    let (send, mut marked) = tokio::sync::mpsc::channel(1);
    let (go_on, wait) = std::sync::mpsc::channel();
    let gc = root.gc().collector(Meanwhile(send, Mutex::new(wait)));
    let running = tokio::spawn(async move { gc.run(&Options::default()).await });
    marked.recv().await.expect("it marks");

    let (content, store) = open(root.dir.path());
    let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
    lease.hold(&Resource::Tree(held[0].digest())).await.expect("it holds");
    let short = store.lease(LeaseOptions::default()).await.expect("it is made");
    for blob in &let_go {
        common::pull(&short, &content, blob).await;
    }
    short.release().await.expect("it ends");
    let short = store.lease(LeaseOptions::default()).await.expect("it is made");
    for blob in &pulled {
        common::pull(&short, &content, blob).await;
    }
    store.put("pulled", &pulled[0].descriptor).expect("it is recorded");
    drop(short);
    lease.hold(&Resource::Blob(subject.digest())).await.expect("it holds");
    store.tag("z", "a").expect("it tags");
    store.delete("z").expect("it deletes");
    go_on.send(()).expect("it waits");

    let report = running.await.expect("it ends").expect("it collects");
    assert_eq!(there(&root, &[held, let_go.clone(), pulled.clone(), tagged].concat()).await, [true; 12]);
    assert_eq!(there(&root, &referrer).await, [true; 2]);
    assert_eq!(there(&root, &neither).await, [false; 3]);
    assert_eq!(report.blobs.len(), 3);

    drop(lease);
    assert_eq!(collect(&root).await.blobs.len(), 9, "what was let go, and what was held");
    assert_eq!(there(&root, &pulled).await, [true; 3]);
    assert_eq!(there(&root, &let_go).await, [false; 3]);
}
