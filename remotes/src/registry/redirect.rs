//! Where blobs really are: signed URLs of storage and CDNs, reused until they expire.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use url::Url;

/// How many targets are remembered.
const MOST: usize = 4096;
/// How long a target is used that does not say when it expires.
const SILENT: Duration = Duration::from_secs(60);
/// How long before its end a target is not used any more.
const MARGIN: Duration = Duration::from_secs(5);

/// Redirect targets by the URL that was asked for. They are as good as passwords, and not shown.
#[derive(Default)]
pub(super) struct Targets {
    known: Mutex<HashMap<Url, (Url, SystemTime)>>,
}

impl Targets {
    /// Where this URL redirects to, if that still holds.
    pub(super) fn get(&self, url: &Url) -> Option<Url> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (target, until) = known.get(url)?;
        (SystemTime::now() < *until).then(|| target.clone())
    }

    pub(super) fn remember(&self, url: &Url, target: &Url) {
        let now = SystemTime::now();
        let until = expiry(target).map_or(now + SILENT, |expiry| expiry - MARGIN);
        if until <= now {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, until)| now < *until);
        }
        if known.len() < MOST {
            known.insert(url.clone(), (target.clone(), until));
        }
    }

    pub(super) fn forget(&self, url: &Url) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(url);
    }
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets").finish_non_exhaustive()
    }
}

/// When a signed URL expires, as S3, GCS, CloudFront and Azure write it into the query.
fn expiry(url: &Url) -> Option<SystemTime> {
    let find = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value);
    for vendor in ["Amz", "Goog"] {
        if let (Some(date), Some(lifetime)) =
            (find(&format!("X-{vendor}-Date")), find(&format!("X-{vendor}-Expires")))
        {
            return compact_date(&date)?.checked_add(Duration::from_secs(lifetime.parse().ok()?));
        }
    }
    if let Some(expires) = find("Expires") {
        return UNIX_EPOCH.checked_add(Duration::from_secs(expires.parse().ok()?));
    }
    humantime::parse_rfc3339(&find("se")?).ok()
}

/// A date as signatures write it: `20130524T000000Z`.
fn compact_date(text: &str) -> Option<SystemTime> {
    let digits = text.len() == 16 && text.is_ascii();
    let part = |range| text.get(range);
    let date = digits.then(|| {
        let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
        let (hour, minute, second) = (part(9..11)?, part(11..13)?, part(13..15)?);
        Some(format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z"))
    })??;
    humantime::parse_rfc3339(&date).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_url_says_when_it_expires() {
        let day = humantime::parse_rfc3339("2013-05-24T00:00:00Z").expect("a date");
        for (query, seconds) in [
            ("X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-Signature=x", Some(86_400)),
            ("X-Goog-Date=20130524T000010Z&X-Goog-Expires=5", Some(15)),
            ("Expires=1369353607&Signature=x", Some(7)),
            ("se=2013-05-24T00%3A00%3A09Z&sig=x", Some(9)),
            ("X-Amz-Date=yesterday&X-Amz-Expires=1", None),
            ("X-Amz-Date=20130524T000000Z&X-Amz-Expires=99999999999999999999", None),
            ("Expires=never", None),
            ("", None),
        ] {
            let url = Url::parse(&format!("https://cdn.example/blob?{query}")).expect("a URL");
            assert_eq!(expiry(&url), seconds.map(|seconds| day + Duration::from_secs(seconds)), "{query}");
        }
    }

    #[test]
    fn an_expired_target_is_not_used() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let (blob, targets) = (url("https://r.example/v2/a/blobs/x"), Targets::default());

        targets.remember(&blob, &url("https://cdn.example/old?Expires=1369353607"));
        assert_eq!(targets.get(&blob), None);
        targets.remember(&blob, &url("https://cdn.example/new?Expires=99999999999"));
        assert_eq!(targets.get(&blob), Some(url("https://cdn.example/new?Expires=99999999999")));
        targets.forget(&blob);
        assert_eq!(targets.get(&blob), None);
    }
}
