//! The whole command line over windlass: pull and run images, and look into the store.
//!
//! Data goes to stdout, everything else to stderr, so that commands can be piped into each other.

mod cli;
mod content;
mod display;
mod fetch;
mod images;
mod output;
mod rootfs;
mod run;
#[path = "../support/runtime.rs"]
mod runtime;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // The embedded runtime is this program again, before any thread exists.
    if let Some(code) = runtime::embedded_child() {
        return code;
    }
    let cli = Cli::parse();
    if cli.debug {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .init();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    let result = runtime.block_on(with_time_limit(cli));
    // Work that was cancelled may still hold a thread; nobody waits for it.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints an error and its causes in one line.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("dist: {error:#}");
    ExitCode::FAILURE
}

async fn with_time_limit(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.timeout {
        None => command(cli).await,
        Some(limit) => tokio::time::timeout(limit, command(cli)).await.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("gave up after {} (--timeout)", humantime::format_duration(limit)))
        }),
    }
}

async fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    let windlass = cli.open().await?;
    match cli.command {
        Command::Pull(arguments) => fetch::pull(&windlass, arguments).await?,
        Command::Fetch(arguments) => fetch::fetch(&windlass, arguments).await?,
        Command::FetchObject { reference } => fetch::object(&windlass, &reference).await?,
        Command::Images { json } => images::list(&windlass, json)?,
        Command::Run(arguments) => return run::run(&windlass, arguments).await,
        Command::Ingest(arguments) => content::ingest(&windlass, arguments).await?,
        Command::Active { quiet } => content::active(&windlass, quiet).await?,
        Command::List { quiet } => content::list(&windlass, quiet).await?,
        Command::Path { no_check, digests } => content::path(&windlass, !no_check, &digests).await?,
        Command::Get { digest } => content::get(&windlass, &digest).await?,
        Command::Delete { digests } => content::delete(&windlass, &digests).await?,
        Command::Apply { dir } => rootfs::apply(&dir).await?,
        Command::Rootfs(command) => rootfs::command(&windlass, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}
