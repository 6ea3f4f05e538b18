//! `cargo bench --bench erofs -- [ROUNDS] [LAYOUT:TAG]`: unpacking an image with the erofs driver, beside the overlay driver, and
//! beside what no unpack can do without: hashing the blobs, inflating them, hashing what comes out, and writing it to one file. The
//! limits are for what the driver does if nothing is said: indexes of tars.
//!
//! Five rounds of an image of six layers, in the shape of a Python application, if nothing else is said. Each figure is of a disk
//! of its own, an ext4 with a journal. The medians of the rounds are printed, the first left out.

#[path = "../rootfs/benches/unpack/image.rs"]
mod image;

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use oci_spec::image::Descriptor;
use rustix::time::{ClockId, clock_gettime};
use windlass::{
    content::{LocalStore, hash::Hasher},
    images::Image,
    rootfs::{Unpacker, compression::decompress},
    snapshot::{
        Durability, Erofs, ErofsOptions, Overlay, Snapshotter,
        erofs::{Form, LayerForm},
        mount, usage_with_parents,
    },
};
use windlass_testkit::{LoopDisk, touch_memory};

/// How many bytes a disk has, holes included.
const DISK: u64 = 4 << 30;
/// What we hold ourselves to.
const LIMITS: [(&str, f64); 4] = [
    ("CPU of unpack, of overlay's", 0.65),
    ("CPU of unpack, of the plain pipeline's", 1.25),
    ("time of removal, of overlay's", 0.05),
    ("first find and cat, of overlay's", 1.2),
];

