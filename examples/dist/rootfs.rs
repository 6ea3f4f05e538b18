//! `apply`, `rootfs unpack`, `rootfs prepare`: from layers to mounts.

use std::{
    fs::File,
    io::{self, BufReader},
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::Context;
use oci_spec::image::{Descriptor, Digest, MediaType};
use windlass::{
    Windlass,
    content::{ProviderExt, Store},
    rootfs::apply,
};

use crate::{cli::RootfsCommand, content::unnamed, output};

pub(crate) async fn apply(dir: &Path) -> anyhow::Result<()> {
    let root = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let work = move || {
        let (options, unnamed) = (apply::Options::default(), MediaType::Other(String::new()));
        let plain = windlass::rootfs::compression::decompress(io::stdin(), &unnamed, &options.limits)?;
        let plain = BufReader::with_capacity(256 << 10, plain);
        anyhow::Ok(apply::apply(plain, &OwnedFd::from(root), &options)?)
    };
    let applied = tokio::task::spawn_blocking(work).await??;
    Ok(output::line(applied.diff_id)?)
}

pub(crate) async fn command(windlass: &Windlass, command: RootfsCommand) -> anyhow::Result<()> {
    match command {
        RootfsCommand::Unpack { manifest } => unpack(windlass, manifest).await,
        RootfsCommand::Prepare { chain_id, key, target } => prepare(windlass, &chain_id, key, &target).await,
    }
}

async fn unpack(windlass: &Windlass, manifest: Digest) -> anyhow::Result<()> {
    let size = windlass.content().info(&manifest).await?.size;
    // Only its digest is known; what kind of manifest it is, OCI's or Docker's, it says itself.
    let bytes = windlass.content().read(&unnamed(manifest.clone(), size), 4 << 20).await?;
    let document: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let kind = document["mediaType"].as_str().map_or(MediaType::ImageManifest, MediaType::from);
    let chain_id = windlass.unpack(&Descriptor::new(kind, size, manifest)).await?;
    Ok(output::line(chain_id.context("the image has no layers: there is nothing to unpack")?)?)
}

async fn prepare(windlass: &Windlass, chain_id: &Digest, key: String, target: &Path) -> anyhow::Result<()> {
    let (this, parent) = (windlass.clone(), chain_id.to_string());
    let prepare = move || anyhow::Ok(this.snapshotter()?.prepare(&key, Some(&parent))?);
    let mounts = tokio::task::spawn_blocking(prepare).await??;
    mounts.iter().try_for_each(|mount| output::line(mount.command_line(target)))?;
    Ok(())
}
