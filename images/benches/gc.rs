//! What a page of the image list and a garbage collection cost, by the number of images.
//!
//! `cargo bench -p windlass-images --bench gc [numbers of images]`; 10, 1,000 and 100,000 if none are given. Each image has a manifest and a
//! config of its own, and four of 100 layers that all share. One in ten was deleted, so that there is something to sweep.
//!
//! Each row is measured by a process of its own, whose memory is what it took at its peak, beyond what it had before. `sweep` is a
//! collection that removes what was deleted, and lists it in its report; `clean` is the next one, which finds nothing to
//! remove; `names` and `sizes` are dry runs with a policy that keeps the newest names, and one by total size.

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::{Descriptor, MediaType};
use rusqlite::{Connection, params};
use serde_json::json;
use windlass_content::{Durability, LocalStore, Options, hash::sha256};
use windlass_images::{
    Filter, Store,
    gc::{self, Policy},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const COLLECTIONS: [&str; 4] = ["sweep", "clean", "names", "sizes"];

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [flag, what, folder, number] = &arguments[..]
        && flag == "--measure"
    {
        return measure(what, Path::new(folder), number.parse()?);
    }
    let mut numbers: Vec<usize> = arguments.iter().filter_map(|it| it.parse().ok()).collect();
    if numbers.is_empty() {
        // `cargo test` only wants to know whether it runs.
        let bench = arguments.iter().any(|it| it == "--bench");
        numbers = if bench { vec![10, 1_000, 100_000] } else { vec![10] };
    }
    let (mut pages, mut collections) = (Vec::new(), Vec::new());
    println!("a collection:");
    println!("{:>8} {:>8}{}", "images", "", row(["ms", "µs/image", "removed", "KiB"]));
    for number in numbers {
        let dir = tempfile::tempdir()?;
        fill(dir.path(), number)?;
        pages.push((number, apart("page", dir.path(), number)?));
        for name in COLLECTIONS {
            let values = apart(name, dir.path(), number)?;
            println!("{number:>8} {name:>8}{}", row(&values));
            collections.push((number, name, values));
        }
    }
    println!("\na page of the list, best of 20:");
    println!("{:>8}{}", "images", row(["all µs", "prefix µs", "label µs", "digest µs", "KiB"]));
    for (number, values) in &pages {
        println!("{number:>8}{}", row(values));
    }
    // Below a thousand, not even the buffers are full.
    let large: Vec<_> = pages.iter().map(|it| it.0).filter(|it| *it >= 1_000).collect();
    if let [few, .., many] = large[..] {
        println!("\npeak memory at {many} images, as a multiple of that at {few}:");
        for name in COLLECTIONS {
            let kib = |number| -> Option<f64> {
                let found = collections.iter().find(|it| (it.0, it.1) == (number, name))?;
                found.2.last()?.parse().ok()
            };
            println!("{name:>8} {:>9.2}", kib(many).zip(kib(few)).map_or(f64::NAN, |(many, few)| many / few));
        }
    }
    Ok(())
}

fn row(values: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    values.into_iter().map(|it| format!(" {it:>9}")).collect()
}

/// Measures in a process of its own; gives the numbers that it prints.
fn apart(what: &str, folder: &Path, number: usize) -> Result<Vec<String>> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--measure", what]).arg(folder).arg(number.to_string()).stderr(Stdio::inherit());
    // What glibc leaves free in up to eight heaps for each core is a matter of luck.
    command.env("MALLOC_ARENA_MAX", "1");
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("{what} of {number} images failed").into());
    }
    Ok(String::from_utf8(output.stdout)?.split_whitespace().map(str::to_owned).collect())
}

