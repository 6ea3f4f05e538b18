//! What we unpack is what umoci unpacks.

use std::process::Command;

use windlass_testkit::{ImageBuilder, Layer, Registry};

/// Forty layers that replace, hide and link what is in those below them.
fn layers() -> impl Iterator<Item = Layer> {
    (0..40_i64).map(|number| {
        let own = format!("layers/{number}");
        let content = own.repeat(usize::try_from(number).expect("it is positive") + 1);
        let layer = Layer::new()
            .dir("./", 0o755)
            .mtime(1_000_000 + number)
            .dir("layers", 0o2775)
            .owner(number as u64, 7)
            .mtime(2_000_000 + number)
            .dir(&own, 0o1700)
            .mtime(3_000_000 + number)
            .file(format!("{own}/file"), 0o640, content.as_bytes())
            .owner(1000, number as u64)
            .mtime(4_000_000 + number)
            .hardlink(format!("{own}/same"), format!("{own}/file"))
            .symlink(format!("{own}/link"), "../0/file")
            .mtime(5_000_000 + number)
            .file("layers/replaced", 0o4711, own.as_bytes())
            .mtime(6_000_000 + number)
            .xattr("user.layer", own.as_bytes());
        let below = format!("layers/{}", number - 1);
        match number % 8 {
            1 => layer.whiteout(below),
            2 => layer.dir(&below, 0o700).mtime(7_000_000).opaque(&below),
            3 => layer.file(format!("{below}/link"), 0o600, b"no link any more").mtime(8_000_000),
            4 => layer.symlink(format!("{below}/same"), "file").mtime(9_000_000),
            5 => layer.fifo("layers/fifo", 0o622).mtime(10_000_000).device("layers/null", 0o666, 1, 3),
            6 => layer.whiteout("layers/fifo").whiteout("layers/null"),
            _ => layer,
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_layers_are_what_umoci_makes_of_them_on_each_driver() {
    let registry = Registry::start().await;
    registry.push(&layers().fold(ImageBuilder::new(), ImageBuilder::layer).build(), "many", "latest");
    let name = format!("{}/many:latest", registry.host());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/umoci-compare.sh");
    let compare = move || {
        // In a mount namespace of its own, so that nothing stays mounted.
        let mut command = Command::new("unshare");
        command.args(["-m", script, &name]).env("DIST", crate::support::program());
        command.output().expect("unshare starts")
    };

    let compared = tokio::task::spawn_blocking(compare).await.expect("it does not panic");

    let said = String::from_utf8_lossy(&compared.stdout);
    assert!(compared.status.success(), "{said}{}", String::from_utf8_lossy(&compared.stderr));
    assert_eq!(said.matches("all the same").count(), 2, "{said}");
}
