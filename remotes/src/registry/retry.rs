//! When to try again, and how long to wait before.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use crate::Error;

/// The wait before the second attempt, without jitter. It doubles with each attempt.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait of our own choice.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest wait that a registry may ask for; we come back earlier than it asked if it asks for more.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// How long a registry that cannot be reached is tried: whoever mistyped a port should not wait.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Attempts {
    left: u32,
    made: u32,
    started: Instant,
}

impl Attempts {
    pub(super) fn new(attempts: u32) -> Self {
        Self { left: attempts.saturating_sub(1), made: 0, started: Instant::now() }
    }

    /// How long to wait before another attempt after this failure. `None` if there should be none.
    pub(super) fn after(&mut self, error: &Error, asked: Option<Duration>) -> Option<Duration> {
        let unreachable =
            matches!(error, Error::Connect { .. }) && self.started.elapsed() + FIRST > UNREACHABLE;
        if self.left == 0 || !error.is_transient() || unreachable {
            return None;
        }
        self.left -= 1;
        self.made += 1;
        Some(asked.map_or_else(|| backoff(self.made), |asked| asked.min(LONGEST_ASKED)))
    }
}

/// The wait after `failures` failures in a row: exponential, and from half to all of it at random.
pub(super) fn backoff(failures: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    let random = RandomState::new().build_hasher().finish() % 1000;
    full / 2 + full.mul_f64(random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn waits_grow_to_a_limit() {
        for (failures, at_least, at_most) in [(1, 100, 200), (2, 200, 400), (3, 400, 800), (99, 5000, 10_000)]
        {
            let wait = backoff(failures).as_millis();
            assert!((at_least..=at_most).contains(&wait), "{failures}: {wait} ms");
        }
    }

    #[test]
    fn what_is_final_is_not_tried_again() {
        let not_found = Error::NotFound { name: "x".into(), url: "y".into() };
        assert_eq!(Attempts::new(5).after(&not_found, None), None);
    }

    #[test]
    fn a_registrys_wish_is_honoured_up_to_a_limit() {
        let broken =
            Error::Transport { host: "h".into(), url: "u".into(), source: io::ErrorKind::BrokenPipe.into() };
        let mut attempts = Attempts::new(3);
        assert_eq!(attempts.after(&broken, Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(attempts.after(&broken, Some(Duration::from_secs(9999))), Some(LONGEST_ASKED));
        assert_eq!(attempts.after(&broken, None), None, "three attempts are two retries");
    }
}
