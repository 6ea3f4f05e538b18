//! Removing what nothing needs any more, beside whatever else is going on.
//!
//! ```text
//! begin ──▶ policies drop names ──▶ mark: images, leases ──▶ sweep, a few at a time:
//!                                                             enter the gate, mark what is new,
//!                                                             remove what is still dead, leave
//! ```
//!
//! **What stays.** At the end of a collection all of this is there, if it was there at its start or came since:
//! what is below an image that is listed, a blob, tree or snapshot that a lease has held at any moment since the
//! collection began, manifests whose `subject` stays, with all that is below them, and snapshots that are in use, or are the
//! layers of an image that stays, with their parents.
//!
//! **Why.** Three sentences carry it:
//!
//! 1. Whoever needs a blob holds it *before* looking whether it is there, and until a name that is recorded (or another
//!    lease) holds it. Holding and removing both happen inside the gate, so one comes first: if it is the
//!    holding, then the collection sees it before it removes anything more; if it is the removing, then the blob is
//!    not there for the one who looks, who fetches it.
//! 2. While a collection runs, nothing that was held is forgotten: what a lease held outlives the lease until the collection
//!    ends. So it does not matter when, between two looks, a pull begins or ends.
//! 3. Before each removal, inside the gate, the collection reads what was recorded and held since it last looked, and marks it.
//!    The first mark is thus only an estimate, and may be as slow, and as old, as it likes.
//!
//! What was put into the content store without a lease, or recorded without one, may be taken. [`Store::tag`]
//! needs none: it copies a name that is listed in one step.
//!
//! **What it costs others.** Readers nothing: they never enter the gate, and a blob that is open can be read on. Who takes or
//! extends a lease waits for a moment: 20 ms and one removal more, or, if images are recorded faster than they can be
//! marked, until those few are. Deleting inside the gate only unlinks: large blobs are kept open meanwhile, so that
//! their space is freed after leaving.
//!
//! **What memory it takes.** No more for a hundred thousand images than for a thousand: what is needed, and what may have to go, is noted in
//! a file beside the image list, of less than 100 bytes for each blob. It has no name, so that it is gone when
//! the collection is, however that ends. On a disk that is full it is kept in memory instead, with a warning: to make room is what a collection
//! is for. What grows with what it is about: the [`Report`], by what was removed; the snapshots of a [`Collector`], all of which
//! it lists; and with a [`Policy`] all names, of about 1.3 KiB each, and with [`Policy::max_total_size`] all blobs, of which
//! an image of two blobs of its own and four others takes another 1.3 KiB.
//!
//! A collection that dies leaves nothing to repair. The next one does the rest.

mod discard;
mod ingests;
mod key;
mod mark;
mod marks;
mod policy;
mod report;
mod roots;
mod snapshots;
mod sweep;

use std::{fs::File, sync::Arc, time::Duration};

use self::{mark::Marked, marks::Marks, sweep::Sweep};
pub use self::{
    policy::{Policy, Sizes, choose},
    report::{Blob, Ingest, Report, SnapshotName},
    snapshots::{Collector, Snapshot},
};
use crate::{LeaseInfo, Result, Store, gate};

/// What to do in one collection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Removes nothing, and reports what would be. False by default.
    pub dry_run: bool,
    /// Which names to drop first. None by default.
    pub policy: Policy,
    /// Discards ingests that got no bytes for this long, and that no lease holds. 24 hours by default.
    pub idle_ingests: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 60 * 60);
        Self { dry_run: false, policy: Policy::default(), idle_ingests: day }
    }
}

impl Options {
    /// Sets whether only to report.
    pub fn dry_run(self, dry_run: bool) -> Self {
        Self { dry_run, ..self }
    }

    /// Sets which names to drop first.
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Sets after how long without bytes an ingest is discarded.
    pub fn idle_ingests(self, idle_ingests: Duration) -> Self {
        Self { idle_ingests, ..self }
    }
}

/// A garbage collector of content, and of the snapshots that it is told of.
#[derive(Clone, Debug)]
pub struct Gc {
    store: Store,
    content: Arc<dyn windlass_content::Store>,
    collectors: Vec<Arc<dyn Collector>>,
}

impl Gc {
    /// Collects what neither an image of `store` nor a lease needs of `content`.
    ///
    /// All who share the content must share the store.
    pub fn new(store: Store, content: Arc<dyn windlass_content::Store>) -> Self {
        Self { store, content, collectors: Vec::new() }
    }

    /// Collects snapshots, too. Without collectors, no configs are read.
    pub fn collector(mut self, collector: impl Collector + 'static) -> Self {
        self.collectors.push(Arc::new(collector));
        self
    }

