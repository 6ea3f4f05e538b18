use bytes::Buf;
use oci_spec::image::Descriptor;
use tokio::sync::mpsc;
use windlass_content::{Blob, Ingest, Ingester, Writer, WriterExt};

use super::scan::Event;
use crate::Result;

/// Takes in blobs while they arrive, until nothing comes any more. A blob that breaks off is kept, to be resumed.
pub(super) async fn arriving(ingester: &dyn Ingester, mut events: mpsc::Receiver<Event>) -> Result<()> {
    let mut open: Option<Box<dyn Writer>> = None;
    // How much of the blob is there from an earlier try, in bytes.
    let mut known = 0;
    while let Some(event) = events.recv().await {
        match event {
            Event::Blob(blob) => {
                if let Ingest::Open(writer) = ingester.ingest(&key(&blob), &blob).await? {
                    known = writer.offset();
                    open = Some(writer);
                }
            }
            Event::Bytes(mut bytes) => {
                let Some(writer) = &mut open else { continue };
                let skipped = known.min(bytes.len() as u64);
                known -= skipped;
                bytes.advance(usize::try_from(skipped).expect("it is within the chunk"));
                writer.write(bytes).await?;
            }
            Event::End => {
                if let Some(writer) = open.take() {
                    writer.commit(windlass_content::Labels::new()).await?;
                }
            }
        }
    }
    Ok(())
}

/// Takes in a blob that is elsewhere.
pub(super) async fn whole(ingester: &dyn Ingester, node: &Descriptor, blob: &Blob) -> Result<()> {
    if let Ingest::Open(mut writer) = ingester.ingest(&key(node), node).await? {
        writer.append(blob.stream(writer.offset())).await?;
        writer.commit(windlass_content::Labels::new()).await?;
    }
    Ok(())
}

/// What a blob is cannot be seen before all of the archive was read.
fn key(blob: &Descriptor) -> String {
    format!("blob-{}", blob.digest())
}
