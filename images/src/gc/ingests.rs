//! Discarding ingests that nobody goes on with.

use std::time::{Duration, SystemTime};

use tokio::time::timeout;
use windlass_content::Error as ContentError;

use super::{Ingest, sweep::Sweep};
use crate::Result;

/// How long to wait for the writer of an ingest that seemed to have none. It is not abandoned then.
const WRITER: Duration = Duration::from_millis(200);

impl Sweep<'_> {
    /// Discards ingests that got no bytes for as long as `idle`. One that is taken up meanwhile starts anew, or stays.
    pub(super) async fn ingests(&mut self, idle: Duration) -> Result<()> {
        let content = self.gc.content.clone();
        let now = SystemTime::now();
        for status in content.active().await? {
            let since = now.duration_since(status.updated).unwrap_or_default();
            if since < idle || self.marked.has_ingest(&status.key).await? {
                continue;
            }
            if !self.dry_run {
                let _inside = self.enter().await?;
                if self.marked.has_ingest(&status.key).await? {
                    continue;
                }
                match timeout(WRITER, content.abort(&status.key)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(ContentError::NoIngest { .. })) | Err(_) => continue,
                    Ok(Err(error)) => return Err(error.into()),
                }
            }
            self.report.bytes += status.offset;
            self.report.ingests.push(Ingest { key: status.key, size: status.offset });
        }
        Ok(())
    }
}