    /// Collects. Waits while another collection runs, in whatever process.
    ///
    /// Dropping the future stops it; what was removed until then stays removed.
    ///
    /// # Errors
    ///
    /// [`Error::Database`](crate::Error::Database), [`Error::Io`](crate::Error::Io), [`Error::Content`](crate::Error::Content)
    /// if content is there and cannot be read or deleted, [`Error::Collector`](crate::Error::Collector). A manifest
    /// that is damaged is none: it counts as having nothing below it.
    pub async fn run(&self, options: &Options) -> Result<Report> {
        let lock = gate::collecting(self.store.folder()).await?;
        self.collect(options, lock).await
    }

    /// As [`run`](Self::run), but does nothing and gives `None` while another collection runs.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub async fn try_run(&self, options: &Options) -> Result<Option<Report>> {
        match gate::try_collecting(self.store.folder()).await? {
            Some(lock) => self.collect(options, lock).await.map(Some),
            None => Ok(None),
        }
    }

    async fn collect(&self, options: &Options, _running: File) -> Result<Report> {
        let mut report = Report { dry_run: options.dry_run, ..Report::default() };
        let (cursor, leases) = roots::begin(&self.store, options.dry_run).await?;
        report.leases = leases.dead.into_iter().map(|it| it.id).collect();
        report.images = self.drop_names(options).await?;

        let marks = Marks::on_disk(self.store.folder());
        let marked = self.mark_anyway(marks, &leases.alive, &report.images).await?;

        let mut sweep = Sweep::new(self, marked, cursor, options.dry_run, &mut report);
        for collector in &self.collectors {
            sweep.snapshots(collector).await?;
        }
        sweep.blobs().await?;
        sweep.ingests(options.idle_ingests).await?;
        if !options.dry_run {
            roots::end(&self.store).await?;
        }
        Ok(report)
    }

    /// As [`mark`](Self::mark), but if the disk is full it begins again in memory: to make room is what a collection is for.
    async fn mark_anyway(
        &self,
        marks: impl Future<Output = Result<Marks>>,
        leases: &[LeaseInfo],
        dropped: &[String],
    ) -> Result<Marked> {
        match self.mark(marks, leases, dropped).await {
            Err(error) if marks::is_full(&error) => {
                tracing::warn!(%error, "the disk is full: what is needed is noted in memory");
                self.mark(Marks::in_memory(), leases, dropped).await
            }
            marked => marked,
        }
    }

    /// Marks what is needed, and finds what is not.
    async fn mark(
        &self,
        marks: impl Future<Output = Result<Marks>>,
        leases: &[LeaseInfo],
        dropped: &[String],
    ) -> Result<Marked> {
        let mut marked = Marked::new(self.content.clone(), !self.collectors.is_empty(), marks.await?);
        for lease in leases {
            marked.hold(&lease.resources).await?;
        }
        self.mark_images(&mut marked, dropped).await?;
        marked.find_candidates().await?;
        marked.find_referrers().await?;
        Ok(marked)
    }

    /// Marks all images but the dropped ones, which a dry run still finds listed.
    async fn mark_images(&self, marked: &mut Marked, dropped: &[String]) -> Result<()> {
        let mut after = None;
        loop {
            let page = roots::targets(&self.store, after.take()).await?;
            let Some((last, _)) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            let roots = page.into_iter().filter(|(name, _)| dropped.binary_search(name).is_err());
            marked.mark(roots.map(|(_, target)| (&target).into())).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, MediaType};
    use windlass_content::{LocalStore, hash::sha256};

    use super::*;

    #[tokio::test]
    async fn on_a_full_disk_what_is_needed_is_noted_in_memory() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let content = LocalStore::open(dir.path().join("content"), windlass_content::Options::default());
        let store = Store::open(dir.path().join("images.db")).expect("it opens");
        let image = |n: u32| Descriptor::new(MediaType::ImageManifest, 1, sha256(&n.to_le_bytes()));
        for n in 0..2000 {
            let target = serde_json::to_string(&image(n)).expect("it is JSON");
            let statement = "INSERT INTO images (name, target, created, updated) VALUES (?1, ?2, 0, 0)";
            let row = (n, target);
            store.relaxed("record", |it| it.execute(statement, row)).expect("it is recorded");
        }
        let gc = Gc::new(store, Arc::new(content.expect("it opens")));
        let full = || async {
            let marks = Marks::on_disk(dir.path()).await?;
            marks.limit(10).await?;
            Ok(marks)
        };
        let failed = gc.mark(full(), &[], &[]).await.expect_err("there is no room");
        assert!(marks::is_full(&failed), "{failed:?}");

        let marked = gc.mark_anyway(full(), &[], &[]).await.expect("there is memory");

        for (n, expected) in [(0, true), (1999, true), (2000, false)] {
            assert_eq!(marked.has(image(n).digest()).await.expect("it looks"), expected, "{n}");
        }
    }
}
