//! Checks of names, states and labels.

use std::{collections::BTreeMap, fs, ops::ControlFlow, thread};

use super::{Bench, read, trees::names, write};
use crate::{Commit, Error, Kind, usage_with_parents};

/// Prepare, commit, and prepare on top of it.
pub fn a_child_sees_what_its_parent_committed(bench: &Bench<'_>) {
    bench.layer("one", None, |tree| write(tree.join("file"), "first"));

    let mounts = bench.driver.prepare("two", Some("one")).expect("a committed parent");

    assert_eq!(bench.mounted(&mounts, |tree| read(tree.join("file"))), "first");
    assert_eq!(bench.driver.mounts("two").expect("active"), mounts, "asking again gives the same");
}

/// What `stat`, `usage` and `mounts` say of each kind.
pub fn stat_tells_active_committed_and_missing_apart(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "text"));
    bench.driver.prepare("key", Some("low")).expect("a committed parent");
    bench.driver.view("view", Some("low")).expect("a committed parent");

    let stat = |name| bench.driver.stat(name).expect("stat").map(|info| (info.kind, info.parent));

    assert_eq!(stat("low"), Some((Kind::Committed, None)));
    assert_eq!(stat("low-key"), None, "a commit ends its key");
    assert_eq!(stat("key"), Some((Kind::Active, Some("low".to_owned()))));
    assert_eq!(stat("view"), Some((Kind::View, Some("low".to_owned()))));
    assert_eq!(stat("missing"), None);
    assert!(matches!(bench.driver.usage("missing"), Err(Error::NotFound { .. })));
    assert!(matches!(bench.driver.mounts("missing"), Err(Error::NotFound { .. })));
    assert!(matches!(bench.driver.mounts("low"), Err(Error::NotActive { .. })));
}

/// Missing parents, active parents, taken keys, and commits of what is not active.
pub fn prepare_and_view_refuse_bad_parents_and_taken_keys(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    bench.driver.prepare("active", Some("low")).expect("a committed parent");
    bench.driver.view("view", Some("low")).expect("a committed parent");

    for (key, parent) in [("new", "missing"), ("new", "active"), ("active", "low"), ("low", "low")] {
        for result in [bench.driver.prepare(key, Some(parent)), bench.driver.view(key, Some(parent))] {
            let err = result.expect_err(key);
            let right = match (key, parent) {
                (_, "missing") => matches!(err, Error::NotFound { .. }),
                (_, "active") => matches!(err, Error::NotCommitted { .. }),
                _ => matches!(err, Error::Exists { .. }),
            };
            assert!(right, "{key} on {parent}: {err:?}");
        }
    }
    let commit = |key| bench.driver.commit(&[Commit::new(key, "name", None)]);
    assert!(matches!(commit("view"), Err(Error::NotActive { .. })));
    assert!(matches!(commit("low"), Err(Error::NotActive { .. })));
    assert!(matches!(commit("missing"), Err(Error::NotFound { .. })));
    assert_eq!(bench.driver.stat("new").expect("stat"), None, "a refusal leaves nothing");
}

/// Labels are replaced whole.
pub fn an_update_replaces_the_labels_and_nothing_else(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    let before = bench.driver.stat("low").expect("stat").expect("committed");
    let labels = |key: &str| BTreeMap::from([(key.to_owned(), "value".to_owned())]);
    bench.driver.update("low", labels("first")).expect("it is there");

    let after = bench.driver.update("low", labels("second")).expect("it is there");

    assert_eq!(after.labels, labels("second"));
    assert_eq!((&after.name, after.kind, after.created), (&before.name, before.kind, before.created));
    assert!(after.updated >= before.updated, "an update is not older than the commit");
    assert_eq!(bench.driver.stat("low").expect("stat"), Some(after));
    assert!(matches!(bench.driver.update("missing", labels("x")), Err(Error::NotFound { .. })));
}

