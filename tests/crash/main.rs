//! Whatever happens to `dist` and its disk, every image that is listed is whole, and nothing needs a repair: processes are
//! killed, the power is cut, the disk is full, and many work in one folder at once.
//!
//! `WINDLASS_CRASH_RUNS` says how many processes are killed, 150 if it is not set; the power is cut about a third as often.
//! `WINDLASS_CRASH_SEED` picks other steps and other moments: 1 if it is not set, and the same each time.

mod containers;
mod full;
mod images;
mod killed;
mod once;
mod power;
mod random;
mod running;
#[path = "../it/support.rs"]
mod support;
mod together;
mod whole;
