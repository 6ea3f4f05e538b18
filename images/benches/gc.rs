//! What a page of the image list and a garbage collection cost, by the number of images.
//!
//! `cargo bench -p windlass-images --bench gc [numbers of images]`; 10, 1,000 and 100,000 if none are given. Each image has a manifest and a
//! config of its own, and four of 100 layers that all share. One in ten was deleted, so that there is something to sweep.

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::{Descriptor, MediaType};
use rusqlite::{Connection, params};
use serde_json::json;
use windlass_content::{Durability, LocalStore, Options, hash::sha256};
use windlass_images::{Filter, Store, gc};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let mut numbers: Vec<usize> = env::args().skip(1).filter_map(|it| it.parse().ok()).collect();
    if numbers.is_empty() {
        // `cargo test` only wants to know whether it runs.
        let bench = env::args().any(|it| it == "--bench");
        numbers = if bench { vec![10, 1_000, 100_000] } else { vec![10] };
    }
    println!(
        "{:>8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}",
        "images",
        "page µs",
        "prefix µs",
        "label µs",
        "digest µs",
        "page KiB",
        "mark ms",
        "gc ms",
        "µs/image",
        "swept",
        "gc KiB"
    );
    for number in numbers {
        runtime.block_on(measure(number))?;
    }
    Ok(())
}

async fn measure(number: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let content =
        LocalStore::open(dir.path().join("content"), Options::default().durability(Durability::Fast))?;
    let store = Store::open(dir.path().join("images.db"))?;
    let middle = fill(dir.path(), &content, number)?;

    let name = |n: usize| format!("registry.example/team/app-{n:06}:latest");
    let after = name(number / 2);
    let before = reset_peak()?;
    let page = |filter: Filter| {
        // The best of a few, warm.
        let time = || -> Result<Duration> {
            let start = Instant::now();
            store.list(&filter.clone().limit(50))?;
            Ok(start.elapsed())
        };
        (0..20).map(|_| time()).collect::<Result<Vec<_>>>().map(|it| it.into_iter().min().unwrap_or_default())
    };
    let times = [
        page(Filter::all().after(&after))?,
        page(Filter::all().prefix("registry.example/team/").after(&after))?,
        page(Filter::all().label_is("team", "one").after(&after))?,
        page(Filter::all().digest(middle.digest().clone()))?,
    ]
    .map(|it| it.as_micros());
    let page_memory = peak()?.saturating_sub(before);

    let before = reset_peak()?;
    let gc = gc::Gc::new(store, Arc::new(content));
    let start = Instant::now();
    gc.run(&gc::Options::default().dry_run(true)).await?;
    let mark = start.elapsed();
    let start = Instant::now();
    let report = gc.run(&gc::Options::default()).await?;
    let all = start.elapsed();
    let memory = peak()?.saturating_sub(before);
    println!(
        "{number:>8} {:>9} {:>9} {:>9} {:>9} {page_memory:>10} {:>10} {:>10} {:>10} {:>9} {memory:>9}",
        times[0],
        times[1],
        times[2],
        times[3],
        mark.as_millis(),
        all.as_millis(),
        all.as_micros() / number as u128,
        report.blobs.len(),
    );
    Ok(())
}

/// Writes images past the stores, which would sync each of them. Gives the target in the middle.
fn fill(root: &Path, content: &LocalStore, number: usize) -> Result<Descriptor> {
    let add = |media_type: MediaType, text: String| -> Result<Descriptor> {
        let descriptor = Descriptor::new(media_type, text.len() as u64, sha256(text.as_bytes()));
        fs::write(content.path(descriptor.digest()), text)?;
        Ok(descriptor)
    };
    let layers =
        (0..100).map(|n| add(MediaType::ImageLayer, format!("layer {n}"))).collect::<Result<Vec<_>>>()?;
    let mut database = Connection::open(root.join("images.db"))?;
    let transaction = database.transaction()?;
    let mut middle = layers[0].clone();
    for n in 0..number {
        let diff_ids: Vec<_> = (0..4).map(|layer| layers[(n + layer) % 100].digest()).collect();
        let config =
            json!({"os": "linux", "architecture": "amd64", "author": n, "rootfs": {"diff_ids": diff_ids}});
        let config = add(MediaType::ImageConfig, config.to_string())?;
        let layers: Vec<_> = (0..4).map(|layer| &layers[(n + layer) % 100]).collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let target = add(MediaType::ImageManifest, manifest)?;
        if n == number / 2 {
            middle = target.clone();
        }
        if n % 10 == 9 {
            continue;
        }
        let name = format!("registry.example/team/app-{n:06}:latest");
        transaction.execute(
            "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, 0, 0)",
            params![name, serde_json::to_string(&target)?],
        )?;
        let team = if n % 2 == 0 { "one" } else { "two" };
        transaction.execute("INSERT INTO labels VALUES (?1, 'team', ?2)", [&name, team])?;
    }
    transaction.commit()?;
    Ok(middle)
}

/// Forgets the peak of memory; gives what is used now, in KiB.
fn reset_peak() -> Result<u64> {
    fs::write("/proc/self/clear_refs", "5")?;
    peak()
}

/// The most memory used since, in KiB.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no peak")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
