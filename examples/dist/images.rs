//! `images`: what has been pulled or imported, under which names, and whether it is whole.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::Path,
};

use anyhow::{Context, bail};
use oci_spec::image::Descriptor;
use serde_json::json;
use windlass::{
    ExportOptions, ImportOptions, Reference, Windlass,
    images::{self, Filter, Record, Update, check, media_type, progress},
    labels,
    remotes::local::Source,
};

use crate::{
    cli::{ExportArgs, ImagesCommand, ImportArgs, PlatformArgs},
    display, output,
};

pub(crate) async fn command(windlass: &Windlass, command: ImagesCommand) -> anyhow::Result<()> {
    match command {
        ImagesCommand::Rm { names } => rm(windlass, &names).await,
        ImagesCommand::Tag { name, new } => {
            let name = windlass.find(&name).await?.name;
            windlass.tag(&name, &new.to_string()).await?;
            Ok(())
        }
        ImagesCommand::Label { name, labels, rm } => label(windlass, &name, &labels, &rm).await,
        ImagesCommand::Inspect { name, platform } => inspect(windlass, &name, &platform).await,
        ImagesCommand::Check { names } => check_all(windlass, names).await,
        ImagesCommand::Import(arguments) => import(windlass, arguments).await,
        ImagesCommand::Export(arguments) => export(windlass, arguments).await,
    }
}

pub(crate) async fn list(windlass: &Windlass, json: bool) -> anyhow::Result<()> {
    let records = windlass.images().list(&Filter::all())?;
    if json {
        for record in records {
            let target = &record.target;
            output::line(json!({
                "ref": record.name,
                "type": target.media_type().as_ref(),
                "digest": target.digest().as_ref(),
                "size": target.size(),
                "totalSize": size(windlass, &record).await,
                "labels": record.labels,
            }))?;
        }
        return Ok(());
    }
    let mut rows = Vec::new();
    for record in records {
        let size = size(windlass, &record).await.map_or_else(|| "?".to_owned(), output::size);
        let target = record.target;
        rows.push([record.name, target.media_type().to_string(), target.digest().to_string(), size]);
    }
    Ok(output::table(["REF", "TYPE", "DIGEST", "SIZE"], &rows)?)
}

/// What the images below a name take when they are sent, of those platforms of which the manifest is here.
async fn size(windlass: &Windlass, record: &Record) -> Option<u64> {
    // One that cannot be read is for `check` to explain.
    let checked = check(windlass.content(), &record.target, None).await.ok()?;
    Some(checked.iter().filter(|it| !it.missing.contains(&it.descriptor)).map(|it| it.size).sum())
}

async fn rm(windlass: &Windlass, names: &[String]) -> anyhow::Result<()> {
    for text in names {
        let record = match windlass.find(text).await {
            Err(windlass::Error::NoImage { name }) => bail!("no image {name} here"),
            found => found?,
        };
        let same = windlass.images().list(&Filter::all().digest(record.target.digest().clone()))?;
        let is_named = Reference::parse(text).is_ok_and(|name| name.to_string() == record.name);
        if same.len() > 1 && !is_named {
            let names: Vec<_> = same.into_iter().map(|record| record.name).collect();
            bail!("{text} has several names: {}; say which of them to remove", names.join(", "));
        }
        windlass.remove(&record.name).await?;
        output::line(record.name)?;
    }
    Ok(())
}

async fn label(windlass: &Windlass, name: &str, labels: &[String], rm: &[String]) -> anyhow::Result<()> {
    let name = windlass.find(name).await?.name;
    let update = rm.iter().fold(Update::default(), Update::remove_label);
    let update = labels.iter().fold(update, |update, label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        update.set_label(key, value)
    });
    windlass.images().update(&name, &update)?.with_context(|| format!("no image {name} here any more"))?;
    Ok(())
}

/// Prints what is known of an image, as JSON. Manifest and config are what was fetched.
async fn inspect(windlass: &Windlass, name: &str, platform: &PlatformArgs) -> anyhow::Result<()> {
    let record = windlass.find(name).await?;
    let image = windlass.image(&record.name, &platform.platforms()).await?;
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
        "name": record.name,
        "target": record.target,
        "labels": record.labels,
        "size": image.size(),
        "manifest": manifest,
        "config": read(&config).await?,
        "layers": layers,
    });
    Ok(output::line(serde_json::to_string_pretty(&shown)?)?)
}

/// Prints what is missing of each platform's image; one of each must be whole.
async fn check_all(windlass: &Windlass, names: Vec<String>) -> anyhow::Result<()> {
    let mut records = Vec::new();
    for name in &names {
        records.push(windlass.find(name).await?);
    }
    if names.is_empty() {
        records = windlass.images().list(&Filter::all())?;
    }
    let (mut rows, mut broken) = (Vec::new(), Vec::new());
    for record in records {
        let checked = check(windlass.content(), &record.target, None).await?;
        let are_discarded = record.labels.contains_key(labels::UNPACKED);
        let is_layer = |blob: &Descriptor| media_type::is_layer(blob.media_type());
        let mut is_broken = true;
        for image in checked {
            let platform = image.platform.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
            let state = match image.missing.len() {
                0 => "complete".to_owned(),
                _ if are_discarded && image.missing.iter().all(is_layer) => "layers not kept".to_owned(),
                1 => "1 blob missing".to_owned(),
                missing => format!("{missing} blobs missing"),
            };
            is_broken &= state.ends_with("missing");
            rows.push([record.name.clone(), platform, image.descriptor.digest().to_string(), state]);
        }
        if is_broken {
            broken.push(record.name);
        }
    }
    output::table(["REF", "PLATFORM", "MANIFEST", "STATE"], &rows)?;
    match broken.is_empty() {
        true => Ok(()),
        false => bail!("no platform is whole of {}; pull it again", broken.join(", ")),
    }
}

async fn import(windlass: &Windlass, arguments: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, unpack, name } = arguments;
    let (progress, events) = progress::channel();
    let display = tokio::spawn(display::show(events, false));
    let options = ImportOptions::default().unpack(unpack).names(name).progress(progress);
    let path = Path::new(&file);
    let is_source = ["oci:", "oci-archive:", "docker-archive:"].iter().any(|kind| file.starts_with(kind));
    let imported = if file == "-" {
        windlass.import(io::stdin(), options).await
    } else if path.is_dir() || is_source && !path.exists() {
        let source = if is_source { file } else { format!("oci:{file}") };
        windlass.import_from(&source.parse::<Source>()?, options).await
    } else {
        let base = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let options = base.into_iter().fold(options, ImportOptions::base);
        let open = File::open(path).with_context(|| format!("cannot open {file}"))?;
        windlass.import(open, options).await
    };
    let displayed = display.await?;
    for image in imported? {
        output::line(format!("{} {}", image.name, image.target.digest()))?;
    }
    Ok(displayed?)
}

async fn export(windlass: &Windlass, arguments: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { file, names: texts, platform } = arguments;
    let mut names = Vec::new();
    for text in &texts {
        names.push(windlass.find(text).await?.name);
    }
    let options = platform.into_iter().fold(ExportOptions::default(), ExportOptions::platform);
    if file == "-" {
        return match windlass.export(&names, &options, BufWriter::new(io::stdout())).await {
            // What became of stdout is for `main` to judge.
            Err(windlass::Error::Images(images::Error::Stream { op: "write", source })) => Err(source.into()),
            answer => Ok(answer?),
        };
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
