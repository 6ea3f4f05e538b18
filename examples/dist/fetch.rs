//! `pull`, `fetch` and `fetch-object`: content from a registry.

use windlass::{PullOptions, Reference, Retain, Windlass, images::progress, remotes::local::Source};

use crate::{
    cli::{FetchArgs, PullArgs},
    content, display,
};

pub(crate) async fn pull(windlass: &Windlass, arguments: PullArgs) -> anyhow::Result<()> {
    let retain = if arguments.discard_layers { Retain::Unpacked } else { Retain::Everything };
    get(windlass, arguments.fetch, PullOptions::default().retain(retain)).await
}

pub(crate) async fn fetch(windlass: &Windlass, arguments: FetchArgs) -> anyhow::Result<()> {
    get(windlass, arguments, PullOptions::default().unpack(false)).await
}

async fn get(windlass: &Windlass, arguments: FetchArgs, options: PullOptions) -> anyhow::Result<()> {
    let (progress, events) = progress::channel();
    let display = tokio::spawn(display::show(events, arguments.json));
    let options = options.platforms(arguments.platforms()).progress(progress);
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
