//! `images`: what has been pulled.

use serde_json::json;
use windlass::{Windlass, images::Filter};

use crate::output;

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
