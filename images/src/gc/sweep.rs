//! Removing what is dead, a few at a time, each time with a mark that is up to date.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use windlass_content::Error as ContentError;

use super::{
    Blob, Collector, Gc, Report, Snapshot, SnapshotName,
    mark::{Marked, described},
    marks::{Candidate, PAGE},
    roots::{self, Cursor},
    snapshots,
};
use crate::{
    BoxError, Error, Result,
    gate::{self, Inside, blocking},
};

/// How many blobs are removed at once, at most.
const BATCH: usize = 64;
/// How long others may be kept waiting, give or take one step.
const BUDGET: Duration = Duration::from_millis(20);
/// How often news are marked outside the gate, before it is done inside, where no more can come.
const PATIENCE: usize = 3;
/// From which size on, in bytes, freeing a blob's space is left for later.
const LARGE: u64 = 1 << 20;

pub(super) struct Sweep<'a> {
    pub(super) gc: &'a Gc,
    pub(super) marked: Marked,
    pub(super) dry_run: bool,
    pub(super) report: &'a mut Report,
    cursor: Cursor,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        gc: &'a Gc,
        marked: Marked,
        cursor: Cursor,
        dry_run: bool,
        report: &'a mut Report,
    ) -> Self {
        Self { gc, marked, dry_run, report, cursor }
    }

    /// Enters the gate with a mark that is up to date, and stays so until the gate is left.
    pub(super) async fn enter(&mut self) -> Result<Inside> {
        let folder = self.gc.store.folder();
        for _ in 0..PATIENCE {
            let inside = gate::enter(folder).await?;
            if !self.news().await? {
                return Ok(inside);
            }
            drop(inside);
            self.marked.walk().await?;
        }
        let inside = gate::enter(folder).await?;
        while self.news().await? {
            self.marked.walk().await?;
        }
        Ok(inside)
    }

    /// Marks what was recorded and held since the last look. Returns whether that has to be walked.
    async fn news(&mut self) -> Result<bool> {
        let news = roots::news(&self.gc.store, &mut self.cursor).await?;
        self.marked.again(&news.resources, news.targets.iter().map(Into::into).collect()).await
    }

    /// Removes the candidates that are still unmarked.
    pub(super) async fn blobs(&mut self) -> Result<()> {
        let mut after = 0;
        loop {
            let most = if self.dry_run { PAGE } else { BATCH };
            let batch = self.marked.candidates(after, most).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            if self.dry_run {
                after = last.row;
                batch.into_iter().for_each(|it| self.removed(it));
            } else {
                after = self.batch(batch, after).await?;
            }
        }
    }

    /// Removes the first few candidates behind the row `after`, which were just found to be these. Gives the row up to which there
    /// was time.
    async fn batch(&mut self, batch: Vec<Candidate>, mut after: i64) -> Result<i64> {
        let content = self.gc.content.clone();
        let mut open = Vec::new();
        for it in batch.iter().filter(|it| it.size >= LARGE) {
            // If it cannot be opened it can still be deleted.
            open.extend(content.open(&described(&it.digest, it.size)).await.ok());
        }
        let inside = self.enter().await?;
        let entered = Instant::now();
        // Some may have been marked meanwhile.
        for candidate in self.marked.candidates(after, batch.len()).await? {
            after = candidate.row;
            match content.delete(&candidate.digest).await {
                Ok(()) => self.removed(candidate),
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if entered.elapsed() >= BUDGET {
                break;
            }
        }
        drop(inside);
        blocking(move || {
            drop(open);
            Ok(())
        })
        .await?;
        Ok(after)
    }

    fn removed(&mut self, Candidate { digest, size, .. }: Candidate) {
        self.report.bytes += size;
        self.report.blobs.push(Blob { digest, size });
    }

    /// Removes the snapshots that are dead.
    pub(super) async fn snapshots(&mut self, collector: &Arc<dyn Collector>) -> Result<()> {
        let driver = collector.driver().to_owned();
        let all = calling(collector, "list", |it| it.list()).await?;
        let live = self.marked.snapshots(&driver, all.iter().map(|it| it.name.clone()).collect()).await?;
        let dead = snapshots::dead(all, |name| live.contains(name));
        if self.dry_run {
            dead.into_iter().for_each(|it| self.removed_snapshot(&driver, it));
            return Ok(());
        }
        let mut queue = VecDeque::from(dead);
        // Those that turned out to be alive, and what they stand on.
        let mut spared = HashSet::new();
        while !queue.is_empty() {
            let inside = self.enter().await?;
            let entered = Instant::now();
            while entered.elapsed() < BUDGET
                && let Some(snapshot) = queue.pop_front()
            {
                let name = snapshot.name.clone();
                let alive = spared.contains(&name)
                    || !self.marked.snapshots(&driver, vec![name.clone()]).await?.is_empty();
                if !alive && calling(collector, "remove", move |it| it.remove(&name)).await? {
                    self.removed_snapshot(&driver, snapshot);
                } else {
                    spared.extend(snapshot.parent);
                }
            }
            drop(inside);
        }
        calling(collector, "clean up", |it| it.cleanup()).await
    }

    fn removed_snapshot(&mut self, driver: &str, snapshot: Snapshot) {
        let Snapshot { name, size, .. } = snapshot;
        self.report.bytes += size;
        self.report.snapshots.push(SnapshotName { driver: driver.into(), name, size });
    }
}

