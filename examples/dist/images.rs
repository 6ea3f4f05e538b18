//! `images`: what has been pulled or imported, under which names, and whether it is whole.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::Path,
};

use anyhow::{Context, bail};
use serde_json::json;
use windlass::{
    ExportOptions, ImportOptions, Platforms, Windlass,
    images::{Filter, check, progress},
    remotes::local::Source,
};

use crate::{
    cli::{ExportArgs, ImagesCommand, ImportArgs, PlatformArgs},
    display, output,
};

pub(crate) async fn command(windlass: &Windlass, command: ImagesCommand) -> anyhow::Result<()> {
    match command {
        ImagesCommand::Rm { names } => {
            rm(windlass, &names.iter().map(ToString::to_string).collect::<Vec<_>>()).await
        }
        ImagesCommand::Tag { name, new } => {
            windlass.tag(&name.to_string(), &new.to_string()).await?;
            Ok(())
        }
        ImagesCommand::Inspect { name, platform } => inspect(windlass, &name.to_string(), &platform).await,
        ImagesCommand::Check { names } => {
            check_all(windlass, names.iter().map(ToString::to_string).collect()).await
        }
        ImagesCommand::Import(arguments) => import(windlass, arguments).await,
        ImagesCommand::Export(arguments) => export(windlass, arguments).await,
    }
}

pub(crate) fn list(windlass: &Windlass, json: bool) -> anyhow::Result<()> {
    let records = windlass.images().list(&Filter::all())?;
    if json {
        for record in records {
            let target = &record.target;
            output::line(json!({
                "ref": record.name,
                "type": target.media_type().as_ref(),
                "digest": target.digest().as_ref(),
                "size": target.size(),
                "labels": record.labels,
            }))?;
        }
        return Ok(());
    }
    let rows: Vec<_> = records
        .into_iter()
        .map(|record| {
            let target = record.target;
            [
                record.name,
                target.media_type().to_string(),
                target.digest().to_string(),
                output::size(target.size()),
            ]
        })
        .collect();
    Ok(output::table(["REF", "TYPE", "DIGEST", "SIZE"], &rows)?)
}

async fn rm(windlass: &Windlass, names: &[String]) -> anyhow::Result<()> {
    for name in names {
        if !windlass.remove(name).await? {
            bail!("no image {name} here");
        }
        output::line(name)?;
    }
    Ok(())
}

/// Prints what is known of an image, as JSON. Manifest and config are what was fetched.
async fn inspect(windlass: &Windlass, name: &str, platform: &PlatformArgs) -> anyhow::Result<()> {
    let record = windlass.images().get(name)?.with_context(|| format!("no image {name} here"))?;
    let image = windlass.image(name, &platform.platforms()).await?;
    let read = async |descriptor| -> anyhow::Result<serde_json::Value> {
        use windlass::content::ProviderExt;
        Ok(serde_json::from_slice(&windlass.content().read(descriptor, 4 << 20).await?)?)
    };
    let manifest = read(image.descriptor()).await?;
    let config = serde_json::from_value(manifest["config"].clone())?;
    let layers: Vec<_> = image
        .layers()
        .zip(image.chain_ids())
        .map(|((layer, diff_id), chain_id)| {
            json!({ "layer": layer, "diffID": diff_id, "chainID": chain_id.as_ref() })
        })
        .collect();
    let shown = json!({
        "name": name,
        "target": record.target,
        "labels": record.labels,
        "size": image.size(),
        "manifest": manifest,
        "config": read(&config).await?,
        "layers": layers,
    });
    Ok(output::line(serde_json::to_string_pretty(&shown)?)?)
}

/// Prints what is missing of each platform's image; the host's must be whole.
async fn check_all(windlass: &Windlass, names: Vec<String>) -> anyhow::Result<()> {
    let names = match names.is_empty() {
        true => windlass.images().list(&Filter::all())?.into_iter().map(|record| record.name).collect(),
        false => names,
    };
    let (mut rows, mut broken) = (Vec::new(), Vec::new());
    for name in names {
        let record = windlass.images().get(&name)?.with_context(|| format!("no image {name} here"))?;
        let checked = check(windlass.content(), &record.target, None).await?;
        if !checked.iter().any(windlass::images::Checked::is_complete) {
            broken.push(name.clone());
        }
        for image in checked {
            let platform = image.platform.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            let state = match image.missing.len() {
                0 => "complete".to_owned(),
                missing => format!("{missing} blobs missing"),
            };
            rows.push([name.clone(), platform, image.descriptor.digest().to_string(), state]);
        }
    }
    output::table(["REF", "PLATFORM", "MANIFEST", "STATE"], &rows)?;
    match broken.is_empty() {
        true => Ok(()),
        false => bail!("of {} nothing is whole; pull it again", broken.join(", ")),
    }
}

async fn import(windlass: &Windlass, arguments: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, unpack, name } = arguments;
    let (progress, events) = progress::channel();
    let display = tokio::spawn(display::show(events, false));
    let options = ImportOptions::default().unpack(unpack).names(name).progress(progress);
    let imported = if file == "-" {
        windlass.import(io::stdin(), options).await
    } else if Path::new(&file).is_file() {
        let base = Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let options = base.into_iter().fold(options, ImportOptions::base);
        let open = File::open(&file).with_context(|| format!("cannot open {file}"))?;
        windlass.import(open, options).await
    } else {
        // A folder, or `oci:…` and the like.
        let source = if Path::new(&file).is_dir() { format!("oci:{file}") } else { file };
        windlass.import_from(&source.parse::<Source>()?, options).await
    };
    let displayed = display.await?;
    for image in imported? {
        output::line(format!("{} {}", image.name, image.target.digest()))?;
    }
    Ok(displayed?)
}

async fn export(windlass: &Windlass, arguments: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { file, names, platform } = arguments;
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let options = match platform.platforms() {
        Platforms::One(platform) => ExportOptions::default().platform(platform),
        _ => ExportOptions::default(),
    };
    if file == "-" {
        return Ok(windlass.export(&names, &options, BufWriter::new(io::stdout())).await?);
    }
    let partial = format!("{file}.partial");
    let written = async {
        let create = File::create(&partial).with_context(|| format!("cannot create {partial}"))?;
        windlass.export(&names, &options, BufWriter::new(create)).await?;
        std::fs::rename(&partial, &file).with_context(|| format!("cannot rename {partial}"))
    };
    written.await.inspect_err(|_| {
        // What is left of it is no archive.
        let _ = std::fs::remove_file(&partial);
    })
}
