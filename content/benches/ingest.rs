//! `cargo bench -p windlass-content --bench ingest [-- MIB]`: taking one large blob into a store, beside `cat` and
//! `sha256sum` of the same file, in one run.
//!
//! `cat` only copies and `sha256sum` only hashes; the store does both, and its aim is 0.9 of the slower of the two. With
//! [`Durability::Safe`] the blob is also on the disk at the end: what to compare that with is `dd conv=fdatasync`.
//! Times are medians of rounds in which all take turns; the file is in the page cache.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::{Descriptor, MediaType};
use tokio::runtime::Runtime;
use windlass_content::{
    Blob, Durability, Ingest, Ingester, Labels, LocalStore, Options, Store, hash::Hasher,
};

const ROUNDS: usize = 7;
const MIB: u64 = 1 << 20;

fn main() {
    let size = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(512) * MIB;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("file");
    let blob = make(&file, size);
    let runtime = Runtime::new().expect("a runtime can be made");
    let store = |name: &str, durability| {
        let options = Options::default().durability(durability);
        LocalStore::open(folder.path().join(name), options).expect("the folder can be written")
    };
    let (fast, safe) = (store("fast", Durability::Fast), store("safe", Durability::Safe));

    let copy = folder.path().join("copy");
    let [cat, hash, dd] = [
        format!("cat '{}' > '{}'", file.display(), copy.display()),
        format!("sha256sum '{}'", file.display()),
        format!("dd if='{}' of='{}' bs=1M conv=fdatasync status=none", file.display(), copy.display()),
    ];
    let mut times: [Vec<Duration>; 5] = Default::default();
    for round in 0..=ROUNDS {
        let taken = [
            shell(&cat, &copy),
            shell(&hash, &copy),
            shell(&dd, &copy),
            runtime.block_on(ingest(&fast, &file, &blob)),
            runtime.block_on(ingest(&safe, &file, &blob)),
        ];
        // The first round warms everything up.
        if round > 0 {
            times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
        }
    }
    report(size, times);
}

fn report(size: u64, times: [Vec<Duration>; 5]) {
    let [cat, hash, dd, fast, safe] = times.map(median);
    let rate = |time: Duration| size as f64 / 1e6 / time.as_secs_f64();
    let ratio = |of: Duration, to: Duration| to.as_secs_f64() / of.as_secs_f64();
    println!("{} MiB", size / MIB);
    println!("{:24} {:>8}", "", "MB/s");
    for (what, time) in [("cat", cat), ("sha256sum", hash), ("dd conv=fdatasync", dd)] {
        println!("{what:24} {:>8.0}", rate(time));
    }
    println!("{:24} {:>8.0} {:>6.2} of the slower of cat and sha256sum", "ingest, fast", rate(fast), {
        ratio(fast, cat.max(hash))
    });
    println!("{:24} {:>8.0} {:>6.2} of the slower of dd and sha256sum", "ingest, safe", rate(safe), {
        ratio(safe, dd.max(hash))
    });
}

/// Takes the file in once, and removes the blob again.
async fn ingest(store: &LocalStore, file: &Path, blob: &Descriptor) -> Duration {
    let source = Blob::new(Arc::new(File::open(file).expect("it is there")), blob.size());
    let begun = Instant::now();
    let Ingest::Open(mut writer) = store.ingest("bench", blob).await.expect("it can be opened") else {
        panic!("the last round has removed it");
    };
    writer.append(source.stream(0)).await.expect("there is room");
    writer.commit(Labels::new()).await.expect("the bytes are right");
    let taken = begun.elapsed();
    store.delete(blob.digest()).await.expect("it was committed");
    taken
}

fn shell(command: &str, copy: &Path) -> Duration {
    let begun = Instant::now();
    let status = Command::new("sh").args(["-c", command]).stdout(Stdio::null()).status();
    let taken = begun.elapsed();
    assert!(status.expect("there is a shell").success(), "{command}");
    let _ = fs::remove_file(copy);
    taken
}

/// Makes a file of bytes that no file system can leave out.
fn make(path: &Path, size: u64) -> Descriptor {
    let mut random = File::open("/dev/urandom").expect("there is one");
    let mut chunk = vec![0; MIB as usize];
    random.read_exact(&mut chunk).expect("it has no end");
    let (mut file, mut hasher) = (File::create(path).expect("the folder can be written"), Hasher::sha256());
    for at in 0..size / MIB {
        chunk[..8].copy_from_slice(&at.to_be_bytes());
        file.write_all(&chunk).expect("there is room");
        hasher.update(&chunk);
    }
    file.sync_all().expect("there is room");
    Descriptor::new(MediaType::ImageLayer, size, hasher.finish())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
