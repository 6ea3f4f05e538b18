//! What applying layers costs beside GNU `tar -x` of the same bytes, in the same run.
//!
//! `cargo bench -p windlass-rootfs --bench apply [rounds]`; 3 rounds if not said, and the best of each counts. Needs root, for file
//! systems of its own: each run gets a fresh ext4 with a journal. CPU time is that of the process, user and system, in a process of
//! its own for both. What windlass does and tar does not: it hashes all bytes (SHA-256), which is the DiffID.

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
use windlass_rootfs::{
    apply::{Limits, Options, apply},
    compression::decompress,
};
use windlass_testkit::{LoopDisk, require};

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
    let rounds = arguments.iter().find_map(|it| it.parse().ok()).unwrap_or(if bench { 3 } else { 1 });
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

    println!(
        "{:<24} {:>9} {:>12} {:>7} {:>9} {:>12}",
        "", "tar cpu", "windlass cpu", "ratio", "tar wall", "windlass wall"
    );
    for (name, layers) in [
        ("50,000 files", vec![many]),
        ("50,000 files, gzip", vec![zipped]),
        ("four files of 128 MiB", vec![large]),
        ("40 layers", layers),
    ] {
        let mut best = [(Duration::MAX, Duration::MAX); 2];
        for _ in 0..rounds {
            for (tool, best) in [tar, windlass].into_iter().zip(&mut best) {
                let disk = LoopDisk::ext4(2 << 30);
                let target = disk.path().join("target");
                fs::create_dir(&target)?;
                let start = Instant::now();
                let cpu = tool(&target, &layers)?;
                *best = (best.0.min(cpu), best.1.min(start.elapsed()));
            }
        }
        let [(tar, tar_wall), (ours, our_wall)] = best;
        println!(
            "{name:<24} {:>6} ms {:>9} ms {:>7.2} {:>6} ms {:>9} ms",
            tar.as_millis(),
            ours.as_millis(),
            ours.as_secs_f64() / tar.as_secs_f64(),
            tar_wall.as_millis(),
            our_wall.as_millis()
        );
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
        let file = File::open(layer)?;
        let plain: Box<dyn Read + Send> = match layer.ends_with("gz") {
            true => decompress(file, &MediaType::ImageLayerGzip, &Limits::default())?,
            false => Box::new(file),
        };
        let root = File::open(folder)?.into();
        apply(BufReader::with_capacity(BUFFER, plain), &root, &Options::default())?;
    }
    let used = clock_gettime(ClockId::ProcessCPUTime);
    println!("{}", u128::try_from(used.tv_sec)? * 1_000_000_000 + u128::try_from(used.tv_nsec)?);
    Ok(())
}
