//! `verify`, `gc`, `du` and `leases`: keeping the folder in order.

use anyhow::bail;
use futures::TryStreamExt;
use serde_json::json;
use windlass::{
    Windlass,
    content::{Condition, Verify},
    images::{
        Removal,
        gc::{Options, Policy},
    },
};

use crate::{
    cli::{GcArgs, LeasesCommand},
    output,
};

/// Reads every blob, and prints those that are damaged.
pub(crate) async fn verify(windlass: &Windlass, quarantine: bool) -> anyhow::Result<()> {
    let mut verified = windlass.content().verify(Verify::default().quarantine(quarantine));
    let (mut good, mut damaged) = (0, 0);
    while let Some(blob) = verified.try_next().await? {
        match blob.condition {
            Condition::Damaged { reason, quarantined, .. } => {
                damaged += 1;
                let place =
                    quarantined.map(|path| format!(", moved to {}", path.display())).unwrap_or_default();
                output::line(format!("{} {reason}{place}", blob.digest))?;
            }
            _ => good += 1,
        }
    }
    match damaged {
        0 => eprintln!("{good} blobs are good"),
        _ if quarantine => eprintln!("{good} blobs are good; the next pull fetches the damaged ones again"),
        _ => bail!(
            "{damaged} of {} blobs are damaged; move them out of the way with --quarantine",
            good + damaged
        ),
    }
    Ok(())
}

pub(crate) async fn gc(windlass: &Windlass, arguments: GcArgs) -> anyhow::Result<()> {
    let GcArgs { dry_run, keep_newest, unused_since, keep_label, max_size, json } = arguments;
    let mut policy = keep_label.into_iter().fold(Policy::default(), Policy::keep_label);
    policy.keep_newest = keep_newest;
    policy.unused_since = unused_since;
    policy.max_total_size = max_size;
    let report = windlass.gc(&Options::default().dry_run(dry_run).policy(policy)).await?;
    if json {
        return Ok(output::line(serde_json::to_string(&report)?)?);
    }
    let rows = [
        report
            .images
            .iter()
            .map(|name| ["image".to_owned(), name.clone(), String::new()])
            .collect::<Vec<_>>(),
        report.leases.iter().map(|id| ["lease".to_owned(), id.clone(), String::new()]).collect(),
        report
            .snapshots
            .iter()
            .map(|it| ["snapshot".to_owned(), format!("{}/{}", it.driver, it.name), output::size(it.size)])
            .collect(),
        report
            .blobs
            .iter()
            .map(|it| ["blob".to_owned(), it.digest.to_string(), output::size(it.size)])
            .collect(),
        report
            .ingests
            .iter()
            .map(|it| ["ingest".to_owned(), it.key.clone(), output::size(it.size)])
            .collect(),
    ]
    .concat();
    output::table(["TYPE", "NAME", "SIZE"], &rows)?;
    let verb = if dry_run { "would free" } else { "freed" };
    eprintln!("{verb} {}", output::size(report.bytes));
    Ok(())
}

pub(crate) async fn du(windlass: &Windlass, json: bool) -> anyhow::Result<()> {
    let usage = windlass.usage().await?;
    let totals = [
        ("blobs", usage.blobs),
        ("ingests", usage.ingests),
        ("snapshots", usage.snapshots),
        ("reclaimable", usage.reclaimable),
    ];
    if json {
        for image in &usage.images {
            let (blobs, shared, unpacked) = (image.blobs, image.shared, image.unpacked);
            output::line(
                json!({ "ref": image.name, "blobs": blobs, "shared": shared, "unpacked": unpacked }),
            )?;
        }
        for (kind, total) in totals {
            output::line(json!({ "type": kind, "count": total.count, "bytes": total.bytes }))?;
        }
        return Ok(());
    }
    let mut images = usage.images;
    images.sort_by_key(|image| std::cmp::Reverse(image.blobs + image.unpacked));
    let rows: Vec<_> = images
        .into_iter()
        .map(|image| {
            let sizes = [image.blobs, image.shared, image.unpacked].map(output::size);
            let [blobs, shared, unpacked] = sizes;
            [image.name, blobs, shared, unpacked]
        })
        .collect();
    output::table(["REF", "BLOBS", "SHARED", "UNPACKED"], &rows)?;
    output::line("")?;
    let rows =
        totals.map(|(kind, total)| [kind.to_owned(), total.count.to_string(), output::size(total.bytes)]);
    Ok(output::table(["TYPE", "COUNT", "SIZE"], &rows)?)
}

pub(crate) async fn leases(
    windlass: &Windlass,
    json: bool,
    command: Option<LeasesCommand>,
) -> anyhow::Result<()> {
    if let Some(LeasesCommand::Rm { ids }) = command {
        for id in ids {
            match windlass.images().remove_lease(&id).await? {
                Removal::Removed => output::line(id)?,
                Removal::Missing => bail!("no lease {id} here"),
                Removal::Held => bail!("lease {id} belongs to a process that is running"),
            }
        }
        return Ok(());
    }
    let leases = windlass.images().leases().await?;
    if json {
        return leases.iter().try_for_each(|lease| Ok(output::line(serde_json::to_string(lease)?)?));
    }
    let rows: Vec<_> = leases
        .into_iter()
        .map(|lease| {
            let state = match (lease.held, lease.is_alive()) {
                (true, _) => "held",
                (false, true) => "kept",
                (false, false) => "dead",
            };
            let labels: Vec<_> = lease.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            [
                lease.id,
                state.to_owned(),
                output::age(lease.created),
                lease.resources.len().to_string(),
                labels.join(","),
            ]
        })
        .collect();
    Ok(output::table(["ID", "STATE", "AGE", "HOLDS", "LABELS"], &rows)?)
}
