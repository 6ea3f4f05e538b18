//! What applying layers costs beside GNU `tar -x` of the same bytes, in the same run.
//!
//! `cargo bench -p windlass-rootfs --bench apply -- [ROUNDS]`: 5 rounds if not said, and the median of each counts. Needs root, for file
//! systems of its own: each run gets a fresh ext4 with a journal. CPU time is that of the process, user and system, in a process of
//! its own for both. What windlass does and tar does not: it hashes all plain bytes (SHA-256), which is the DiffID; what that alone
//! takes, in the same run, is in a column of its own, and the last ratio is to both together.
//!
//! Then: layers whose entries come in hostile orders, of `n` entries and of four times as many. Where the last column is not far from 1,
//! an entry costs the same however many there are.

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use oci_spec::image::MediaType;
use rustix::{
    process::{Pid, WaitId, WaitIdOptions, waitid},
    time::{ClockId, clock_gettime},
};
use windlass_content::hash::Hasher;
use windlass_rootfs::{
    apply::{Limits, Options, apply},
    compression::decompress,
};
use windlass_snapshot::Whiteouts;
use windlass_testkit::{Layer, LoopDisk, require, touch_memory};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How much is read at once, in bytes: as much as the pieces that a pull hands over.
const BUFFER: usize = 256 << 10;
/// The first argument of the process that applies.
const CHILD: &str = "apply-these";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some((CHILD, [folder, layers @ ..])) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        return apply_here(Path::new(folder), layers);
    }
    // `cargo test` only wants to know whether it runs.
    let bench = arguments.iter().any(|it| it == "--bench");
    let rounds = arguments.iter().find_map(|it| it.parse().ok()).unwrap_or(if bench { 5 } else { 1 });
    let small = if bench { 1 } else { 100 };
    let folder = tempfile::tempdir()?;
    let many = write_tar(&folder.path().join("many.tar"), 0, 50_000 / small, |n| 200 + n * 7919 % 16_000)?;
    let large = write_tar(&folder.path().join("large.tar"), 0, 4, |_| (128 << 20) / small as usize)?;
    let layers = (0..40)
        .map(|layer| {
            let path = folder.path().join(format!("layer-{layer}.tar"));
            write_tar(&path, layer * 400 / small, 1_000 / small, |n| 200 + n * 7919 % 16_000)
        })
        .collect::<Result<Vec<_>>>()?;
    let zipped = folder.path().join("many.tar.gz");
    let gzip = Command::new(require("gzip", "gzip"))
        .arg("-1c")
        .arg(&many)
        .stdout(File::create(&zipped)?)
        .status()?;
    assert!(gzip.success(), "gzip works");
    if bench {
        touch_memory();
    }

    println!(
        "{:<24} {:>9} {:>9} {:>12} {:>7} {:>10} {:>9} {:>13}",
        "", "tar cpu", "hash cpu", "windlass cpu", "to tar", "to both", "tar wall", "windlass wall"
    );
    for (name, layers) in [
        ("50,000 files", vec![many]),
        ("50,000 files, gzip", vec![zipped]),
        ("four files of 128 MiB", vec![large]),
        ("40 layers", layers),
    ] {
        let mut took = [const { (Vec::new(), Vec::new()) }; 2];
        for _ in 0..rounds {
            for (tool, (cpus, walls)) in [tar, windlass].into_iter().zip(&mut took) {
                let disk = LoopDisk::ext4(2 << 30).direct();
                let target = disk.path().join("target");
                fs::create_dir(&target)?;
                let start = Instant::now();
                cpus.push(tool(&target, &layers)?);
                walls.push(start.elapsed());
            }
        }
        let [(tar, tar_wall), (ours, our_wall)] = took.map(|(cpus, walls)| (median(cpus), median(walls)));
        let hash = median((0..rounds).map(|_| hash(&layers)).collect::<Result<_>>()?);
        println!(
            "{name:<24} {:>6} ms {:>6} ms {:>9} ms {:>7.2} {:>10.2} {:>6} ms {:>10} ms",
            tar.as_millis(),
            hash.as_millis(),
            ours.as_millis(),
            ours.as_secs_f64() / tar.as_secs_f64(),
            ours.as_secs_f64() / (tar + hash).as_secs_f64(),
            tar_wall.as_millis(),
            our_wall.as_millis()
        );
    }
    hostile_orders(if bench { 10_000 } else { 100 })
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// What it takes to hash the plain bytes, and nothing else: not to read or inflate them.
fn hash(layers: &[PathBuf]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    let mut buffer = vec![0; BUFFER];
    for layer in layers {
        let mut plain = plain(layer)?;
        let mut hasher = Hasher::sha256();
        loop {
            let read = plain.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            let before = cpu(ClockId::ThreadCPUTime)?;
            hasher.update(&buffer[..read]);
            all += cpu(ClockId::ThreadCPUTime)? - before;
        }
    }
    Ok(all)
}

