//! `cargo bench --bench fetch [-- MIB]`: one large blob from a registry on loopback into a sink, beside `curl`, in one run.
//!
//! The registry is Debian's `docker-registry`, in a process of its own. Times are medians of rounds in which all take turns.

use std::{
    fs, io,
    num::NonZeroUsize,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::{Descriptor, MediaType};
use windlass::{
    Reference,
    content::{ByteStream, hash::Hasher},
    images::progress::Progress,
    remotes::{Fetcher, ParallelFetch, Pusher, Registry, Resolver, from_fn, push},
};
use windlass_testkit::{RealRegistry, require};

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;

fn main() {
    let size =
        std::env::args().skip(1).find_map(|argument| argument.parse::<u64>().ok()).unwrap_or(1024) * MIB;
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    // A task of its own, as in a pull: not the thread that waits for the runtime.
    runtime.block_on(runtime.spawn(compare(size))).expect("it does not panic");
}

async fn compare(size: u64) {
    let server = RealRegistry::start().await;
    let name: Reference = format!("{}/bench:latest", server.host()).parse().expect("it is a reference");
    let one = Registry::new().expect("the settings are good");
    let four =
        Registry::builder().parallel_fetch(ParallelFetch::default()).build().expect("the settings are good");

    let blob = descriptor(size);
    let pushed = timed(put(&one, &name, &blob)).await;
    println!("{} MiB blob; pushed at {:.0} MB/s", size / MIB, rate(size, pushed));

    let url = format!("http://{}/v2/bench/blobs/{}", server.host(), blob.digest());
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut peaks = [0; 2];
    for _ in 0..=ROUNDS {
        times[0].push(timed(curl(&url)).await);
        for (at, registry) in [&one, &four].into_iter().enumerate() {
            let before = reset_peak();
            times[at + 1].push(timed(sink(registry, &name, &blob)).await);
            peaks[at] = peaks[at].max(peak().saturating_sub(before));
        }
    }
    let medians = times.map(median);
    println!("{:32} {:>8} {:>10} {:>18}", "", "MB/s", "of curl", "memory above idle");
    println!("{:32} {:>8.0}", "curl -o /dev/null", rate(size, medians[0]));
    for (at, what) in ["fetch, one connection", "fetch, 4 connections of 4 MiB"].into_iter().enumerate() {
        let ratio = medians[0].as_secs_f64() / medians[at + 1].as_secs_f64();
        println!("{what:32} {:>8.0} {ratio:>10.2} {:>14} KiB", rate(size, medians[at + 1]), peaks[at]);
    }
}

/// Reads the whole blob, and keeps nothing.
async fn sink(registry: &Registry, name: &Reference, blob: &Descriptor) {
    let by_digest = name.clone().with_digest(blob.digest().clone());
    let resolved = registry.resolve(&by_digest).await.expect("it was pushed");
    let body = resolved.fetcher.fetch(blob, 0).await.expect("it is there");
    let length = body.try_fold(0, |length, chunk| async move { Ok(length + chunk.len() as u64) }).await;
    assert_eq!(length.expect("it comes whole"), blob.size());
}

async fn curl(url: &str) {
    let mut curl = Command::new(require("curl", "curl"));
    curl.args(["--silent", "--fail", "--output", "/dev/null", url]).stdin(Stdio::null());
    let status = tokio::task::spawn_blocking(move || curl.status()).await.expect("it does not panic");
    assert!(status.expect("curl starts").success());
}

async fn put(registry: &Registry, name: &Reference, blob: &Descriptor) {
    let pusher: Arc<dyn Pusher> =
        Arc::new(registry.pusher(name, blob.digest()).await.expect("the registry takes content"));
    let source: Arc<dyn Fetcher> =
        Arc::new(from_fn(|blob: Descriptor, _| async move { Ok(content(blob.size())) }));
    push(source, pusher, blob, NonZeroUsize::MIN, &Progress::default()).await.expect("it is taken");
}

/// Bytes that no file system stores as a hole, the same each time.
fn content(size: u64) -> ByteStream {
    stream::iter((0..size / MIB).map(|number| Ok::<_, io::Error>(chunk(number)))).boxed()
}

fn chunk(number: u64) -> Bytes {
    let word = |at: u64| (number << 20 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..MIB / 8).flat_map(word).collect::<Vec<_>>().into()
}

fn descriptor(size: u64) -> Descriptor {
    let mut hasher = Hasher::sha256();
    (0..size / MIB).for_each(|number| hasher.update(&chunk(number)));
    Descriptor::new(MediaType::ImageLayer, size, hasher.finish())
}

async fn timed(work: impl Future<Output = ()>) -> Duration {
    let started = Instant::now();
    work.await;
    started.elapsed()
}

/// The first round warms up, and does not count.
fn median(times: Vec<Duration>) -> Duration {
    let mut times = times[1..].to_vec();
    times.sort();
    times[times.len() / 2]
}

fn rate(size: u64, time: Duration) -> f64 {
    size as f64 / 1e6 / time.as_secs_f64()
}

/// Forgets how much memory this process had at most, and gives what it has, in KiB (proc(5), `clear_refs`).
fn reset_peak() -> u64 {
    fs::write("/proc/self/clear_refs", "5").expect("a process can forget its own peak");
    peak()
}

/// How much memory this process had at most, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("a process can read its own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel counts it");
    line.trim_end_matches("kB").trim().parse().expect("it is a number")
}
