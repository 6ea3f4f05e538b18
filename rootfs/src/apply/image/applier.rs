use std::{fs::File, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use windlass_snapshot::{LayerFile, Mount, Snapshotter, Supposed, Whiteouts, mount::open_tree};

use super::{Converted, Files, Options, convert, convert_again};
use crate::{
    Applier, Error, LayerStream, Result,
    applier::{PieceReader, run},
    apply::{Applied, Limits, Pending},
};

/// Turns tar layers into EROFS images, for a snapshotter that keeps these: one thread inflates, another hashes and writes.
///
/// What a layer takes from those below it, the snapshotter looks up at commit.
#[derive(Clone, Debug)]
pub struct ImageApplier {
    snapshotter: Arc<dyn Snapshotter>,
    limits: Limits,
}

impl ImageApplier {
    /// An applier for the snapshots of this snapshotter, whose `Capabilities::images` must be set.
    pub fn new(snapshotter: Arc<dyn Snapshotter>) -> Self {
        Self { snapshotter, limits: Limits::default() }
    }

    /// Sets how much a layer may hold.
    pub fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }
}

#[async_trait]
impl Applier for ImageApplier {
    async fn apply(
        &self,
        layer: LayerStream,
        mounts: &[Mount],
        below: &[Mount],
        whiteouts: Whiteouts,
    ) -> Result<Applied> {
        let LayerFile { image, tar } = self.snapshotter.layer_file(mounts)?;
        let options = Options::default().whiteouts(whiteouts).marks(true).limits(self.limits.clone());
        let below = below.to_vec();
        let work = move |plain: PieceReader<'_>| {
            let files = Files { image: create(image)?, tar: tar.map(create).transpose()? };
            let Converted { diff_id, entries, supposed, .. } = match below.is_empty() {
                true => convert(plain, files, &options)?,
                false => convert_again(plain, files, &open_tree(&below)?, &options)?,
            };
            let Supposed { folders: guesses, files: targets, refused } = supposed;
            let pending = Pending { guesses, targets, refused, ..Pending::default() };
            Ok(Applied { diff_id, entries, skipped: 0, pending })
        };
        run(layer, self.limits.clone(), work).await
    }
}

fn create(path: PathBuf) -> Result<File> {
    let file = File::options().create_new(true).read(true).write(true).open(&path);
    file.map_err(|source| Error::Io { op: "create", path, source })
}
