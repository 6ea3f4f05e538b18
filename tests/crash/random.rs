//! How often, and when.

use std::{env, time::Duration};

/// Numbers that look random, and are the same for the same seed (xorshift64*).
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    /// A time from nothing to `limit`.
    pub(crate) fn within(&mut self, limit: Duration) -> Duration {
        let micros = u64::try_from(limit.as_micros()).expect("tests are short");
        Duration::from_micros(self.below(micros + 1))
    }
}

/// Says which seed it was if a test fails.
#[derive(Debug)]
pub(crate) struct Shown(u64);

impl Shown {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn passed(self) {
        std::mem::forget(self);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        eprintln!("the seed was {}", self.0);
    }
}

/// How many runs to do, of `default`.
pub(crate) fn runs(default: u64) -> u64 {
    let runs = number("WINDLASS_CRASH_RUNS").unwrap_or(150);
    (runs * default / 150).max(1)
}

/// The seed of the whole test. The same every time, unless one is asked for.
pub(crate) fn seed() -> u64 {
    number("WINDLASS_CRASH_SEED").unwrap_or(1)
}

fn number(name: &str) -> Option<u64> {
    Some(env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}
