//! Which names to drop before garbage is collected.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    time::{Duration, SystemTime},
};

use futures::{StreamExt, TryStreamExt, stream};
use oci_spec::image::Digest;
use rusqlite::params;
use windlass_reference::Reference;

use super::{
    Gc, Options,
    mark::{AT_ONCE, below},
};
use crate::{Filter, Record, Result, gate::blocking, store::millis};

/// Which names a collection drops. The default drops none.
///
/// [`keep_newest`](Self::keep_newest) and [`unused_since`](Self::unused_since) each say what is kept: if one or both are set,
/// a name goes that none of them keeps. Then, [`max_total_size`](Self::max_total_size) drops more, if it must. A name with a
/// label of [`keep_label`](Self::keep_label) never goes.
///
/// To choose takes memory for all names at once: about 1.3 KiB for each, and twice that with `max_total_size`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Keeps this many names of each repository: those that were recorded last.
    pub keep_newest: Option<usize>,
    /// Keeps the names that were recorded or used within this time.
    pub unused_since: Option<Duration>,
    /// Keeps the names that have one of these labels: `key`, or `key=value`.
    pub keep_labels: Vec<String>,
    /// Drops the least recently used names until the blobs of the others are no more than this, in bytes. Blobs that several
    /// names share count once.
    pub max_total_size: Option<u64>,
}

impl Policy {
    /// Keeps this many names of each repository: those that were recorded last.
    pub fn keep_newest(self, keep_newest: usize) -> Self {
        Self { keep_newest: Some(keep_newest), ..self }
    }

    /// Keeps the names that were recorded or used within this time.
    pub fn unused_since(self, unused_since: Duration) -> Self {
        Self { unused_since: Some(unused_since), ..self }
    }

    /// Keeps the names that have this label: `key`, or `key=value`. May be called again, for further labels.
    pub fn keep_label(mut self, label: impl Into<String>) -> Self {
        self.keep_labels.push(label.into());
        self
    }

    /// Drops the least recently used names until the blobs of the others are no more than this, in bytes.
    pub fn max_total_size(self, max_total_size: u64) -> Self {
        Self { max_total_size: Some(max_total_size), ..self }
    }

    fn keeps_label_of(&self, record: &Record) -> bool {
        self.keep_labels.iter().any(|label| match label.split_once('=') {
            Some((key, value)) => record.labels.get(key).is_some_and(|it| it == value),
            None => record.labels.contains_key(label),
        })
    }
}

/// The blobs that are there below each target, with their sizes in bytes.
pub type Sizes = HashMap<Digest, Vec<(Digest, u64)>>;

/// The names that a policy drops, in order.
///
/// `sizes` only counts for [`Policy::max_total_size`]. A target that is not in it takes no space.
pub fn choose(records: &[Record], sizes: &Sizes, policy: &Policy, now: SystemTime) -> Vec<String> {
    let mut by_repository: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_repository.entry(repository(&record.name)).or_default().push(record);
    }
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for of_repository in by_repository.values_mut() {
        of_repository.sort_by_key(|it| (Reverse(it.updated), it.name.as_str()));
        for (nth, record) in of_repository.iter().enumerate() {
            let newest = policy.keep_newest.map(|keep| nth < keep);
            let used = policy.unused_since.map(|since| {
                now.duration_since(record.last_used()).is_ok_and(|ago| ago <= since)
                    || record.last_used() > now
            });
            let said: Vec<_> = [newest, used].into_iter().flatten().collect();
            let keep = said.is_empty() || said.contains(&true) || policy.keeps_label_of(record);
            if keep { &mut kept } else { &mut dropped }.push(*record);
        }
    }
    if let Some(limit) = policy.max_total_size {
        kept.sort_by_key(|it| (it.last_used(), it.name.as_str()));
        dropped.extend(over(&kept, sizes, policy, limit));
    }
    let mut names: Vec<_> = dropped.into_iter().map(|it| it.name.clone()).collect();
    names.sort();
    names
}