fn hostile_orders(n: usize) -> Result<()> {
    type Entries = fn(Layer, usize) -> Layer;
    let orders: [(&str, Entries, Entries); 6] = [
        (
            "whiteouts of one folder",
            |layer, n| layer.file(format!("d/{n}"), 0o644, b""),
            |layer, _| layer.whiteout("d"),
        ),
        (
            "marks in one folder",
            |layer, n| layer.file(format!("d/{n}"), 0o644, b""),
            |layer, _| layer.opaque("d"),
        ),
        ("marks at the root", |layer, n| layer.file(n.to_string(), 0o644, b""), |layer, _| layer.opaque("")),
        (
            "implied, then declared",
            |layer, n| layer.file(format!("{n}/f"), 0o644, b""),
            |layer, n| layer.dir(n.to_string(), 0o755),
        ),
        (
            "whiteouts, then entries",
            |layer, n| layer.whiteout(format!("w/{n}")),
            |layer, n| layer.file(format!("w/{n}"), 0o644, b""),
        ),
        (
            "links below, replaced",
            |layer, n| layer.hardlink(format!("l/{n}"), "old"),
            |layer, n| layer.file(format!("l/{n}"), 0o644, b""),
        ),
    ];
    let disk = LoopDisk::ext4(2 << 30).direct();
    println!("\n{:<28} {:<8} {:>14} {:>14} {:>7}", "", "", "µs for each", "of four times", "growth");
    for (name, first, second) in orders {
        for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
            let cost = |n: usize| -> Result<f64> {
                let folder = tempfile::tempdir_in(disk.path())?;
                let lower = Layer::new().file("old", 0o644, b"").file("d/old", 0o644, b"").tar();
                let root = File::open(folder.path())?.into();
                if whiteouts == Whiteouts::Remove {
                    apply(&lower[..], &root, &Options::default())?;
                }
                let layer = (0..n).fold((0..n).fold(Layer::new(), first), second).tar();
                let before = cpu(ClockId::ProcessCPUTime)?;
                apply(&layer[..], &root, &Options::default().whiteouts(whiteouts))?;
                Ok((cpu(ClockId::ProcessCPUTime)? - before).as_secs_f64() * 1e6 / (2 * n) as f64)
            };
            let (few, many) = (cost(n)?, cost(4 * n)?);
            println!("{name:<28} {whiteouts:<8?} {few:>14.1} {many:>14.1} {:>7.2}", many / few);
        }
    }
    Ok(())
}

/// A tar of files, 25 in each folder.
fn write_tar(path: &Path, first: usize, files: usize, size: impl Fn(usize) -> usize) -> Result<PathBuf> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(path)?));
    let mut header = tar::Header::new_ustar();
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    for n in first..first + files {
        let folder = format!("usr/share/package-{}/part-{}", n / 250, n / 25);
        if n % 25 == 0 || n == first {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, format!("{folder}/"), &[][..])?;
        }
        let size = size(n);
        // Not all alike, so that gzip has something to do.
        let content: Vec<u8> = (0..size).map(|at| (at * at / 97 % 251 + n % 5) as u8).collect();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(size as u64);
        tar.append_data(&mut header, format!("{folder}/file-{n}"), &content[..])?;
    }
    tar.into_inner()?.flush()?;
    // The first reading is nobody's.
    let mut file = File::open(path)?;
    std::io::copy(&mut file, &mut std::io::sink())?;
    Ok(path.to_owned())
}

/// The CPU time that GNU tar takes for all layers, gzip counted.
fn tar(target: &Path, layers: &[PathBuf]) -> Result<Duration> {
    let mut all = Duration::ZERO;
    for layer in layers {
        let zipped = layer.extension().is_some_and(|it| it == "gz");
        let mut tar = Command::new(require("tar", "tar"));
        tar.arg("-x").arg("-C").arg(target);
        if !zipped {
            all += cpu_of(tar.arg("-f").arg(layer))?;
            continue;
        }
        // As `tar -z` does it, but so that both can be seen.
        let mut gzip =
            Command::new(require("gzip", "gzip")).arg("-dc").arg(layer).stdout(Stdio::piped()).spawn()?;
        tar.arg("-f").arg("-").stdin(gzip.stdout.take().expect("it is piped"));
        all += cpu_of(&mut tar)?;
        all += cpu_when_ended(gzip.id())?;
        gzip.wait()?;
    }
    Ok(all)
}

fn cpu_of(command: &mut Command) -> Result<Duration> {
    let mut child = command.spawn()?;
    let cpu = cpu_when_ended(child.id())?;
    assert!(child.wait()?.success(), "{command:?} works");
    Ok(cpu)
}

/// What a process with one thread has used, once it has ended and before it is forgotten.
fn cpu_when_ended(id: u32) -> Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(id)?).ok_or("a child has an id")?;
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let statistics = fs::read_to_string(format!("/proc/{id}/schedstat"))?;
    Ok(Duration::from_nanos(statistics.split(' ').next().ok_or("it has a number")?.parse()?))
}

/// The CPU time that windlass takes for all layers.
fn windlass(target: &Path, layers: &[PathBuf]) -> Result<Duration> {
    let output = Command::new(env::current_exe()?)
        .arg(CHILD)
        .arg(target)
        .args(layers)
        .stderr(Stdio::inherit())
        .output()?;
    assert!(output.status.success(), "the layers are applied");
    Ok(Duration::from_nanos(String::from_utf8(output.stdout)?.trim().parse()?))
}

fn apply_here(folder: &Path, layers: &[String]) -> Result<()> {
    for layer in layers {
        let root = File::open(folder)?.into();
        apply(BufReader::with_capacity(BUFFER, plain(Path::new(layer))?), &root, &Options::default())?;
    }
    println!("{}", cpu(ClockId::ProcessCPUTime)?.as_nanos());
    Ok(())
}

/// The plain bytes of a layer, as a pull reads them.
fn plain(layer: &Path) -> Result<Box<dyn Read + Send>> {
    let media_type = match layer.extension().is_some_and(|it| it == "gz") {
        true => MediaType::ImageLayerGzip,
        false => MediaType::ImageLayer,
    };
    Ok(decompress(File::open(layer)?, &media_type, &Limits::default())?)
}

fn cpu(clock: ClockId) -> Result<Duration> {
    let used = clock_gettime(clock);
    Ok(Duration::new(used.tv_sec.try_into()?, used.tv_nsec.try_into()?))
}
