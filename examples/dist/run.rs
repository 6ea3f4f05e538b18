//! `run`: a container of an image, from pull to exit code.

use std::process::ExitCode;

use anyhow::{Context, bail};
use windlass::{PullOptions, Reference, Windlass, rootfs::spec};

use crate::{cli::RunArgs, runtime::Runtime};

pub(crate) async fn run(windlass: &Windlass, arguments: RunArgs) -> anyhow::Result<ExitCode> {
    let runtime = Runtime::find(arguments.runtime.as_deref())?;
    let platforms = arguments.platforms.platforms();
    let name = match windlass.find(&arguments.image).await {
        Ok(record) => record.name,
        Err(windlass::Error::NoImage { name }) => match arguments.image.parse::<Reference>() {
            Ok(reference) if reference.to_string() == name => {
                eprintln!("{name} is not here; pulling it");
                let options = PullOptions::default().platforms(platforms.clone());
                windlass.pull_with(&reference, options).await?.name
            }
            // A digest stays as it was written, and there is nowhere to pull it from.
            _ => bail!("no image {name} here"),
        },
        Err(error) => return Err(error.into()),
    };
    let id = arguments.id.unwrap_or_else(made_up_id);
    let options = spec::Options::default().args(arguments.command).host_network(arguments.host_network);
    let bundle = windlass.bundle(&name, &platforms, &id, options).await?;
    let code = runtime.run(&bundle, &id, &windlass.root().join("runtime")).await;
    windlass
        .remove_container(&id, bundle, arguments.rm)
        .await
        .context("cannot clean up after the container")?;
    Ok(ExitCode::from(code?))
}

/// A name that no other container has: nobody can guess the time and the process.
fn made_up_id() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    format!("dist-{}-{:x}", std::process::id(), now & 0xffff_ffff)
}