fn measure(what: &str, folder: &Path, number: usize) -> Result<()> {
    let (content, store) = open(folder)?;
    let policy = match what {
        "page" => {
            let before = reset_peak()?;
            let times = pages(&store, number)?.map(|it| it.as_micros());
            println!("{} {}", times.map(|it| it.to_string()).join(" "), peak()?.saturating_sub(before));
            return Ok(());
        }
        "names" => Policy::default().keep_newest(1),
        "sizes" => Policy::default().max_total_size(u64::MAX),
        _ => Policy::default(),
    };
    let options = gc::Options::default().dry_run(policy != Policy::default()).policy(policy);
    // Otherwise tokio starts up to 512, as chance has it, and they are what is measured.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(8).build()?;
    let gc = gc::Gc::new(store.clone(), Arc::new(content));
    // The cache of the store's database, of a fixed size, is full before.
    for page in 0..number.div_ceil(50) {
        store.list(&Filter::all().after(name(page * 50)).limit(50))?;
    }
    let before = reset_peak()?;
    let start = Instant::now();
    let report = runtime.block_on(gc.run(&options))?;
    let time = start.elapsed();
    let memory = peak()?.saturating_sub(before);
    let each = time.as_micros() / number as u128;
    println!("{} {each} {} {memory}", time.as_millis(), report.blobs.len());
    Ok(())
}

fn open(folder: &Path) -> Result<(LocalStore, Store)> {
    let options = Options::default().durability(Durability::Fast);
    Ok((LocalStore::open(folder.join("content"), options)?, Store::open(folder.join("images.db"))?))
}

/// How long pages of 50 take: of all, by prefix, by label, by digest.
fn pages(store: &Store, number: usize) -> Result<[Duration; 4]> {
    let after = name(number / 2);
    // One that is not deleted.
    let digest = store.get(&name(number / 20 * 10))?.ok_or("it is there")?.target.digest().clone();
    let page = |filter: Filter| -> Result<Duration> {
        let time = || -> Result<Duration> {
            let start = Instant::now();
            store.list(&filter.clone().limit(50))?;
            Ok(start.elapsed())
        };
        let times = (0..20).map(|_| time()).collect::<Result<Vec<_>>>()?;
        Ok(times.into_iter().min().unwrap_or_default())
    };
    Ok([
        page(Filter::all().after(&after))?,
        page(Filter::all().prefix("registry.example/team/").after(&after))?,
        page(Filter::all().label_is("team", "one").after(&after))?,
        page(Filter::all().digest(digest))?,
    ])
}

fn name(number: usize) -> String {
    format!("registry.example/team/app-{number:06}:latest")
}

/// Writes images past the stores, which would sync each of them.
fn fill(root: &Path, number: usize) -> Result<()> {
    let (content, _store) = open(root)?;
    let add = |media_type: MediaType, text: String| -> Result<Descriptor> {
        let descriptor = Descriptor::new(media_type, text.len() as u64, sha256(text.as_bytes()));
        fs::write(content.path(descriptor.digest()), text)?;
        Ok(descriptor)
    };
    let layers =
        (0..100).map(|n| add(MediaType::ImageLayer, format!("layer {n}"))).collect::<Result<Vec<_>>>()?;
    let mut database = Connection::open(root.join("images.db"))?;
    let transaction = database.transaction()?;
    for n in 0..number {
        let diff_ids: Vec<_> = (0..4).map(|layer| layers[(n + layer) % 100].digest()).collect();
        let config =
            json!({"os": "linux", "architecture": "amd64", "author": n, "rootfs": {"diff_ids": diff_ids}});
        let config = add(MediaType::ImageConfig, config.to_string())?;
        let layers: Vec<_> = (0..4).map(|layer| &layers[(n + layer) % 100]).collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
        let target = add(MediaType::ImageManifest, manifest)?;
        if n % 10 == 9 {
            continue;
        }
        let name = name(n);
        transaction.execute(
            "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, 0, 0)",
            params![name, serde_json::to_string(&target)?],
        )?;
        let team = if n % 2 == 0 { "one" } else { "two" };
        transaction.execute("INSERT INTO labels VALUES (?1, 'team', ?2)", [&name, team])?;
    }
    transaction.commit()?;
    Ok(())
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
