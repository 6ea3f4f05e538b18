//! Drivers where our ids are not the host's: in a user namespace, in which each test runs once more.

use std::{
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use windlass_snapshot::{Durability, Native, Overlay, Snapshotter, Snapshotters, Whiteouts, testsuite};
use windlass_testkit::require;

const INSIDE: &str = "WINDLASS_TEST_IN_USER_NAMESPACE";

/// Runs the test of that name again, as root of a user namespace with a mount namespace of its own.
fn inside(test: &str, work: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return work();
    }
    // It becomes root inside when its ids are mapped, which only we may do, and has root's capabilities from the next program on.
    let mut child = Command::new(require("unshare", "util-linux"))
        .args(["--user", "--mount", "--", "sh", "-c", "echo ready; read go; exec \"$0\" \"$@\" 2>&1"])
        .arg(std::env::current_exe().expect("it runs"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut output = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut ready = String::new();
    output.read_line(&mut ready).expect("it says that it is ready");
    for map in ["uid_map", "gid_map"] {
        let map = format!("/proc/{}/{map}", child.id());
        std::fs::write(map, "0 0 65536").expect("root may map all ids");
    }
    child.stdin.take().expect("it is piped").write_all(b"go\n").expect("it waits for that");
    let mut text = String::new();
    output.read_to_string(&mut text).expect("the output is text");
    let status = child.wait().expect("it ends");
    assert!(status.success() && text.contains("1 passed"), "{text}");
}

fn overlay(root: &Path) -> Arc<dyn Snapshotter> {
    Arc::new(Overlay::open(root, Durability::Fast).expect("an empty root"))
}

#[test]
fn the_overlay_driver_passes_the_suite() {
    inside("the_overlay_driver_passes_the_suite", || {
        let root = tempfile::tempdir().expect("a folder");
        assert_eq!(overlay(root.path()).capabilities().whiteouts, Whiteouts::UserOverlay);
        testsuite::run_all(&overlay);
    });
}

#[test]
fn the_native_driver_passes_the_suite_too() {
    inside("the_native_driver_passes_the_suite_too", || {
        testsuite::run_all(&|root| Arc::new(Native::open(root, Durability::Fast).expect("an empty root")));
    });
}

#[test]
fn the_overlay_driver_is_chosen_there_too() {
    inside("the_overlay_driver_is_chosen_there_too", || {
        let root = tempfile::tempdir().expect("a folder");
        let found = Snapshotters::probe(root.path(), Durability::Fast).expect("it works");
        assert_eq!(found.chosen.name(), "overlay", "{found}");
    });
}
