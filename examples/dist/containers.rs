//! `containers`, `commit` and `diff`: what containers leave, and images out of it.

use std::{io, path::Path};

use anyhow::Context;
use libcontainer::container::Container;
use serde_json::json;
use tokio::process::Command;
use windlass::{CommitOptions, ContainerState, Windlass, rootfs::diff};

use crate::{
    cli::{CommitArgs, ContainersCommand},
    output,
    runtime::Runtime,
    values::{Compressed, source_date},
};

pub(crate) async fn containers(
    windlass: &Windlass,
    json: bool,
    command: Option<ContainersCommand>,
) -> anyhow::Result<()> {
    if let Some(ContainersCommand::Rm { ids }) = command {
        return remove(windlass, &ids).await;
    }
    let state = |state| match state {
        ContainerState::InUse => "in use",
        ContainerState::Abandoned => "abandoned",
        _ => "kept",
    };
    let containers = windlass.containers().await?;
    if json {
        return containers.iter().try_for_each(|it| {
            let created = it.created.map(|time| humantime::format_rfc3339(time).to_string());
            let shown =
                json!({ "id": it.id, "image": it.image, "created": created, "state": state(it.state) });
            Ok(output::line(shown)?)
        });
    }
    let rows: Vec<_> = containers
        .into_iter()
        .map(|it| {
            let age = it.created.map(output::age).unwrap_or_default();
            [it.id, it.image.unwrap_or_default(), state(it.state).to_owned(), age]
        })
        .collect();
    Ok(output::table(["ID", "IMAGE", "STATE", "AGE"], &rows)?)
}

async fn remove(windlass: &Windlass, ids: &[String]) -> anyhow::Result<()> {
    for id in ids {
        let containers = windlass.containers().await?;
        let is_abandoned = |it: &windlass::Container| it.id == *id && it.state == ContainerState::Abandoned;
        if containers.iter().any(is_abandoned) {
            end(id, &windlass.root().join("runtime")).await?;
        }
        windlass.discard_container(id).await?;
        output::line(id)?;
    }
    Ok(())
}

/// Ends a container that its `dist` has left running, by the runtime's own notes.
async fn end(id: &str, state: &Path) -> anyhow::Result<()> {
    let notes = state.join(id);
    if let (true, Runtime::Program(program)) = (notes.exists(), Runtime::find(None)?) {
        let mut delete = Command::new(&program);
        delete.arg("--root").arg(state).args(["delete", "--force", id]);
        delete.output().await.with_context(|| format!("cannot start {}", program.display()))?;
    }
    if notes.exists() {
        // They are not that runtime's: then the embedded one's.
        let ended = Container::load(notes).and_then(|mut container| container.delete(true));
        ended.with_context(|| format!("cannot end container {id}; end it with the runtime that runs it"))?;
    }
    Ok(())
}

pub(crate) async fn commit(windlass: &Windlass, arguments: CommitArgs) -> anyhow::Result<()> {
    let CommitArgs { key, name, author, message, base, compression } = arguments;
    let mut options = CommitOptions::default().compression(compression.into());
    options.author = author;
    options.comment = message;
    options.created = source_date()?;
    options.base = match base {
        Some(base) => Some(windlass.find(&base).await?.name),
        None => None,
    };
    let made = windlass.commit(&key, &name, options).await?;
    for socket in &made.skipped {
        eprintln!("left out {}: it is a socket", socket.display());
    }
    eprintln!("{}: {} changes, a layer of {}", made.name, made.entries, output::size(made.layer.size()));
    Ok(output::line(made.target.digest())?)
}

pub(crate) async fn diff(windlass: &Windlass, key: &str, compression: Compressed) -> anyhow::Result<()> {
    let mut options = diff::Options::default().compression(compression.into());
    options.latest = source_date()?;
    let diffed = windlass.diff(key, io::stdout(), options).await?;
    for socket in &diffed.skipped {
        eprintln!("left out {}: it is a socket", socket.display());
    }
    eprintln!("{} changes, DiffID {}", diffed.entries, diffed.diff_id);
    Ok(())
}
