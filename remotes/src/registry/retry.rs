//! When to try again, and how long to wait before.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, header::RETRY_AFTER};

use super::Builder;
use crate::Error;

/// The wait before the second attempt, without jitter. It doubles with each attempt.
const FIRST: Duration = Duration::from_millis(200);
/// The longest wait of our own choice.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest wait that a registry may ask for; we come back earlier than it asked if it asks for more.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// How long a registry that never answered is tried: whoever mistyped a port should not wait.
const UNREACHABLE: Duration = Duration::from_secs(1);

/// The attempts of one request.
#[derive(Debug)]
pub(super) struct Attempts {
    left: u32,
    made: u32,
    started: Instant,
    total: Duration,
    /// Whether the server answered before, so that a refused connection is not a wrong port.
    known: bool,
}

impl Attempts {
    pub(super) fn new(settings: &Builder, known: bool) -> Self {
        let left = settings.attempts.get() - 1;
        Self { left, made: 0, started: Instant::now(), total: settings.retry_for, known }
    }

    /// No more than so many attempts.
    pub(super) fn at_most(self, attempts: u32) -> Self {
        Self { left: self.left.min(attempts.saturating_sub(1)), ..self }
    }

    /// How long to wait before another attempt after this failure. `None` if there should be none.
    pub(super) fn after(&mut self, error: &Error, asked: Option<Duration>) -> Option<Duration> {
        if self.left == 0 || !error.is_transient() {
            return None;
        }
        self.left -= 1;
        self.made += 1;
        let wait = asked.map_or_else(|| backoff(self.made), |asked| asked.min(LONGEST_ASKED));
        let limit = match error {
            Error::Connect { .. } if !self.known => self.total.min(UNREACHABLE),
            _ => self.total,
        };
        (self.started.elapsed() + wait <= limit).then_some(wait)
    }
}

/// The wait after `failures` failures in a row: exponential, and from half to all of it at random.
pub(super) fn backoff(failures: u32) -> Duration {
    let full = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    let random = RandomState::new().build_hasher().finish() % 1000;
    full / 2 + full.mul_f64(random as f64 / 2000.0)
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3). A date that is over asks for no wait.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, num::NonZeroU32};

    use super::*;

    fn attempts(attempts: u32) -> Attempts {
        let attempts = NonZeroU32::new(attempts).expect("the test gives more than zero");
        Attempts::new(&Builder::default().attempts(attempts).retry_for(Duration::from_secs(120)), false)
    }

    fn broken() -> Error {
        Error::Transport { host: "h".into(), url: "u".into(), source: io::ErrorKind::BrokenPipe.into() }
    }

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
        assert_eq!(attempts(5).after(&not_found, None), None);
    }

    #[test]
    fn a_registrys_wish_is_honoured_up_to_a_limit() {
        let mut three = attempts(3);
        assert_eq!(three.after(&broken(), Some(Duration::from_secs(3))), Some(Duration::from_secs(3)));
        assert_eq!(three.after(&broken(), Some(Duration::from_secs(9999))), Some(LONGEST_ASKED));
        assert_eq!(three.after(&broken(), None), None, "three attempts are two retries");
    }

    #[test]
    fn a_wait_beyond_the_total_time_is_not_begun() {
        let one_second = Builder::default().retry_for(Duration::from_secs(1));
        assert_eq!(Attempts::new(&one_second, true).after(&broken(), Some(Duration::from_secs(2))), None);
    }

    #[test]
    fn a_wish_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (text, seconds) in [
            ("30", Some(30)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a header"))]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
