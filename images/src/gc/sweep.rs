//! Removing what is dead, a few at a time, each time with a mark that is up to date.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use windlass_content::{Error as ContentError, Info};

use super::{
    Blob, Collector, Gc, Report, Snapshot, SnapshotName,
    mark::{Marked, Node, described},
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
            let roots = self.news().await?;
            if roots.is_empty() {
                return Ok(inside);
            }
            drop(inside);
            self.marked.mark_again(roots).await?;
        }
        let inside = gate::enter(folder).await?;
        loop {
            let roots = self.news().await?;
            if roots.is_empty() {
                return Ok(inside);
            }
            self.marked.mark_again(roots).await?;
        }
    }

    /// What has to be walked of what was recorded and held since the last look.
    async fn news(&mut self) -> Result<Vec<Node>> {
        let news = roots::news(&self.gc.store, &mut self.cursor).await?;
        let mut nodes = self.marked.note(&news.resources);
        nodes.extend(news.targets.iter().map(Node::from));
        Ok(nodes)
    }

    /// Removes the candidates that are still unmarked.
    pub(super) async fn blobs(&mut self, candidates: Vec<Info>) -> Result<()> {
        if self.dry_run {
            for info in candidates.into_iter().filter(|it| !self.marked.has(&it.digest)).collect::<Vec<_>>() {
                self.removed(info);
            }
            return Ok(());
        }
        let mut queue = VecDeque::from(candidates);
        while !queue.is_empty() {
            let batch: VecDeque<_> = queue.drain(..queue.len().min(BATCH)).collect();
            for rest in self.batch(batch).await?.into_iter().rev() {
                queue.push_front(rest);
            }
        }
        Ok(())
    }

    /// Removes some; gives those for which there was no time.
    async fn batch(&mut self, mut batch: VecDeque<Info>) -> Result<VecDeque<Info>> {
        batch.retain(|it| !self.marked.has(&it.digest));
        let content = self.gc.content.clone();
        let mut open = Vec::new();
        for info in batch.iter().filter(|it| it.size >= LARGE) {
            // If it cannot be opened it can still be deleted.
            open.extend(content.open(&described(&info.digest, info.size)).await.ok());
        }
        let inside = self.enter().await?;
        let entered = Instant::now();
        while entered.elapsed() < BUDGET
            && let Some(info) = batch.pop_front()
        {
            if self.marked.has(&info.digest) {
                continue;
            }
            match content.delete(&info.digest).await {
                Ok(()) => self.removed(info),
                Err(ContentError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        drop(inside);
        blocking(move || {
            drop(open);
            Ok(())
        })
        .await?;
        Ok(batch)
    }

    fn removed(&mut self, info: Info) {
        self.report.bytes += info.size;
        self.report.blobs.push(Blob { digest: info.digest, size: info.size });
    }

    /// Removes the snapshots that are dead.
    pub(super) async fn snapshots(&mut self, collector: &Arc<dyn Collector>) -> Result<()> {
        let driver = collector.driver().to_owned();
        let all = calling(collector, "list", |it| it.list()).await?;
        let dead = snapshots::dead(all, |name| self.marked.has_snapshot(&driver, name));
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
                let alive = spared.contains(&name) || self.marked.has_snapshot(&driver, &name);
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

    use super::*;
    use crate::{LeaseOptions, Resource, Store};

    async fn add(content: &LocalStore, media_type: MediaType, text: String) -> Descriptor {
        let it = Descriptor::new(media_type, text.len() as u64, sha256(text.as_bytes()));
        if let Ingest::Open(mut writer) = content.ingest("key", &it).await.expect("it opens") {
            writer.write(text.into()).await.expect("it is written");
            writer.commit(Default::default()).await.expect("it is right");
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
        let marked = Marked::new(Arc::new(content), false);
        let mut sweep = Sweep::new(&gc, marked, cursor, false, &mut report);
        drop(sweep.enter().await.expect("nobody is inside"));

        store.put("put", &put.0).expect("it is recorded");
        let lease = store.lease(LeaseOptions::default()).await.expect("it is made");
        lease.hold(&Resource::Tree(held.0.digest().clone())).await.expect("it holds");
        drop(lease);
        let inside = sweep.enter().await.expect("nobody is inside");

        for (image, marked) in [(put, true), (held, true), (before, false)] {
            for blob in [&image.0, &image.1] {
                assert_eq!(sweep.marked.has(blob.digest()), marked, "{blob:?}");
            }
        }
        let waiting = gate::enter(store.folder());
        let waited = tokio::time::timeout(Duration::from_millis(20), waiting).await;
        assert!(waited.is_err(), "somebody is inside");
        drop(inside);
    }
}
