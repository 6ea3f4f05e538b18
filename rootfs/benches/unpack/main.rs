//! All layers at once beside one by one, on a disk of its own with a journal; and what it costs to be safe from a power cut.
//!
//! `cargo bench -p windlass-rootfs --bench unpack -- [ROUNDS] [LAYOUT:TAG]`: 5 rounds of an image of six layers, in the shape
//! of a Python application, if nothing else is said. The ways are interleaved, and the first round does not count.

mod image;
mod one_by_one;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::Descriptor;
use windlass_content::LocalStore;
use windlass_rootfs::Unpacker;
use windlass_snapshot::{Durability, Overlay, Snapshotter};
use windlass_testkit::{LoopDisk, touch_memory};

use crate::one_by_one::OneByOne;

/// How many bytes a disk has, holes included.
const DISK: u64 = 4 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OneByOne,
    AllAtOnce,
}

const RUNS: [(Way, Durability); 4] = [
    (Way::OneByOne, Durability::Safe),
    (Way::AllAtOnce, Durability::Safe),
    (Way::OneByOne, Durability::Fast),
    (Way::AllAtOnce, Durability::Fast),
];

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let layout = arguments.iter().find(|argument| argument.contains(':'));
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let folder = tempfile::tempdir().expect("there is room");
    let (store, manifest) = runtime.block_on(image::load(folder.path(), layout.map(String::as_str)));
    touch_memory();

    let mut took = vec![Vec::new(); RUNS.len()];
    for round in 0..=rounds {
        for ((way, durability), took) in RUNS.into_iter().zip(&mut took) {
            let run = run(&runtime, &store, &manifest, way, durability);
            eprintln!(
                "round {round}: {way:?}, {durability:?}: {:.2} s, {:.2} s of CPU",
                run.wall.as_secs_f64(),
                run.cpu.as_secs_f64()
            );
            if round > 0 {
                took.push(run);
            }
        }
    }

    println!("{:24} {:>8} {:>8} {:>8}", "median of each", "wall s", "CPU s", "ratio");
    for durability in [Durability::Safe, Durability::Fast] {
        let of = |way| {
            let runs = RUNS.iter().zip(&took).find(|(run, _)| **run == (way, durability));
            median(runs.expect("each way is run").1)
        };
        let base = of(Way::OneByOne);
        for way in [Way::OneByOne, Way::AllAtOnce] {
            let Took { wall, cpu } = of(way);
            let (wall, cpu) = (wall.as_secs_f64(), cpu.as_secs_f64());
            let ratio = wall / base.wall.as_secs_f64();
            println!("{:24} {wall:8.2} {cpu:8.2} {ratio:8.2}", format!("{way:?}, {durability:?}"));
        }
    }
}

/// Unpacks once, onto a new disk.
fn run(
    runtime: &tokio::runtime::Runtime,
    store: &LocalStore,
    manifest: &Descriptor,
    way: Way,
    durability: Durability,
) -> Took {
    let disk = LoopDisk::ext4(DISK).direct();
    let overlay = Overlay::open(&disk.path().join("overlay"), durability).expect("overlayfs works here");
    let snapshotter: Arc<dyn Snapshotter> = match way {
        Way::OneByOne => Arc::new(OneByOne(overlay)),
        Way::AllAtOnce => Arc::new(overlay),
    };
    let unpacker = Unpacker::new(Arc::new(store.clone()), snapshotter);
    let (begun, cpu) = (Instant::now(), cpu());
    let unpacked = runtime.block_on(unpacker.unpack(manifest)).expect("it can be unpacked");
    let took = Took { wall: begun.elapsed(), cpu: self::cpu() - cpu };
    assert!(unpacked.chain_id.is_some(), "it has layers");
    took
}

/// The CPU time of this process until now.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("it is less than a second"))
}

fn median(runs: &[Took]) -> Took {
    let of = |field: fn(&Took) -> Duration| {
        let mut all: Vec<_> = runs.iter().map(field).collect();
        all.sort();
        all[all.len() / 2]
    };
    Took { wall: of(|run| run.wall), cpu: of(|run| run.cpu) }
}
