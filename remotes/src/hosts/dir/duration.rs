//! Durations as Go writes them: `3s`, `1m30s`, `1.5h`.

use std::time::Duration;

/// The duration that the text means; `None` if it means none, or one below zero.
///
/// A number needs a unit (`ns`, `us`, `ms`, `s`, `m`, `h`), unless it is a plain `0`.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let (part, after) = first(rest)?;
        nanos = nanos.checked_add(part)?;
        rest = after;
    }
    // Go counts in signed 64 bits, and refuses what does not fit. Nobody waits for 292 years.
    i64::try_from(nanos).ok().map(|_| Duration::from_nanos(nanos))
}

/// The first number with its unit, in nanoseconds, and what follows.
fn first(text: &str) -> Option<(u64, &str)> {
    let (whole, rest) = digits(text);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(rest) => digits(rest),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let unit: u64 = match unit {
        "ns" => 1,
        // The micro sign, and the Greek letter that looks like it.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return None,
    };
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Digits past the eighteenth are worth less than a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10_u128.pow(fraction.len().try_into().expect("at most eighteen"));
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = u64::try_from(fraction * u128::from(unit) / scale).expect("less than one unit");
    Some((whole.checked_mul(unit)?.checked_add(part)?, rest))
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_mean_what_they_mean_in_go() {
        for (text, nanos) in [
            ("0", 0),
            ("+0", 0),
            ("0s", 0),
            ("3s", 3_000_000_000),
            ("+3s", 3_000_000_000),
            ("500ms", 500_000_000),
            ("1m30s", 90_000_000_000),
            ("30s1m", 90_000_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("1us1\u{b5}s1\u{3bc}s1ns", 3_001),
            ("0.0000000009s", 0),
            ("0.100000000000000000000s", 100_000_000),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            assert_eq!(parse(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn other_texts_mean_nothing() {
        for text in [
            "",
            "+",
            "3",
            "s",
            ".s",
            "-3s",
            "3 s",
            "3d",
            "1.2.3s",
            "3S",
            "1s ",
            "++1s",
            "9223372036854775808ns",
            "9999999999999999999999s",
            "5124095576h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,30}|([0-9]{0,22}\\.?[0-9]{0,22}(ns|us|µs|ms|s|m|h)?){0,4}") {
            parse(&text);
        }
    }
}
