use std::{error::Error, fmt, str::FromStr};

use rustix::process::{getegid, geteuid};

/// Whose the files are that a layer says are a user's: numbers inside the container, and on this machine.
///
/// The same numbers by default, for which one must be root, or root of a user namespace that has them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    uids: Map,
    gids: Map,
    squash: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Map {
    #[default]
    Same,
    Ranges(Vec<IdRange>),
    /// All are the caller's.
    Caller,
}

/// Some ids that follow each other, as a line of `/proc/self/uid_map` says them: `0 100000 65536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first id in the layer.
    pub container: u32,
    /// The id that it gets.
    pub host: u32,
    /// How many ids there are.
    pub length: u32,
}

impl IdMap {
    /// Maps by ranges, the first that has an id. Any other id is an error.
    pub fn ranges(uids: impl IntoIterator<Item = IdRange>, gids: impl IntoIterator<Item = IdRange>) -> Self {
        let [uids, gids] = [uids.into_iter().collect(), gids.into_iter().collect()].map(Map::Ranges);
        Self { uids, gids, squash: false }
    }

    /// Gives everything to the caller: what a user without privileges can do.
    pub fn squash() -> Self {
        Self { uids: Map::Caller, gids: Map::Caller, squash: true }
    }

    /// Gives what is in no range to the caller. It is an error if not set.
    pub fn squash_unmapped(self, squash: bool) -> Self {
        Self { squash, ..self }
    }

    /// Whether ids stay as they are.
    pub(super) fn is_same(&self) -> bool {
        (&self.uids, &self.gids) == (&Map::Same, &Map::Same)
    }

    /// The user on this machine; `None` where all are the caller's.
    pub(super) fn uid(&self, id: u32) -> Result<Option<u32>, Unmapped> {
        let squashed = self.squash.then(|| geteuid().as_raw());
        self.uids.get(id, squashed).ok_or(Unmapped { kind: "user", id })
    }

    /// The group on this machine; `None` where all are the caller's.
    pub(super) fn gid(&self, id: u32) -> Result<Option<u32>, Unmapped> {
        let squashed = self.squash.then(|| getegid().as_raw());
        self.gids.get(id, squashed).ok_or(Unmapped { kind: "group", id })
    }
}

impl Map {
    fn get(&self, id: u32, otherwise: Option<u32>) -> Option<Option<u32>> {
        match self {
            Self::Same => Some(Some(id)),
            Self::Caller => Some(None),
            Self::Ranges(ranges) => ranges.iter().find_map(|range| range.get(id)).or(otherwise).map(Some),
        }
    }
}

impl IdRange {
    fn get(&self, id: u32) -> Option<u32> {
        let offset = id.checked_sub(self.container).filter(|offset| *offset < self.length)?;
        self.host.checked_add(offset).filter(|host| *host != u32::MAX)
    }
}

impl FromStr for IdRange {
    type Err = ParseIdRangeError;

    /// Reads a line of `/proc/self/uid_map`.
    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let numbers: Option<Vec<u32>> = line.split_ascii_whitespace().map(|word| word.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[container, host, length]) => Ok(Self { container, host, length }),
            _ => Err(ParseIdRangeError { line: line.to_owned() }),
        }
    }
}

/// A line is no range of ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line:?} is no range of ids: write three numbers, such as `0 100000 65536`")]
pub struct ParseIdRangeError {
    line: String,
}

/// An id that no range has.
#[derive(Debug)]
pub(super) struct Unmapped {
    kind: &'static str,
    id: u32,
}

impl Error for Unmapped {}

impl fmt::Display for Unmapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it belongs to {} {}, which is in no range of the map: add it, or squash what is unmapped",
            self.kind, self.id
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_by_the_first_range_that_has_them() {
        let ranges =
            ["0 1000 1", "1 100000 65535", "4294967290 4294967290 6"].map(|line| line.parse().expect(line));
        let map = IdMap::ranges(ranges, ranges);
        for (id, host) in [(0, Some(1000)), (1, Some(100_000)), (65535, Some(165_534)), (65536, None)] {
            assert_eq!(map.uid(id).ok().flatten(), host, "{id}");
            assert_eq!(map.gid(id).ok().flatten(), host, "{id}");
        }
        assert!(map.uid(u32::MAX).is_err(), "it is nobody's");
        assert_eq!(map.squash_unmapped(true).uid(65536).ok().flatten(), Some(geteuid().as_raw()));
    }

    #[test]
    fn a_line_that_is_no_range_says_what_one_is() {
        for line in ["", "0 1", "0 1 2 3", "0 x 1", "-1 0 1"] {
            let err = line.parse::<IdRange>().expect_err(line);
            assert!(err.to_string().contains("three numbers"), "{err}");
        }
    }
}
