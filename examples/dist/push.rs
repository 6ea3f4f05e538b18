//! `push`, `copy` and `tags`: content into a registry, and what is there.

use std::{num::NonZeroUsize, sync::Arc};

use anyhow::Context;
use futures::TryStreamExt;
use oci_spec::image::Descriptor;
use windlass::{
    Platforms, Reference, Windlass,
    images::{media_type::is_index, progress},
    remotes::{Fetcher, Registry, RegistryPusher, from_provider, local::Source, push as push_image},
};

use crate::{
    cli::{CopyArgs, PushArgs, UploadArgs},
    display, output,
};

/// How many blobs are sent at once. Each holds a chunk in memory.
const AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

pub(crate) async fn push(windlass: &Windlass, registry: Registry, arguments: PushArgs) -> anyhow::Result<()> {
    let PushArgs { name, to, platform, upload } = arguments;
    let record = windlass.find(&name).await?;
    let name = &record.name;
    let to = match to {
        Some(to) => to,
        None => name.parse().with_context(|| format!("{name} is no place in a registry; say where to"))?,
    };
    let root = match platform {
        Some(platform) => windlass.image(name, &Platforms::One(platform)).await?.descriptor().clone(),
        None => record.target,
    };
    let source = Arc::new(from_provider(windlass.refetching(name).await?));
    let sent = send(&registry, source, &to, &root, &upload, &upload.mount_from).await;
    sent.with_context(|| match root.media_type() {
        index if is_index(index) => format!(
            "cannot push {name}, an index: all its images must be here (`dist fetch --all-platforms`), or one be chosen (--platform)"
        ),
        _ => format!("cannot push {name}"),
    })
}

pub(crate) async fn copy(registry: Registry, arguments: CopyArgs) -> anyhow::Result<()> {
    let CopyArgs { from, to, upload } = arguments;
    let resolved = from.resolve(&registry).await?;
    // Within one registry, nothing needs to be sent.
    let mut mount_from = upload.mount_from.clone();
    if let Source::Registry(from) = &from
        && from.host() == to.host()
    {
        mount_from.push(from.repository().to_owned());
    }
    send(&registry, resolved.fetcher, &to, &resolved.descriptor, &upload, &mount_from).await
}

/// Sends an image, and shows it on the way; prints what the name stands for now.
async fn send(
    registry: &Registry,
    source: Arc<dyn Fetcher>,
    to: &Reference,
    root: &Descriptor,
    upload: &UploadArgs,
    mount_from: &[String],
) -> anyhow::Result<()> {
    let pusher = registry.pusher(to, root.digest()).await?;
    let pusher = mount_from.iter().fold(pusher, RegistryPusher::mount_from);
    let (progress, events) = progress::channel();
    let display = tokio::spawn(display::show(events, upload.json));
    let sent = push_image(source, Arc::new(pusher), root, AT_ONCE, &progress).await;
    drop(progress);
    let displayed = display.await?;
    sent?;
    displayed?;
    if !upload.json {
        output::line(format!("{to} {}", root.digest()))?;
    }
    Ok(())
}

pub(crate) async fn tags(registry: Registry, repository: &Reference) -> anyhow::Result<()> {
    let mut tags = registry.tags(repository);
    while let Some(tag) = tags.try_next().await? {
        output::line(tag)?;
    }
    Ok(())
}
