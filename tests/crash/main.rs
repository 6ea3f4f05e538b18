//! Whatever happens to `dist` and its disk, every image that is listed is whole, and nothing needs a repair: processes are
//! killed, the power is cut, the disk is full, and many work in one folder at once.
//!
//! `WINDLASS_CRASH_RUNS` says how many processes are killed, 150 if it is not set, and how often the power is cut, a sixth of that.
//! What went wrong for a seed goes wrong again with `WINDLASS_CRASH_SEED`.

mod containers;
mod full;
mod images;
mod killed;
mod power;
mod random;
mod running;
#[path = "../it/support.rs"]
mod support;
mod together;
mod whole;
