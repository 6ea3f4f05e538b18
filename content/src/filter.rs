use std::time::SystemTime;

use crate::Info;

/// Which blobs [`Store::walk`](crate::Store::walk) shows. All of them by default; every setter narrows it further.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Keys, and the values that they must have.
    labels: Vec<(String, Option<String>)>,
    digest_prefix: String,
    min_size: u64,
    max_size: Option<u64>,
    committed_after: Option<SystemTime>,
    committed_before: Option<SystemTime>,
}

impl Filter {
    /// Only blobs with a label of this key, whatever its value.
    pub fn label(mut self, key: impl Into<String>) -> Self {
        self.labels.push((key.into(), None));
        self
    }

    /// Only blobs with a label of this key and value.
    pub fn label_value(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), Some(value.into())));
        self
    }

    /// Only blobs whose digest begins with this, with its algorithm (`sha256:6b`) or without (`6b`).
    pub fn digest_prefix(self, prefix: impl Into<String>) -> Self {
        Self { digest_prefix: prefix.into(), ..self }
    }

    /// Only blobs of at least this many bytes.
    pub fn min_size(self, min_size: u64) -> Self {
        Self { min_size, ..self }
    }

    /// Only blobs of at most this many bytes.
    pub fn max_size(self, max_size: u64) -> Self {
        Self { max_size: Some(max_size), ..self }
    }

    /// Only blobs that were committed after this instant.
    pub fn committed_after(self, instant: SystemTime) -> Self {
        Self { committed_after: Some(instant), ..self }
    }

    /// Only blobs that were committed before this instant.
    pub fn committed_before(self, instant: SystemTime) -> Self {
        Self { committed_before: Some(instant), ..self }
    }

    /// Whether it lets a blob through.
    pub fn matches(&self, info: &Info) -> bool {
        let labelled = |(key, value): &(String, Option<String>)| {
            info.labels.get(key).is_some_and(|has| value.as_ref().is_none_or(|value| has == value))
        };
        let digest = &info.digest;
        (digest.as_ref().starts_with(&self.digest_prefix) || digest.digest().starts_with(&self.digest_prefix))
            && info.size >= self.min_size
            && self.max_size.is_none_or(|max| info.size <= max)
            && self.committed_after.is_none_or(|instant| info.committed > instant)
            && self.committed_before.is_none_or(|instant| info.committed < instant)
            && self.labels.iter().all(labelled)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Labels, hash::sha256};

    #[test]
    fn each_condition_must_hold() {
        let committed = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let (earlier, later) = (committed - Duration::from_secs(1), committed + Duration::from_secs(1));
        let labels = Labels::from([("key".to_owned(), "value".to_owned())]);
        // sha256:e3b0c442…
        let info = Info { digest: sha256(b""), size: 10, committed, labels };
        let all = Filter::default;
        for (filter, passes) in [
            (all(), true),
            (all().label("key"), true),
            (all().label("other"), false),
            (all().label_value("key", "value"), true),
            (all().label_value("key", "other"), false),
            (all().label("key").label("other"), false),
            (all().digest_prefix("sha256:e3b0"), true),
            (all().digest_prefix("e3b0"), true),
            (all().digest_prefix("sha256:3b0"), false),
            (all().min_size(10).max_size(10), true),
            (all().min_size(11), false),
            (all().max_size(9), false),
            (all().committed_after(earlier).committed_before(later), true),
            (all().committed_after(committed), false),
            (all().committed_before(committed), false),
        ] {
            assert_eq!(filter.matches(&info), passes, "{filter:?}");
        }
    }
}