/// And so can a view.
pub fn what_is_active_can_be_removed_and_its_key_used_again(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "low"));
    let mounts = bench.driver.prepare("key", Some("low")).expect("a committed parent");
    bench.mounted(&mounts, |tree| write(tree.join("new"), "text"));

    bench.driver.remove("key").expect("nothing is on top of it");

    assert_eq!(bench.driver.stat("key").expect("stat"), None);
    let mounts = bench.driver.view("key", Some("low")).expect("the key is free");
    assert!(bench.mounted(&mounts, |tree| !tree.join("new").exists() && tree.join("file").exists()));
    bench.driver.remove("key").expect("nothing is on top of it");
    bench.driver.remove("low").expect("nothing is on top of it any more");
    let left = fs::read_dir(bench.root().join("snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "its files went with it");
}

/// Children first, whether they are committed, active or views.
pub fn a_snapshot_with_children_is_not_removed(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    bench.layer("high", Some("low"), |tree| write(tree.join("file"), "high"));
    bench.driver.prepare("active", Some("high")).expect("a committed parent");
    bench.driver.view("view", Some("high")).expect("a committed parent");
    for child in ["active", "view"] {
        let err = bench.driver.remove("high").expect_err("it has a child");
        assert!(matches!(&err, Error::HasChildren { child: named, .. } if named == child), "{err:?}");
        assert_eq!(bench.look("high", |tree| read(tree.join("file"))), "high", "a refusal takes nothing");
        bench.driver.remove(child).expect("it has no child");
    }

    let err = bench.driver.remove("low").expect_err("it has a child");

    assert!(matches!(&err, Error::HasChildren { child, .. } if child == "high"), "{err:?}");
    bench.driver.remove("high").expect("it has no child");
    bench.driver.remove("low").expect("it has none any more");
    assert_eq!(bench.driver.stat("low").expect("stat"), None);
    assert!(matches!(bench.driver.remove("low"), Err(Error::NotFound { .. })));
}

/// The order of `walk`, its end on a break, and that the visitor may call the driver.
pub fn walk_shows_parents_before_children(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    bench.layer("middle", Some("low"), |_| {});
    bench.driver.prepare("high", Some("middle")).expect("a committed parent");
    let mut seen = Vec::new();

    let walked = bench.driver.walk(&mut |info| {
        assert_eq!(bench.driver.stat(&info.name).expect("stat in a walk"), Some(info.clone()));
        seen.push(info.name);
        ControlFlow::Continue(())
    });

    walked.expect("a walk");
    assert_eq!(seen, ["low", "middle", "high"]);
    let mut count = 0;
    let broken = bench.driver.walk(&mut |_| {
        count += 1;
        ControlFlow::Break(())
    });
    broken.expect("a walk that ends early");
    assert_eq!(count, 1);
}

/// Who comes second finds that the work is done.
pub fn committing_to_a_name_that_exists_discards_the_snapshot(bench: &Bench<'_>) {
    bench.layer("name", None, |tree| write(tree.join("file"), "first"));
    let mounts = bench.driver.prepare("late", None).expect("a free key");
    bench.mounted(&mounts, |tree| write(tree.join("file"), "second"));

    bench.commit("late", "name");

    assert_eq!(bench.look("name", |tree| read(tree.join("file"))), "first");
    assert_eq!(bench.driver.stat("late").expect("stat"), None);
}

/// All or none.
pub fn several_commits_succeed_or_fail_together(bench: &Bench<'_>) {
    for key in ["a", "b"] {
        bench.driver.prepare(key, None).expect("a free key");
    }
    let first = Commit::new("a", "A", None);
    let missing = Commit::new("missing", "M", None);

    let err = bench.driver.commit(&[first, missing]).expect_err("one key is missing");

    assert!(matches!(err, Error::NotFound { .. }), "{err:?}");
    assert_eq!(bench.driver.stat("A").expect("stat"), None, "nothing was committed");
    bench.driver.commit(&[first, Commit::new("b", "B", None)]).expect("both are there");
    for name in ["A", "B"] {
        assert_eq!(bench.driver.stat(name).expect("stat").map(|info| info.kind), Some(Kind::Committed));
    }
}

/// Each is empty and on its own, as if it had been prepared by itself; a key that is taken is refused, a repeated one too.
pub fn snapshots_prepared_together_are_like_those_prepared_alone(bench: &Bench<'_>) {
    let keys: Vec<String> = (0..5).map(|n| format!("key-{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    assert_eq!(bench.driver.prepare_all(&[]).expect("there is nothing to do"), [[]; 0]);

    let mounts = bench.driver.prepare_all(&keys).expect("free keys");

    assert_eq!(mounts.len(), keys.len());
    for ((key, mounts), bytes) in keys.iter().zip(&mounts).zip(1..) {
        assert_eq!(&bench.driver.mounts(key).expect("it is active"), mounts);
        bench.mounted(mounts, |tree| {
            assert_eq!(names(tree), [""; 0], "it is empty");
            write(tree.join("file"), &"x".repeat(bytes * 100_000));
        });
    }
    for taken in [["new", "key-3"], ["twice", "twice"]] {
        let err = bench.driver.prepare_all(&taken).expect_err("one of them is taken");
        assert!(matches!(&err, Error::Exists { name } if name == taken[1]), "{err:?}");
    }
    let commits: Vec<_> = keys.iter().map(|key| Commit::new(key, key, None)).collect();
    bench.driver.commit(&commits).expect("all are active");
    for (key, bytes) in keys.iter().zip(1_u64..) {
        let usage = bench.driver.usage(key).expect("it is committed");
        assert!((bytes * 100_000..(bytes + 1) * 100_000).contains(&usage.bytes), "{key}: {usage:?}");
    }
}

/// Rows, labels and files outlive the driver.
pub fn what_was_committed_is_there_after_opening_again(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "kept"));
    let before = bench.driver.stat("low").expect("stat");

    let again = bench.again();

    assert_eq!(again.stat("low").expect("stat"), before);
    let mounts = again.prepare("key", Some("low")).expect("a committed parent");
    assert_eq!(bench.mounted(&mounts, |tree| read(tree.join("file"))), "kept");
}

/// For drivers that keep `<root>/snapshots/<id>`: a folder that a crash left.
pub fn cleanup_removes_what_nobody_owns_and_nothing_else(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), "kept"));
    bench.driver.prepare("key", Some("low")).expect("a committed parent");
    let orphan = bench.root().join("snapshots/4711");
    fs::create_dir_all(orphan.join("fs/deep")).expect("a folder");
    write(orphan.join("fs/deep/file"), &"x".repeat(10_000));

    let freed = bench.driver.cleanup().expect("a cleanup");

    assert!(freed >= 10_000, "{freed} bytes were freed");
    assert!(!orphan.exists(), "the orphan is gone");
    assert_eq!(bench.look("low", |tree| read(tree.join("file"))), "kept");
    let mounts = bench.driver.mounts("key").expect("still active");
    assert_eq!(bench.mounted(&mounts, |tree| read(tree.join("file"))), "kept");
    assert_eq!(bench.driver.cleanup().expect("a second cleanup"), 0);
}

