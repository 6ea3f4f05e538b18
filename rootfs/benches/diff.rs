//! `cargo bench -p windlass-rootfs`: writing 10,000 changed files as a layer, beside GNU tar's archive of the same folder and the
//! reading and hashing of it, in one run.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
    process::{Command, Stdio},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use windlass_content::hash::Hasher;
use windlass_rootfs::{
    compression::Compression,
    diff::{self, Options},
};
use windlass_snapshot::Whiteouts;

const FILES: usize = 10_000;

/// Files of some KiB, in folders of a hundred.
fn fill(root: &Path) {
    let text = b"the quick brown fox jumps over the lazy dog and goes on ".repeat(200);
    for file in 0..FILES {
        let folder = root.join(format!("folder-{}", file / 100));
        if file % 100 == 0 {
            fs::create_dir(&folder).expect("it is new");
        }
        fs::write(folder.join(format!("file-{file}")), &text[..file * 7919 % text.len()]).expect("it is new");
    }
}

fn diff(c: &mut Criterion) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs");
    let (upper, empty) = (folder.path().join("upper"), folder.path().join("empty"));
    for path in [&upper, &empty] {
        fs::create_dir(path).expect("it is new");
    }
    fill(&upper);
    let open = |path: &Path| File::open(path).expect("it is there").into();
    let (upper_root, empty_root) = (open(&upper), open(&empty));
    let options = |whiteouts| Options::default().whiteouts(whiteouts).compression(Compression::None);
    let bytes = |options: &Options, lower| {
        diff::diff(&upper_root, lower, io::sink(), options).expect("it can be written").size
    };
    let overlay = options(Whiteouts::Overlay);

    let mut group = c.benchmark_group("10,000 files to a layer");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(bytes(&overlay, None)));
    group.bench_function("GNU tar", |b| {
        b.iter(|| {
            // Into a pipe: it would not read files that go to /dev/null.
            let mut tar = Command::new("tar")
                .args(["-c", "--xattrs", "--format=pax", "-C"])
                .arg(&upper)
                .arg(".")
                .stdout(Stdio::piped())
                .spawn()
                .expect("tar starts");
            let copied = io::copy(&mut tar.stdout.take().expect("it is piped"), &mut io::sink());
            assert!(copied.expect("it can be read") > 0 && tar.wait().expect("it ends").success());
        });
    });
    group.bench_function("GNU tar, hashed", |b| {
        b.iter(|| {
            let mut tar = Command::new("tar")
                .args(["-c", "--xattrs", "--format=pax", "-C"])
                .arg(&upper)
                .arg(".")
                .stdout(Stdio::piped())
                .spawn()
                .expect("tar starts");
            let (mut out, mut buffer) = (tar.stdout.take().expect("it is piped"), vec![0; 256 << 10]);
            let mut hasher = Hasher::sha256();
            loop {
                match out.read(&mut buffer).expect("it can be read") {
                    0 => break,
                    read => hasher.update(&buffer[..read]),
                }
            }
            assert!(tar.wait().expect("it ends").success());
            hasher.finish()
        });
    });
    group.bench_function("of an overlay's upper folder", |b| b.iter(|| bytes(&overlay, Some(&empty_root))));
    let trees = options(Whiteouts::Remove);
    group.bench_function("of two trees, all new", |b| b.iter(|| bytes(&trees, Some(&empty_root))));
    group.bench_function("of two trees, all the same", |b| b.iter(|| bytes(&trees, Some(&upper_root))));
    let gzip = overlay.clone().compression(Compression::Gzip);
    group
        .bench_function("of an overlay's upper folder, gzip", |b| b.iter(|| bytes(&gzip, Some(&empty_root))));
    group.finish();
}

criterion_group!(benches, diff);
criterion_main!(benches);