/// Calls a collector off the runtime's workers.
async fn calling<T: Send + 'static>(
    collector: &Arc<dyn Collector>,
    op: &'static str,
    call: impl FnOnce(&dyn Collector) -> Result<T, BoxError> + Send + 'static,
) -> Result<T> {
    let collector = collector.clone();
    blocking(move || {
        call(&*collector).map_err(|source| Error::Collector { op, driver: collector.driver().into(), source })
    })
    .await
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, MediaType};
    use serde_json::json;
    use windlass_content::{Ingest, Ingester, LocalStore, Options, WriterExt, hash::sha256};

    use super::{super::marks::Marks, *};
    use crate::{LeaseOptions, Resource, Store};

    async fn add(content: &LocalStore, media_type: MediaType, text: String) -> Descriptor {
        let it = Descriptor::new(media_type, text.len() as u64, sha256(text.as_bytes()));
        if let Ingest::Open(mut writer) = content.ingest("key", &it).await.expect("it opens") {
            writer.write(text.into()).await.expect("it is written");
            writer.commit(windlass_content::Labels::new()).await.expect("it is right");
        }
        it
    }

    /// As if the first mark had missed all of it.
    #[tokio::test]
    async fn whoever_enters_has_marked_what_came_since_the_beginning() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let content = LocalStore::open(dir.path().join("content"), Options::default()).expect("it opens");
        let store = Store::open(dir.path().join("images.db")).expect("it opens");
        let mut images = Vec::new();
        for name in ["put", "held", "before"] {
            let layer = add(&content, MediaType::ImageLayer, name.to_owned()).await;
            let manifest = json!({"config": layer, "layers": [layer]}).to_string();
            images.push((add(&content, MediaType::ImageManifest, manifest).await, layer));
        }
        let [put, held, before] = &images[..] else { unreachable!("there are three") };
        store.put("before", &before.0).expect("it is recorded");
        let gc = Gc::new(store.clone(), Arc::new(content.clone()));
        let (cursor, _) = roots::begin(&store, false).await.expect("it begins");
        let mut report = Report::default();
        let marks = Marks::on_disk(dir.path()).await.expect("it opens");
        let marked = Marked::new(Arc::new(content), false, marks);
        let mut sweep = Sweep::new(&gc, marked, cursor, false, &mut report);
        drop(sweep.enter().await.expect("nobody is inside"));

        store.put("put", &put.0).expect("it is recorded");
        let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
        lease.hold(&Resource::Tree(held.0.digest().clone())).await.expect("it holds");
        drop(lease);
        let inside = sweep.enter().await.expect("nobody is inside");

        for (image, marked) in [(put, true), (held, true), (before, false)] {
            for blob in [&image.0, &image.1] {
                let has = sweep.marked.has(blob.digest()).await.expect("it looks");
                assert_eq!(has, marked, "{blob:?}");
            }
        }
        let waiting = gate::enter(store.folder());
        let waited = tokio::time::timeout(Duration::from_millis(20), waiting).await;
        assert!(waited.is_err(), "somebody is inside");
        drop(inside);
    }
}