/// Which of `kept`, least recently used first, have to go so that the rest takes no more than `limit` bytes.
fn over<'a>(kept: &[&'a Record], sizes: &Sizes, policy: &Policy, limit: u64) -> Vec<&'a Record> {
    let blobs = |record: &Record| sizes.get(record.target.digest()).map_or(&[][..], Vec::as_slice);
    let mut users: HashMap<&Digest, usize> = HashMap::new();
    let mut total = 0;
    for (digest, size) in kept.iter().flat_map(|it| blobs(it)) {
        let users = users.entry(digest).or_default();
        total += if *users == 0 { *size } else { 0 };
        *users += 1;
    }
    let mut dropped = Vec::new();
    for record in kept.iter().filter(|it| !policy.keeps_label_of(it)) {
        if total <= limit {
            break;
        }
        for (digest, size) in blobs(record) {
            let users = users.get_mut(digest).expect("all blobs were counted");
            *users -= 1;
            total -= if *users == 0 { *size } else { 0 };
        }
        dropped.push(*record);
    }
    dropped
}

/// What a name has before its tag or digest. A name that is no reference is alone in its repository.
fn repository(name: &str) -> String {
    name.parse::<Reference>().map_or_else(|_| name.to_owned(), |it| it.locator().to_owned())
}

impl Gc {
    /// Drops what the policy says. Gives the names, in order. A dry run only gives the names.
    pub(super) async fn drop_names(&self, options: &Options) -> Result<Vec<String>> {
        let Options { policy, dry_run, .. } = options;
        if policy.keep_newest.is_none() && policy.unused_since.is_none() && policy.max_total_size.is_none() {
            return Ok(Vec::new());
        }
        let store = self.store.clone();
        let records = blocking(move || store.list(&Filter::all())).await?;
        let sizes = match policy.max_total_size {
            Some(_) => self.sizes(&records).await?,
            None => Sizes::new(),
        };
        let names = choose(&records, &sizes, policy, SystemTime::now());
        if *dry_run {
            return Ok(names);
        }
        let store = self.store.clone();
        blocking(move || {
            // Unless it was used or recorded again since we looked.
            let statement = "DELETE FROM images WHERE name = ?1 AND updated = ?2 AND used IS ?3";
            let records = records.iter().filter(|it| names.binary_search(&it.name).is_ok());
            store.write("drop images", |it| {
                let mut dropped = Vec::new();
                for Record { name, updated, used, .. } in records {
                    let row = params![name, millis(*updated), used.map(millis)];
                    if it.prepare_cached(statement)?.execute(row)? > 0 {
                        dropped.push(name.clone());
                    }
                }
                Ok(dropped)
            })
        })
        .await
    }

