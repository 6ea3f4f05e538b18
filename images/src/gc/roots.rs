//! What a collection reads of the database.

use oci_spec::image::Descriptor;
use rusqlite::{Connection, params};

use crate::{
    LeaseInfo, Resource, Result, Store,
    gate::{self, blocking},
    lease,
    store::{generation, json},
};

/// How far the database was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    generation: i64,
    seq: i64,
}

/// What was recorded and held since.
#[derive(Debug)]
pub(super) struct News {
    pub(super) targets: Vec<Descriptor>,
    pub(super) resources: Vec<Resource>,
}

/// The leases at the start of a collection.
#[derive(Debug)]
pub(super) struct Leases {
    pub(super) alive: Vec<LeaseInfo>,
    pub(super) dead: Vec<LeaseInfo>,
}

/// Begins a collection: from here on, what is held is remembered. Gives the leases that are alive and those
/// that were dead, which are removed.
///
/// A dry run changes nothing, and forgets nothing that another collection wants remembered.
pub(super) async fn begin(store: &Store, dry_run: bool) -> Result<(Cursor, Leases)> {
    let this = store.clone();
    gate::inside(store.folder(), move || {
        let cursor = |it: &Connection| {
            let last = "SELECT coalesce(max(seq), 0) FROM resources";
            Ok(Cursor { generation: generation(it)?, seq: it.query_row(last, [], |row| row.get(0))? })
        };
        let cursor = match dry_run {
            true => this.run("begin to collect", cursor),
            false => this.relaxed("begin to collect", |it| {
                it.execute("DELETE FROM resources WHERE lease IS NULL", [])?;
                it.execute("UPDATE counters SET value = 1 WHERE name = 'collecting'", [])?;
                cursor(it)
            }),
        }?;
        let (alive, dead) = lease::all(&this)?.into_iter().partition(LeaseInfo::is_alive);
        let leases = Leases { alive, dead };
        if !dry_run {
            lease::remove_dead(&this, &leases.dead, &leases.alive)?;
        }
        Ok((cursor, leases))
    })
    .await
}

/// Ends a collection. If this never comes, ended leases are remembered until the next one begins.
pub(super) async fn end(store: &Store) -> Result<()> {
    let store = store.clone();
    blocking(move || {
        store.relaxed("end collecting", |it| {
            it.execute("UPDATE counters SET value = 0 WHERE name = 'collecting'", [])?;
            it.execute("DELETE FROM resources WHERE lease IS NULL", [])
        })
    })
    .await
    .map(drop)
}

/// What was recorded and held since `cursor`, which moves on.
pub(super) async fn news(store: &Store, cursor: &mut Cursor) -> Result<News> {
    let (store, Cursor { generation: seen, seq }) = (store.clone(), *cursor);
    let (moved, news) = blocking(move || {
        store.run("read what is new", |it| {
            // One snapshot of both.
            let it = it.unchecked_transaction()?;
            let generation = generation(&it)?;
            let targets = match generation == seen {
                true => Vec::new(),
                false => changed(&it, seen)?,
            };
            let (seq, resources) = lease::resources_since(&it, seq)?;
            Ok((Cursor { generation, seq }, News { targets, resources }))
        })
    })
    .await?;
    *cursor = moved;
    Ok(news)
}

/// What images came since `began`, and what leases other than `lease` hold.
pub(super) async fn others(store: &Store, began: i64, lease: &str) -> Result<News> {
    let (store, lease) = (store.clone(), lease.to_owned());
    blocking(move || {
        store.run("read who else needs it", |it| {
            let it = it.unchecked_transaction()?;
            let targets = changed(&it, began)?;
            Ok(News { targets, resources: lease::resources_of_others(&it, &lease)? })
        })
    })
    .await
}

/// The targets of the images that changed since a generation.
fn changed(connection: &Connection, since: i64) -> rusqlite::Result<Vec<Descriptor>> {
    let statement = "SELECT target FROM images INDEXED BY images_by_change WHERE changed > ?1";
    connection.prepare_cached(statement)?.query_map([since], |row| json(row, 0))?.collect()
}

/// A page of names and targets, in the order of the names, behind `after`.
pub(super) async fn targets(store: &Store, after: Option<String>) -> Result<Vec<(String, Descriptor)>> {
    let store = store.clone();
    blocking(move || {
        store.run("list targets", |it| {
            it.prepare_cached(
                "SELECT name, target FROM images WHERE name > ?1 OR ?2 ORDER BY name LIMIT 1000",
            )?
            .query_map(params![after, after.is_none()], |row| Ok((row.get(0)?, json(row, 1)?)))?
            .collect()
        })
    })
    .await
}
