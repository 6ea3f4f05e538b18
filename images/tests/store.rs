//! What is promised of the image list.

use std::{collections::BTreeMap, path::Path};

use oci_spec::image::{Descriptor, MediaType};
use rusqlite::Connection;
use tempfile::TempDir;
use windlass_content::hash::sha256;
use windlass_images::{Create, Error, Filter, Found, Store, Swap, Update};

fn store() -> (TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let store = Store::open(dir.path().join("images.db")).expect("it opens");
    (dir, store)
}

fn target(text: &str) -> Descriptor {
    Descriptor::new(MediaType::ImageManifest, text.len() as u64, sha256(text.as_bytes()))
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn names(store: &Store, filter: Filter) -> Vec<String> {
    store.list(&filter).expect("it lists").into_iter().map(|it| it.name).collect()
}

#[test]
fn what_one_process_records_another_sees() {
    let (dir, one) = store();
    let other = Store::open(dir.path().join("images.db")).expect("it opens twice");

    one.put("b", &target("old")).expect("it is recorded");
    one.put("a", &target("a")).expect("it is recorded");
    one.put("b", &target("new")).expect("it is replaced");

    assert_eq!(names(&other, Filter::all()), ["a", "b"]);
    assert_eq!(other.get("b").expect("it looks").expect("it is there").target, target("new"));
    assert!(other.delete("b").expect("it deletes"));
    assert!(!one.delete("b").expect("it looks"));
    assert_eq!(one.get("b").expect("it looks"), None);
}

#[test]
fn a_name_is_created_once_and_put_keeps_its_labels() {
    let (_dir, store) = store();
    let ours = labels(&[("key", "value")]);

    assert_eq!(store.create("a", &target("1"), &ours).expect("it is new"), Create::Created);
    let again = store.create("a", &target("2"), &labels(&[])).expect("it answers");
    store.put("a", &target("3")).expect("it is replaced");

    let Create::Exists(there) = again else { panic!("{again:?}") };
    assert_eq!((there.target, &there.labels), (target("1"), &ours));
    let record = store.get("a").expect("it looks").expect("it is there");
    assert_eq!((record.target, record.labels), (target("3"), ours));
}

#[test]
fn an_update_changes_what_it_names_and_no_more() {
    let (_dir, store) = store();
    store.create("a", &target("1"), &labels(&[("x", "1"), ("y", "2")])).expect("it is new");

    let update = Update::default().set_label("z", "3").set_label("y", "4").remove_label("x");
    let updated = store.update("a", &update).expect("it updates").expect("it is there");
    let moved = store.update("a", &Update::default().target(target("2"))).expect("it updates");

    assert_eq!((updated.target, updated.labels), (target("1"), labels(&[("y", "4"), ("z", "3")])));
    let moved = moved.expect("it is there");
    assert_eq!((moved.target, moved.labels), (target("2"), labels(&[("y", "4"), ("z", "3")])));
    assert_eq!(store.update("b", &update).expect("it answers"), None);
}

#[test]
fn a_target_is_swapped_or_deleted_only_if_it_is_the_expected_one() {
    let (_dir, store) = store();
    store.put("a", &target("1")).expect("it is recorded");
    let digest = |text| target(text).digest().clone();

    assert_eq!(store.swap("b", &digest("1"), &target("2")).expect("it answers"), Swap::Missing);
    let differs = store.swap("a", &digest("0"), &target("2")).expect("it answers");
    assert!(matches!(differs, Swap::Differs(it) if it.target == target("1")));
    assert_eq!(store.swap("a", &digest("1"), &target("2")).expect("it answers"), Swap::Swapped);

    assert!(!store.delete_target("a", &digest("1")).expect("it answers"));
    assert_eq!(store.get("a").expect("it looks").expect("it is there").target, target("2"));
    assert!(store.delete_target("a", &digest("2")).expect("it answers"));
}

#[test]
fn a_tag_is_the_same_image_with_its_labels() {
    let (_dir, store) = store();
    store.create("a", &target("1"), &labels(&[("x", "1")])).expect("it is new");
    store.create("b", &target("2"), &labels(&[("y", "2")])).expect("it is new");

    assert!(store.tag("a", "b").expect("it tags"));
    assert!(!store.tag("nothing", "c").expect("it answers"));

    let tagged = store.get("b").expect("it looks").expect("it is there");
    assert_eq!((tagged.target, tagged.labels), (target("1"), labels(&[("x", "1")])));
    assert_eq!(names(&store, Filter::all()), ["a", "b"]);
}

#[test]
fn a_list_is_filtered_by_all_that_is_set_and_comes_in_pages() {
    let (_dir, store) = store();
    for (name, text, its) in [
        ("docker.io/a:1", "1", &[("team", "x")][..]),
        ("docker.io/a:2", "2", &[("team", "y"), ("keep", "")]),
        ("docker.io/b:1", "1", &[("team", "x"), ("keep", "")]),
        ("ghcr.io/a:1", "1", &[]),
    ] {
        store.create(name, &target(text), &labels(its)).expect("it is new");
    }
    let one = target("1").digest().clone();

    for (filter, found) in [
        (Filter::all(), &["docker.io/a:1", "docker.io/a:2", "docker.io/b:1", "ghcr.io/a:1"][..]),
        (Filter::all().name("ghcr.io/a:1"), &["ghcr.io/a:1"]),
        (Filter::all().name("ghcr.io/a:1").label("team"), &[]),
        (Filter::all().prefix("docker.io/a"), &["docker.io/a:1", "docker.io/a:2"]),
        (Filter::all().prefix("docker.io0"), &[]),
        (Filter::all().label("team"), &["docker.io/a:1", "docker.io/a:2", "docker.io/b:1"]),
        (Filter::all().label_is("team", "x"), &["docker.io/a:1", "docker.io/b:1"]),
        (Filter::all().label_is("team", "x").label("keep"), &["docker.io/b:1"]),
        (Filter::all().label("keep").label_is("team", "y"), &["docker.io/a:2"]),
        (Filter::all().digest(one.clone()), &["docker.io/a:1", "docker.io/b:1", "ghcr.io/a:1"]),
        (Filter::all().digest(one.clone()).label("team").prefix("docker.io/b"), &["docker.io/b:1"]),
        (Filter::all().limit(2), &["docker.io/a:1", "docker.io/a:2"]),
        (Filter::all().limit(2).after("docker.io/a:2"), &["docker.io/b:1", "ghcr.io/a:1"]),
        (Filter::all().limit(1).after("docker.io/a:1").label_is("team", "x"), &["docker.io/b:1"]),
        (Filter::all().limit(1).after("docker.io/b").digest(one), &["docker.io/b:1"]),
        (Filter::all().limit(1).after("docker.io/a:1").prefix("docker.io/"), &["docker.io/a:2"]),
        (Filter::all().limit(1).after("a").prefix("docker.io/b"), &["docker.io/b:1"]),
        (Filter::all().after("docker.io/b").prefix("docker.io/b"), &["docker.io/b:1"]),
        (Filter::all().after("x").prefix("docker.io/b"), &[]),
        (Filter::all().limit(0), &[]),
    ] {
        assert_eq!(names(&store, filter.clone()), found, "{filter:?}");
    }
}

#[test]
fn a_target_is_found_by_the_start_of_its_digest() {
    let (_dir, store) = store();
    store.put("a", &target("1")).expect("it is recorded");
    store.put("also a", &target("1")).expect("it is recorded");
    store.put("b", &target("2")).expect("it is recorded");
    let digest = target("1").digest().clone();

    for prefix in [digest.as_ref(), &digest.as_ref()[..12], &digest.digest()[..12], digest.digest()] {
        assert_eq!(store.find_digest(prefix).expect("it looks"), Found::One(digest.clone()), "{prefix}");
    }
    for (prefix, found) in [("sha256:", Found::Several), ("", Found::Several), ("no", Found::Nothing)] {
        assert_eq!(store.find_digest(prefix).expect("it looks"), found, "{prefix:?}");
    }
}

#[test]
fn the_generation_tells_every_change_of_names_and_targets_and_no_other() {
    let (_dir, store) = store();
    let generation = || store.generation().expect("it reads");
    let start = generation();
    store.put("a", &target("1")).expect("it is recorded");
    let added = generation();
    store.touch("a").expect("it is noted");
    store.update("a", &Update::default().set_label("x", "1")).expect("it updates");
    assert_eq!(generation(), added);
    store.put("a", &target("2")).expect("it is replaced");
    let replaced = generation();
    store.delete("a").expect("it deletes");
    assert!(start < added && added < replaced && replaced < generation());
}

#[test]
fn an_image_that_is_touched_was_used_then() {
    let (_dir, store) = store();
    store.put("a", &target("1")).expect("it is recorded");
    let before = store.get("a").expect("it looks").expect("it is there");

    assert!(store.touch("a").expect("it is noted"));
    assert!(!store.touch("b").expect("it answers"));

    let after = store.get("a").expect("it looks").expect("it is there");
    assert_eq!(before.used, None);
    assert_eq!(after.updated, before.updated);
    assert!(after.last_used() >= before.last_used() && after.used.is_some());
}

/// As version 1 of this library wrote it.
fn write_version_1(path: &Path, rows: &[(&str, &Descriptor)]) {
    let database = Connection::open(path).expect("it can be made");
    database
        .execute_batch(
            "PRAGMA journal_mode = WAL;
            CREATE TABLE images (
                name    TEXT PRIMARY KEY,
                target  TEXT NOT NULL,
                created INTEGER NOT NULL,
                updated INTEGER NOT NULL
            ) STRICT;
            PRAGMA user_version = 1;",
        )
        .expect("it can be written");
    for (name, target) in rows {
        let target = serde_json::to_string(target).expect("it is a descriptor");
        database
            .execute("INSERT INTO images VALUES (?1, ?2, 1000, 2000)", [*name, &target])
            .expect("it can be written");
    }
}

#[test]
fn a_list_of_version_1_is_brought_to_ours() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("images.db");
    write_version_1(&path, &[("a", &target("1")), ("b", &target("2"))]);

    let store = Store::open(&path).expect("it opens");
    drop(Store::open(&path).expect("it opens again"));

    let record = store.get("a").expect("it looks").expect("it is there");
    let millis = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).expect("it is later").as_millis()
    };
    assert_eq!((millis(record.created), millis(record.updated), record.used), (1000, 2000, None));
    assert!(record.labels.is_empty());
    assert_eq!(names(&store, Filter::all().digest(target("2").digest().clone())), ["b"]);
    let generation = store.generation().expect("it reads");
    store.update("b", &Update::default().target(target("3")).set_label("x", "1")).expect("it updates");
    assert!(store.generation().expect("it reads") > generation);
    assert_eq!(names(&store, Filter::all().label("x")), ["b"]);
}

#[test]
fn a_list_of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let path = dir.path().join("images.db");
    Connection::open(&path)
        .and_then(|it| it.pragma_update(None, "user_version", 99))
        .expect("it can be written");
    assert!(matches!(Store::open(&path), Err(Error::TooNew { version: 99, .. })));
}
