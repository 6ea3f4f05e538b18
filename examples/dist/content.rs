//! `ingest`, `active`, `list`, `path`, `get`, `delete`: the content store.

use std::io::{self, Read, Write};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass::{
    Windlass,
    content::{Filter, Ingest, Ingester, Labels, Provider, Store, WriterExt},
};

use crate::{cli::IngestArgs, output};

pub(crate) async fn ingest(windlass: &Windlass, arguments: IngestArgs) -> anyhow::Result<()> {
    let IngestArgs { key, expected_digest, expected_size } = arguments;
    let descriptor = unnamed(expected_digest, expected_size);
    let mut writer = match windlass.content().ingest(&key, &descriptor).await? {
        Ingest::Present => return Ok(()),
        Ingest::Open(writer) => writer,
    };
    // Stdin gives the blob from its start; what an earlier try stored is passed over.
    let mut known = writer.offset();
    loop {
        let Some(mut chunk) = tokio::task::spawn_blocking(read_stdin).await?.context("cannot read stdin")?
        else {
            break;
        };
        let passed = known.min(chunk.len() as u64);
        known -= passed;
        writer.write(chunk.split_off(usize::try_from(passed).expect("no more than the chunk"))).await?;
    }
    Ok(writer.commit(Labels::new()).await?)
}

/// The next bytes of stdin; `None` at its end.
fn read_stdin() -> io::Result<Option<Bytes>> {
    let mut buffer = vec![0; 256 << 10];
    let read = io::stdin().lock().read(&mut buffer)?;
    buffer.truncate(read);
    Ok((read > 0).then(|| buffer.into()))
}

pub(crate) async fn active(windlass: &Windlass, quiet: bool) -> anyhow::Result<()> {
    let ingests = windlass.content().active().await?;
    if quiet {
        return Ok(ingests.iter().try_for_each(|ingest| output::line(&ingest.key))?);
    }
    let rows: Vec<_> = ingests
        .into_iter()
        .map(|ingest| {
            let progress = format!("{} / {}", output::size(ingest.offset), output::size(ingest.total));
            [ingest.key, progress, output::age(ingest.started), output::age(ingest.updated)]
        })
        .collect();
    Ok(output::table(["KEY", "PROGRESS", "AGE", "IDLE"], &rows)?)
}

pub(crate) async fn list(windlass: &Windlass, quiet: bool) -> anyhow::Result<()> {
    let mut blobs: Vec<_> = windlass.content().walk(Filter::default()).try_collect().await?;
    blobs.sort_by(|a, b| a.digest.as_ref().cmp(b.digest.as_ref()));
    if quiet {
        return Ok(blobs.iter().try_for_each(|blob| output::line(&blob.digest))?);
    }
    let rows: Vec<_> = blobs
        .into_iter()
        .map(|blob| [blob.digest.to_string(), output::size(blob.size), output::age(blob.committed)])
        .collect();
    Ok(output::table(["DIGEST", "SIZE", "AGE"], &rows)?)
}

pub(crate) async fn path(windlass: &Windlass, check: bool, digests: &[Digest]) -> anyhow::Result<()> {
    for digest in digests {
        if check {
            windlass.content().info(digest).await?;
        }
        output::line(windlass.content().path(digest).display())?;
    }
    Ok(())
}

pub(crate) async fn get(windlass: &Windlass, digest: &Digest) -> anyhow::Result<()> {
    let size = windlass.content().info(digest).await?.size;
    let blob = windlass.content().open(&unnamed(digest.clone(), size)).await?;
    copy_to_stdout(blob.stream(0)).await
}

/// Copies a stream to stdout, chunk by chunk.
pub(crate) async fn copy_to_stdout(mut stream: windlass::content::ByteStream) -> anyhow::Result<()> {
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        tokio::task::spawn_blocking(move || io::stdout().lock().write_all(&chunk)).await??;
    }
    Ok(io::stdout().lock().flush()?)
}

pub(crate) async fn delete(windlass: &Windlass, digests: &[Digest]) -> anyhow::Result<()> {
    for digest in digests {
        windlass.content().delete(digest).await?;
        output::line(digest)?;
    }
    Ok(())
}

/// A descriptor of bytes whose type nobody asked for.
pub(crate) fn unnamed(digest: Digest, size: u64) -> Descriptor {
    Descriptor::new(MediaType::Other("application/octet-stream".into()), size, digest)
}
