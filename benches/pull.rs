//! `cargo bench`: a cold pull beside its floor (fetch, hash, inflate, hash of the same bytes), and a warm one, in one run.

use std::{hint::black_box, io::Read};

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use windlass::{Reference, Windlass, content::hash::Hasher};
use windlass_testkit::{ImageBuilder, Layer, Registry};

/// Four layers of many small files and a large one.
fn layers() -> Vec<Layer> {
    let text = b"the quick brown fox jumps over the lazy dog and goes on ".repeat(40);
    let layer = |number: usize| {
        let files = (0..2000).fold(Layer::new(), |layer, file| {
            let start = (file * 7 + number) % 1000;
            layer.file(format!("l{number}/d{}/f{file}", file % 50), 0o644, &text[start..])
        });
        files.file(format!("l{number}/large"), 0o644, &text.repeat(4000))
    };
    (0..4).map(layer).collect()
}

fn pull(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime can be made");
    let layers = layers();
    let image = layers.iter().cloned().fold(ImageBuilder::new(), ImageBuilder::layer).build();
    let registry = runtime.block_on(Registry::start());
    registry.push(&image, "bench", "latest");
    let name: Reference = format!("{}/bench:latest", registry.host()).parse().expect("it is a reference");
    let blobs: Vec<_> = layers.iter().map(Layer::blob).collect();

    let mut group = c.benchmark_group("pull");
    group.sample_size(10);
    group.bench_function("floor: hash, inflate, hash", |b| {
        b.iter(|| {
            for blob in &blobs {
                let mut hasher = Hasher::sha256();
                hasher.update(blob);
                black_box(hasher.finish());
                let mut inflate = flate2::read::MultiGzDecoder::new(&blob[..]);
                let (mut hasher, mut buffer) = (Hasher::sha256(), vec![0; 256 << 10]);
                loop {
                    match inflate.read(&mut buffer).expect("it is gzip") {
                        0 => break,
                        read => hasher.update(&buffer[..read]),
                    }
                }
                black_box(hasher.finish());
            }
        });
    });
    group.bench_function("cold", |b| {
        b.iter_with_large_drop(|| {
            let root = tempfile::tempdir().expect("a temporary folder can be made");
            let windlass = Windlass::open(root.path()).expect("it opens");
            runtime.block_on(windlass.pull(&name)).expect("it pulls");
            root
        });
    });
    let root = tempfile::tempdir().expect("a temporary folder can be made");
    let windlass = Windlass::open(root.path()).expect("it opens");
    runtime.block_on(windlass.pull(&name)).expect("it pulls");
    group.bench_function("warm", |b| b.iter(|| runtime.block_on(windlass.pull(&name)).expect("it pulls")));
    group.finish();
}

criterion_group!(benches, pull);
criterion_main!(benches);
