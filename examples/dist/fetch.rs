//! `pull`, `fetch` and `fetch-object`: content from a registry.

use windlass::{PullOptions, Reference, Retain, Windlass, images::progress, remotes::local::Source};

use crate::{cli::PullArgs, content, display};

pub(crate) async fn pull(windlass: &Windlass, arguments: PullArgs) -> anyhow::Result<()> {
    get(windlass, arguments, true).await
}

pub(crate) async fn fetch(windlass: &Windlass, arguments: PullArgs) -> anyhow::Result<()> {
    get(windlass, arguments, false).await
}

async fn get(windlass: &Windlass, arguments: PullArgs, unpack: bool) -> anyhow::Result<()> {
    let (progress, events) = progress::channel();
    let display = tokio::spawn(display::show(events, arguments.json));
    let options =
        PullOptions::default().platforms(arguments.platforms()).progress(progress).unpack(unpack).retain(
            match arguments.discard_layers {
                true => Retain::Unpacked,
                false => Retain::Everything,
            },
        );
    let pulled = async {
        match &arguments.source {
            Source::Registry(reference) => windlass.pull_with(reference, options).await,
            local => {
                windlass.pull_resolved(local.resolve(windlass.resolver().as_ref()).await?, options).await
            }
        }
    };
    let pulled = pulled.await;
    let displayed = display.await?;
    pulled?;
    Ok(displayed?)
}

pub(crate) async fn object(windlass: &Windlass, reference: &Reference) -> anyhow::Result<()> {
    let resolved = windlass.resolver().resolve(reference).await?;
    let descriptor = resolved.descriptor;
    let stream = resolved.fetcher.fetch(&descriptor, 0).await?;
    content::copy_to_stdout(stream).await
}
