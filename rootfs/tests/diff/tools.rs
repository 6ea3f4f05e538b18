//! What others make of our archives.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use windlass_rootfs::{
    compression::Compression,
    diff::{self, Options},
};
use windlass_testkit::{Edits, NodeType, Tree, assert_same, require};

use crate::support::open;

#[test]
fn gnu_tar_extracts_the_tree() {
    for seed in 0..20_u32 {
        let bytes: Vec<u8> = (0..480)
            .map(|n: u32| (n.wrapping_add(seed * 7919).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        let (from, to) =
            [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder can be made")).into();
        Edits::decode(&bytes).apply(from.path());
        fs::write(from.path().join("last"), "").expect("it is new");
        let mut layer = Vec::new();
        let options = Options::default().compression(Compression::None);
        diff::diff(&open(from.path()), None, &mut layer, &options).expect("it can be written");

        let mut tar = Command::new(require("tar", "tar"))
            .args(["-x", "-p", "--same-owner", "--xattrs", "--xattrs-include=*", "-C"])
            .arg(to.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tar starts");
        tar.stdin.take().expect("it is piped").write_all(&layer).expect("it reads all");
        let output = tar.wait_with_output().expect("it ends");

        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut want = Tree::read(from.path());
        want.nodes.retain(|_, node| node.kind != NodeType::Socket);
        assert_same(&want, &Tree::read(to.path()));
    }
}
