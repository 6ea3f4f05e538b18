//! The whole command line over windlass: pull and run images, and look into the store.
//!
//! Data goes to stdout, everything else to stderr, so that commands can be piped into each other.

mod cli;
mod containers;
mod content;
mod display;
mod fetch;
mod images;
mod login;
mod output;
mod push;
mod rootfs;
mod run;
#[path = "../support/runtime.rs"]
mod runtime;
mod settings;
mod upkeep;
mod values;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;

use crate::{
    cli::{Cli, Command, LocalCommand, RemoteCommand},
    settings::Settings,
};

fn main() -> ExitCode {
    // The embedded runtime is this program again, before any thread exists.
    if let Some(code) = runtime::embedded_child() {
        return code;
    }
    let cli = Cli::parse();
    if cli.settings.debug {
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
    match cli.settings.timeout {
        None => command(cli).await,
        Some(limit) => tokio::time::timeout(limit, command(cli)).await.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("gave up after {} (--timeout)", humantime::format_duration(limit)))
        }),
    }
}

async fn command(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Local(command) => local(&cli.settings, command).await,
        Command::Remote(command) => remote(&cli.settings, command).await,
    }
}

async fn local(settings: &Settings, command: LocalCommand) -> anyhow::Result<ExitCode> {
    let windlass = settings.open().await?;
    match command {
        LocalCommand::Pull(arguments) => fetch::pull(&windlass, arguments).await?,
        LocalCommand::Fetch(arguments) => fetch::fetch(&windlass, arguments).await?,
        LocalCommand::FetchObject { reference } => fetch::object(&windlass, &reference).await?,
        LocalCommand::Push(arguments) => push::push(&windlass, settings.registry()?, arguments).await?,
        LocalCommand::Images { json, command: None } => images::list(&windlass, json).await?,
        LocalCommand::Images { command: Some(command), .. } => images::command(&windlass, command).await?,
        LocalCommand::Verify { quarantine } => upkeep::verify(&windlass, quarantine).await?,
        LocalCommand::Gc(arguments) => upkeep::gc(&windlass, arguments).await?,
        LocalCommand::Du { json } => upkeep::du(&windlass, json).await?,
        LocalCommand::Leases { json, command } => upkeep::leases(&windlass, json, command).await?,
        LocalCommand::Run(arguments) => return run::run(&windlass, arguments).await,
        LocalCommand::Containers { json, command } => {
            containers::containers(&windlass, json, command).await?;
        }
        LocalCommand::Commit(arguments) => containers::commit(&windlass, arguments).await?,
        LocalCommand::Diff { key, compression } => containers::diff(&windlass, &key, compression).await?,
        LocalCommand::Ingest(arguments) => content::ingest(&windlass, arguments).await?,
        LocalCommand::Active { quiet } => content::active(&windlass, quiet).await?,
        LocalCommand::List { quiet } => content::list(&windlass, quiet).await?,
        LocalCommand::Path { no_check, digests } => content::path(&windlass, !no_check, &digests).await?,
        LocalCommand::Get { digest } => content::get(&windlass, &digest).await?,
        LocalCommand::Delete { digests } => content::delete(&windlass, &digests).await?,
        LocalCommand::Apply { dir } => rootfs::apply(&dir).await?,
        LocalCommand::Rootfs(command) => rootfs::command(&windlass, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn remote(settings: &Settings, command: RemoteCommand) -> anyhow::Result<ExitCode> {
    match command {
        RemoteCommand::Copy(arguments) => push::copy(settings.registry()?, arguments).await?,
        RemoteCommand::Tags { repository } => push::tags(settings.registry()?, &repository).await?,
        RemoteCommand::Login(arguments) => login::login(settings, arguments).await?,
        RemoteCommand::Logout { host } => login::logout(settings, &host).await?,
    }
    Ok(ExitCode::SUCCESS)
}