/// The name is gone at once, the files with the next cleanup.
pub fn what_is_forgotten_is_freed_by_cleanup(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("file"), &"x".repeat(10_000)));
    bench.layer("high", Some("low"), |_| {});
    let err = bench.driver.forget("low").expect_err("it has a child");
    assert!(matches!(err, Error::HasChildren { .. }), "{err:?}");

    for name in ["high", "low"] {
        bench.driver.forget(name).expect("it has no child");
    }

    assert_eq!(bench.driver.stat("low").expect("stat"), None);
    let freed = bench.driver.cleanup().expect("a cleanup");
    assert!(freed >= 10_000, "{freed} bytes were freed");
    let left = fs::read_dir(bench.root().join("snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

/// Two writers and a cleaner at once.
pub fn two_drivers_on_one_root_do_not_collide(bench: &Bench<'_>) {
    let drivers = [bench.again(), bench.again()];

    thread::scope(|scope| {
        for (number, driver) in drivers.iter().enumerate() {
            scope.spawn(move || {
                for step in 0..8 {
                    driver.prepare(&format!("{number}-{step}"), None).expect("a free key");
                }
            });
        }
        for _ in 0..8 {
            bench.driver.cleanup().expect("a cleanup");
        }
    });

    for number in 0..2 {
        for step in 0..8 {
            let mounts = bench.driver.mounts(&format!("{number}-{step}")).expect("it was prepared");
            bench.mounted(&mounts, |tree| write(tree.join("file"), "text"));
        }
    }
}

/// Hard links do not add up, and a commit keeps the count.
pub fn a_file_with_two_names_is_counted_once(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| {
        write(tree.join("one"), &"x".repeat(100_000));
        fs::hard_link(tree.join("one"), tree.join("two")).expect("a link");
    });

    let usage = bench.driver.usage("low").expect("it is there");

    assert_eq!(usage.inodes, 2, "the root folder and one file");
    assert!((100_000..200_000).contains(&usage.bytes), "{} bytes", usage.bytes);
}

/// A parent counts for itself, and for each child when asked with parents.
pub fn usage_adds_up_over_the_parents(bench: &Bench<'_>) {
    bench.layer("low", None, |tree| write(tree.join("low"), &"x".repeat(300_000)));
    bench.layer("high", Some("low"), |tree| write(tree.join("high"), &"x".repeat(100_000)));
    let usage = |name| bench.driver.usage(name).expect("it is there");
    let whole = |name| usage_with_parents(&*bench.driver, name).expect("it is there");

    let (low, high) = (usage("low"), usage("high"));

    assert!(low.bytes >= 300_000 && low.inodes >= 2, "{low:?}");
    assert!(high.bytes >= 100_000 && high.inodes >= 2, "{high:?}");
    assert_eq!(whole("low"), low);
    let both = whole("high");
    assert_eq!((both.bytes, both.inodes), (low.bytes + high.bytes, low.inodes + high.inodes));
    let mounts = bench.driver.prepare("key", Some("high")).expect("a committed parent");
    let before = usage("key");
    bench.mounted(&mounts, |tree| write(tree.join("new"), &"x".repeat(200_000)));
    let grown = usage("key").bytes - before.bytes;
    assert!((200_000..400_000).contains(&grown), "an active one is counted as it is now: {grown}");
    assert!(matches!(usage_with_parents(&*bench.driver, "missing"), Err(Error::NotFound { .. })));
}

/// What was done stays done.
pub fn closing_twice_is_fine_and_calls_after_it_say_so(bench: &Bench<'_>) {
    bench.layer("low", None, |_| {});
    let other = bench.again();

    other.close().expect("it is open");
    other.close().expect("twice is fine");

    assert!(matches!(other.stat("low"), Err(Error::Closed { .. })));
    assert!(matches!(other.prepare("key", None), Err(Error::Closed { .. })));
    assert!(matches!(other.cleanup(), Err(Error::Closed { .. })));
    assert!(bench.driver.stat("low").expect("this one is open").is_some());
}
