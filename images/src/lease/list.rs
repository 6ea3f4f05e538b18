//! Looking at leases from outside.

use std::{
    collections::{BTreeMap, HashSet},
    time::SystemTime,
};

use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use serde::Serialize;

use super::{Resource, file, handle::delete};
use crate::{
    Result, Store, gate,
    store::{json, time},
};

/// A lease, as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// Its name.
    pub id: String,
    /// When it was made.
    pub created: SystemTime,
    /// Until when it protects, whatever becomes of its process. `None` if it does not outlive that.
    pub expires: Option<SystemTime>,
    /// What was noted on it.
    pub labels: BTreeMap<String, String>,
    /// What it holds, in the order in which it came.
    pub resources: Vec<Resource>,
    /// Whether a living process has it.
    pub held: bool,
}

impl LeaseInfo {
    /// Whether it protects what it holds. If not, the next garbage collection removes it.
    pub fn is_alive(&self) -> bool {
        self.held || self.expires.is_some_and(|expires| expires > SystemTime::now())
    }
}

/// The answer to [`Store::remove_lease`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// There was none of this name.
    Missing,
    /// A living process has it; it stays.
    Held,
}

impl Store {
    /// All leases, by name, also those that are dead and were not collected yet.
    ///
    /// # Errors
    ///
    /// [`Error::Database`](crate::Error::Database), [`Error::Io`](crate::Error::Io).
    pub async fn leases(&self) -> Result<Vec<LeaseInfo>> {
        let store = self.clone();
        gate::inside(self.folder(), move || all(&store)).await
    }

    /// The lease of a name; `None` if there is none.
    ///
    /// # Errors
    ///
    /// As [`leases`](Self::leases).
    pub async fn find_lease(&self, id: &str) -> Result<Option<LeaseInfo>> {
        let (store, id) = (self.clone(), id.to_owned());
        gate::inside(self.folder(), move || {
            let held = file::is_id(&id) && file::is_held(store.folder(), &id)?;
            let statement = format!("SELECT {COLUMNS} FROM leases WHERE id = ?1");
            store.run("look up a lease", |it| {
                let info = it.query_row(&statement, [&id], |row| info(row, |_| held)).optional()?;
                info.map(|info| with_resources(it, info)).transpose()
            })
        })
        .await
    }

    /// Removes a lease that no process has: what it held is no longer protected.
    ///
    /// # Errors
    ///
    /// As [`leases`](Self::leases).
    pub async fn remove_lease(&self, id: &str) -> Result<Removal> {
        let (store, id) = (self.clone(), id.to_owned());
        gate::inside(self.folder(), move || {
            if !file::is_id(&id) {
                return Ok(Removal::Missing);
            }
            if file::is_held(store.folder(), &id)? {
                return Ok(Removal::Held);
            }
            let there = store.write("remove a lease", |it| delete(it, &id))?;
            file::remove(store.folder(), &id)?;
            Ok(if there { Removal::Removed } else { Removal::Missing })
        })
        .await
    }
}

const COLUMNS: &str = "id, created, expires, labels";

/// All leases. Only to be called inside the gate.
///
/// A lease that is found dead was so before its rows are read: what its owner did before (record an image, say) is
/// visible to whoever reads on.
pub(crate) fn all(store: &Store) -> Result<Vec<LeaseInfo>> {
    let ids: Vec<String> = store.run("list leases", |it| {
        it.prepare_cached("SELECT id FROM leases")?.query_map([], |row| row.get(0))?.collect()
    })?;
    let mut held = HashSet::new();
    for id in ids {
        if file::is_held(store.folder(), &id)? {
            held.insert(id);
        }
    }
    store.run("list leases", |it| {
        // One snapshot of leases and resources.
        let it = it.unchecked_transaction()?;
        let infos: Vec<LeaseInfo> = it
            .prepare_cached(&format!("SELECT {COLUMNS} FROM leases ORDER BY id"))?
            .query_map([], |row| info(row, |id| held.contains(id)))?
            .collect::<rusqlite::Result<_>>()?;
        infos.into_iter().map(|info| with_resources(&it, info)).collect()
    })
}

/// Removes these leases, which are dead, and the files of leases that are neither these nor `alive`: a crash leaves them.
///
/// Only to be called inside the gate, before the caller leaves it for the first time since it called [`all`].
pub(crate) fn remove_dead(store: &Store, dead: &[LeaseInfo], alive: &[LeaseInfo]) -> Result<()> {
    if !dead.is_empty() {
        let remove = |it: &Transaction<'_>| dead.iter().try_for_each(|dead| delete(it, &dead.id).map(drop));
        store.relaxed("remove dead leases", remove)?;
    }
    let alive: HashSet<_> = alive.iter().map(|it| it.id.as_str()).collect();
    for id in file::ids(store.folder())? {
        if !alive.contains(id.as_str()) && !file::is_held(store.folder(), &id)? {
            file::remove(store.folder(), &id)?;
        }
    }
    Ok(())
}

/// What was held after the resource of number `seq`, and the number of the last one.
pub(crate) fn resources_since(connection: &Connection, seq: i64) -> rusqlite::Result<(i64, Vec<Resource>)> {
    let statement = "SELECT kind, driver, name, seq FROM resources WHERE seq > ?1 ORDER BY seq";
    let mut statement = connection.prepare_cached(statement)?;
    let mut rows = statement.query([seq])?;
    let (mut last, mut resources) = (seq, Vec::new());
    while let Some(row) = rows.next()? {
        last = row.get(3)?;
        resources.extend(resource(row)?);
    }
    Ok((last, resources))
}

/// What leases other than this one hold, or have held while garbage is collected.
pub(crate) fn resources_of_others(connection: &Connection, id: &str) -> rusqlite::Result<Vec<Resource>> {
    let statement = "SELECT kind, driver, name FROM resources WHERE lease IS NOT ?1";
    let resources = connection
        .prepare_cached(statement)?
        .query_map([id], resource)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(resources.into_iter().flatten().collect())
}

fn info(row: &Row<'_>, held: impl Fn(&str) -> bool) -> rusqlite::Result<LeaseInfo> {
    let id: String = row.get(0)?;
    Ok(LeaseInfo {
        held: held(&id),
        id,
        created: time(row.get(1)?),
        expires: row.get::<_, Option<i64>>(2)?.map(time),
        labels: json(row, 3)?,
        resources: Vec::new(),
    })
}

fn with_resources(connection: &Connection, info: LeaseInfo) -> rusqlite::Result<LeaseInfo> {
    let statement = "SELECT kind, driver, name FROM resources WHERE lease = ?1 ORDER BY seq";
    let mut statement = connection.prepare_cached(statement)?;
    let resources = statement.query_map([&info.id], resource)?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(LeaseInfo { resources: resources.into_iter().flatten().collect(), ..info })
}

fn resource(row: &Row<'_>) -> rusqlite::Result<Option<Resource>> {
    let kind: String = row.get(0)?;
    Ok(Resource::of_columns(&kind, row.get(1)?, row.get(2)?))
}
