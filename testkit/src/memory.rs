//! Memory as a bench wants it: had before it is measured.

use std::hint::black_box;

use rustix::system::sysinfo;

/// How much the runs of a bench need at most, in bytes.
const MOST: u64 = 4 << 30;

/// Uses 4 GiB of memory, or half of what is free if that is less, and gives it back. For benches, before they measure.
///
/// Where the machine is a virtual one, its kernel and its host may find memory only when it is first used, and that takes more than a
/// second for each GiB. Without this, whatever is measured first pays for it, or what asks for larger pieces than the rest.
pub fn touch_memory() {
    let system = sysinfo();
    let free = system.freeram.saturating_mul(system.mem_unit.into());
    let bytes = usize::try_from(MOST.min(free / 2)).expect("what is free can be addressed");
    drop(black_box(vec![1_u8; bytes]));
}