/// What was measured of one way, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    cpu: f64,
    wall: f64,
    removal: f64,
    first_read: f64,
    /// What is on the disk, in MiB.
    room: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let layout = arguments.iter().find(|argument| argument.contains(':'));
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::tempdir()?;
    let (store, manifest) = runtime.block_on(image::load(folder.path(), layout.map(String::as_str)));
    let images = folder.path().join("content");
    let image = runtime.block_on(Image::read(&store, &manifest))?;
    let layers: Vec<_> = image.layers().map(|(blob, _)| blob.clone()).collect();
    touch_memory();

    let mut all = [const { Vec::new() }; 5];
    for round in 0..=rounds {
        eprintln!("round {round} of {rounds}");
        all[0].push(pipeline(&images, &layers)?);
        for (way, results) in
            [Way::Overlay, Way::Index, Way::Full, Way::Stacked].into_iter().zip(&mut all[1..])
        {
            results.push(runtime.block_on(unpack(way, &images, &layers, &store, &manifest))?);
        }
    }
    let [plain, overlay, index, full, stacked] = all.map(median);
    println!("{:<28}{:>9}{:>9}{:>10}{:>12}{:>8}", "", "CPU s", "wall s", "removal s", "find+cat s", "MiB");
    for (name, it) in [
        ("plain pipeline", plain),
        ("overlay", overlay),
        ("erofs, indexes of tars", index),
        ("erofs, full images", full),
        ("erofs, stacked full images", stacked),
    ] {
        let Measured { cpu, wall, removal, first_read, room } = it;
        println!("{name:<28}{cpu:>9.3}{wall:>9.3}{removal:>10.4}{first_read:>12.3}{room:>8.0}");
    }
    let ratios = [
        index.cpu / overlay.cpu,
        index.cpu / plain.cpu,
        index.removal / overlay.removal,
        index.first_read / overlay.first_read,
    ];
    for ((name, limit), ratio) in LIMITS.iter().zip(ratios) {
        let verdict = if ratio <= *limit { "met" } else { "MISSED" };
        println!("{name:<42}{ratio:>7.3}   at most {limit:<6}{verdict}");
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Way {
    Overlay,
    /// The default.
    Index,
    Full,
    Stacked,
}

impl Way {
    fn open(self, root: &Path) -> Result<Arc<dyn Snapshotter>> {
        let erofs = |options| Erofs::open_with(root, Durability::Safe, options);
        let options = ErofsOptions::default();
        Ok(match self {
            Self::Overlay => Arc::new(Overlay::open(root, Durability::Safe)?),
            Self::Index => Arc::new(erofs(options.layers(LayerForm::Index))?),
            Self::Full => Arc::new(erofs(options.layers(LayerForm::Full))?),
            Self::Stacked => Arc::new(erofs(options.layers(LayerForm::Full).form(Form::Stacked))?),
        })
    }
}

/// Verifies the blobs, unpacks them, reads everything, and removes it all.
async fn unpack(
    way: Way,
    images: &Path,
    layers: &[Descriptor],
    store: &LocalStore,
    manifest: &Descriptor,
) -> Result<Measured> {
    let disk = LoopDisk::ext4(DISK).direct();
    let root = disk.path().join("snapshots");
    let driver = way.open(&root)?;
    let mut measured = Measured::default();

    let (cpu, begun) = (cpu(), Instant::now());
    for layer in layers {
        hash(&blob(images, layer))?;
    }
    let unpacker = Unpacker::new(Arc::new(store.clone()), driver.clone());
    let top = unpacker.unpack(manifest).await?.chain_id.context("it has layers")?.to_string();
    (measured.cpu, measured.wall) = (self::cpu() - cpu, begun.elapsed().as_secs_f64());

    measured.room = usage_with_parents(&*driver, &top)?.bytes as f64 / f64::from(1 << 20);

    // As after a boot: nothing of the disk is in memory.
    drop((unpacker, driver));
    disk.remount();
    let driver = way.open(&root)?;
    let begun = Instant::now();
    let target = tempfile::tempdir()?;
    mount::mount_all(&driver.view("view", Some(&top))?, target.path())?;
    let read = "find . -type f -print0 | xargs -0 cat | wc -c";
    let output = Command::new("sh").args(["-c", read]).current_dir(target.path()).output()?;
    measured.first_read = begun.elapsed().as_secs_f64();
    mount::unmount(target.path())?;
    let bytes: u64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    ensure!(bytes > 10 << 20, "{way:?} shows {bytes} bytes only");
    driver.remove("view")?;

    let mut name = Some(top);
    let begun = Instant::now();
    while let Some(here) = name {
        name = driver.stat(&here)?.context("it is there")?.parent;
        driver.remove(&here)?;
    }
    measured.removal = begun.elapsed().as_secs_f64();
    drop(driver);
    Ok(measured)
}

/// What no unpack can do without.
fn pipeline(images: &Path, layers: &[Descriptor]) -> Result<Measured> {
    let disk = LoopDisk::ext4(DISK).direct();
    let (cpu, begun) = (cpu(), Instant::now());
    let mut buffer = vec![0; 256 << 10];
    for (number, layer) in layers.iter().enumerate() {
        let path = blob(images, layer);
        hash(&path)?;
        let mut out = File::create(disk.path().join(number.to_string()))?;
        let limits = windlass::rootfs::apply::Limits::default();
        let mut plain = decompress(File::open(path)?, layer.media_type(), &limits)?;
        let mut hasher = Hasher::sha256();
        loop {
            match plain.read(&mut buffer)? {
                0 => break,
                read => {
                    hasher.update(&buffer[..read]);
                    out.write_all(&buffer[..read])?;
                }
            }
        }
        hasher.finish();
    }
    rustix::fs::syncfs(File::open(disk.path())?)?;
    Ok(Measured { cpu: self::cpu() - cpu, wall: begun.elapsed().as_secs_f64(), ..Measured::default() })
}

fn hash(path: &Path) -> Result<()> {
    let (mut file, mut hasher, mut buffer) = (File::open(path)?, Hasher::sha256(), vec![0; 256 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    hasher.finish();
    Ok(())
}

/// The time of all processors that this process has used, in seconds.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn median(mut all: Vec<Measured>) -> Measured {
    all.remove(0);
    let field = |of: fn(&Measured) -> f64| {
        let mut values: Vec<_> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Measured {
        cpu: field(|it| it.cpu),
        wall: field(|it| it.wall),
        removal: field(|it| it.removal),
        first_read: field(|it| it.first_read),
        room: field(|it| it.room),
    }
}

fn blob(images: &Path, descriptor: &Descriptor) -> PathBuf {
    images.join("blobs/sha256").join(descriptor.digest().digest())
}
