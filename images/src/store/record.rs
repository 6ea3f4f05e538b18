use std::{collections::BTreeMap, time::SystemTime};

use oci_spec::image::Descriptor;
use rusqlite::{Row, types::Type};
use serde::de::DeserializeOwned;

use super::time;

/// An image in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The name, as the resolver gave it.
    pub name: String,
    /// What it stands for: a manifest or an index.
    pub target: Descriptor,
    /// What was noted on it here. Not the labels of its config.
    pub labels: BTreeMap<String, String>,
    /// When the name was first recorded.
    pub created: SystemTime,
    /// When it, or its labels, were last recorded.
    pub updated: SystemTime,
    /// When it was last [touched](super::Store::touch).
    pub used: Option<SystemTime>,
}

impl Record {
    /// The name of an image and what it stands for, just recorded and without labels.
    pub fn new(name: impl Into<String>, target: Descriptor) -> Self {
        let now = SystemTime::now();
        Self { name: name.into(), target, labels: BTreeMap::new(), created: now, updated: now, used: None }
    }

    /// When it was last recorded or used.
    pub fn last_used(&self) -> SystemTime {
        self.used.unwrap_or(self.updated).max(self.updated)
    }
}

/// What [`record`] reads, of images that are called `i`.
pub(super) const COLUMNS: &str = "i.name, i.target, i.created, i.updated, i.used,
    (SELECT json_group_object(key, value) FROM labels WHERE image = i.name)";

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        name: row.get(0)?,
        target: json(row, 1)?,
        created: time(row.get(2)?),
        updated: time(row.get(3)?),
        used: row.get::<_, Option<i64>>(4)?.map(time),
        labels: json(row, 5)?,
    })
}

/// A column that holds JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into()))
}