    /// The blobs below each target.
    async fn sizes(&self, records: &[Record]) -> Result<Sizes> {
        let all: HashMap<Digest, u64> = self
            .content
            .walk(windlass_content::Filter::default())
            .map_ok(|it| (it.digest, it.size))
            .try_collect()
            .await?;
        let targets: HashMap<_, _> = records.iter().map(|it| (it.target.digest(), &it.target)).collect();
        stream::iter(targets.into_values().cloned())
            .map(|target| async {
                let digest = target.digest().clone();
                let there = below(self.content.clone(), target).await?.into_iter();
                Ok((digest, there.filter_map(|it| Some((it.clone(), *all.get(&it)?))).collect()))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, MediaType};
    use proptest::prelude::*;
    use windlass_content::hash::sha256;

    use super::*;

    fn day(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86400)
    }

    /// An image whose content is its text, that was recorded and used on these days.
    fn record(name: &str, updated: u64, used: u64, label: Option<&str>) -> Record {
        let target = Descriptor::new(MediaType::ImageManifest, 1, sha256(name.as_bytes()));
        let labels = label.map(|it| (it.to_owned(), "yes".to_owned())).into_iter().collect();
        let (updated, used) = (day(updated), Some(day(used)));
        Record { updated, used, labels, ..Record::new(name, target) }
    }

    fn records() -> Vec<Record> {
        vec![
            record("a.io/x:1", 1, 9, None),
            record("a.io/x:2", 2, 2, Some("keep")),
            record("a.io/x:3", 3, 3, None),
            record("a.io/y:1", 4, 4, None),
            record("no reference!", 5, 5, None),
        ]
    }

    #[test]
    fn a_policy_drops_what_none_of_its_rules_keeps() {
        let days = |days: u64| Duration::from_secs(days * 86400);
        for (policy, dropped) in [
            (Policy::default(), &[][..]),
            (Policy::default().keep_newest(1), &["a.io/x:1", "a.io/x:2"]),
            (Policy::default().keep_newest(1).keep_label("keep"), &["a.io/x:1"]),
            (Policy::default().keep_newest(1).keep_label("keep=no"), &["a.io/x:1", "a.io/x:2"]),
            (Policy::default().keep_newest(9), &[]),
            (Policy::default().unused_since(days(5)), &["a.io/x:2", "a.io/x:3", "a.io/y:1"]),
            (Policy::default().unused_since(days(5)).keep_newest(1), &["a.io/x:2"]),
            (Policy::default().unused_since(days(5)).keep_label("keep=yes"), &["a.io/x:3", "a.io/y:1"]),
            (
                Policy::default().keep_newest(0).keep_label("keep"),
                &["a.io/x:1", "a.io/x:3", "a.io/y:1", "no reference!"],
            ),
            (Policy::default().keep_label("keep"), &[]),
        ] {
            assert_eq!(choose(&records(), &Sizes::new(), &policy, day(10)), dropped, "{policy:?}");
        }
    }

    #[test]
    fn a_size_drops_the_least_recently_used_and_counts_shared_blobs_once() {
        let own = |text: &str, size| (sha256(text.as_bytes()), size);
        let sizes: Sizes = records()
            .iter()
            .map(|it| (it.target.digest().clone(), vec![own("shared", 100), own(&it.name, 10)]))
            .collect();
        for (limit, dropped) in [
            (150, &[][..]),
            (149, &["a.io/x:3"]),
            (130, &["a.io/x:3", "a.io/y:1"]),
            (110, &["a.io/x:1", "a.io/x:3", "a.io/y:1", "no reference!"]),
            // What is labelled stays, whatever it takes.
            (0, &["a.io/x:1", "a.io/x:3", "a.io/y:1", "no reference!"]),
        ] {
            let policy = Policy::default().max_total_size(limit).keep_label("keep");
            assert_eq!(choose(&records(), &sizes, &policy, day(10)), dropped, "{limit}");
        }
    }

    fn arbitrary() -> impl Strategy<Value = Vec<Record>> {
        let one = (0..4_u8, 0..6_u8, 0..20_u64, 0..20_u64, any::<bool>());
        proptest::collection::vec(one, 0..20).prop_map(|all| {
            let named = all.into_iter().map(|(repository, tag, updated, used, label)| {
                let name = format!("a.io/{repository}:{tag}");
                (name.clone(), record(&name, updated, used, label.then_some("keep")))
            });
            named.collect::<BTreeMap<_, _>>().into_values().collect()
        })
    }

    proptest! {
        #[test]
        fn whatever_the_images_are_the_rules_hold(
            records in arbitrary(),
            newest in proptest::option::of(0..4_usize),
            days in proptest::option::of(0..20_u64),
            limit in proptest::option::of(0..300_u64),
        ) {
            let sizes: Sizes = records
                .iter()
                .map(|it| {
                    let shared = (sha256(&[u8::try_from(it.name.len()).expect("it is short")]), 50);
                    (it.target.digest().clone(), vec![shared, (it.target.digest().clone(), 10)])
                })
                .collect();
            let since = days.map(|days| Duration::from_secs(days * 86400));
            let policy = Policy {
                keep_newest: newest,
                unused_since: since,
                max_total_size: limit,
                keep_labels: vec!["keep".into()],
            };
            let now = day(20);

            let dropped = choose(&records, &sizes, &policy, now);

            let is_dropped = |it: &&Record| dropped.binary_search(&it.name).is_ok();
            let kept: Vec<_> = records.iter().filter(|it| !is_dropped(it)).collect();
            prop_assert!(dropped.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(kept.len() + dropped.len(), records.len());
            prop_assert!(records.iter().filter(is_dropped).all(|it| it.labels.is_empty()));
            if limit.is_none() {
                for it in records.iter().filter(is_dropped) {
                    prop_assert!(newest.is_some() || since.is_some());
                    prop_assert!(since.is_none_or(|since| now.duration_since(it.last_used()).unwrap() > since));
                    let newer = |other: &&Record| repository(&other.name) == repository(&it.name) && other.updated >= it.updated;
                    prop_assert!(newest.is_none_or(|keep| records.iter().filter(newer).count() > keep));
                }
            }
            if let Some(limit) = limit {
                let blobs: BTreeMap<_, _> = kept.iter().flat_map(|it| &sizes[it.target.digest()]).map(|(digest, size)| (digest.to_string(), size)).collect();
                let total: u64 = blobs.into_values().sum();
                prop_assert!(total <= limit || kept.iter().all(|it| !it.labels.is_empty()));
            }
        }
    }
}
