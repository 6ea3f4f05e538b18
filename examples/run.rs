//! From a name to a running container: `cargo run --release --example run [-- OPTIONS] [REF [COMMAND…]]`.
//!
//! Without a name it needs nothing: a registry in this process serves an image that is built on the spot, out of this very program.

#[path = "support/runtime.rs"]
mod runtime;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Parser;
use runtime::Runtime;
use windlass::{Platforms, Reference, Windlass, rootfs::spec};
use windlass_testkit::{Registry, demo_image};

/// Pull an image and run it.
#[derive(Debug, Parser)]
struct Cli {
    /// Where images are kept [default: a temporary folder].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The OCI runtime: a program, or `embedded` [default: the first of runc, crun, youki that is installed, else embedded].
    #[arg(long, value_name = "PATH")]
    runtime: Option<PathBuf>,
    /// Share the host's network.
    #[arg(long)]
    host_network: bool,
    /// The image [default: a tiny one, from a registry in this process].
    reference: Option<Reference>,
    /// What to run instead of the image's command.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    // This program is also what runs in the demo's container, and the embedded runtime: before any thread exists.
    if std::env::var_os("WINDLASS_DEMO").is_some() {
        return greet();
    }
    if let Some(code) = runtime::embedded_child() {
        return code;
    }
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    runtime.block_on(run(cli)).unwrap_or_else(|error| {
        eprintln!("run: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("mounting a root file system and starting a container need root; run it again with sudo");
    }
    let runtime = Runtime::find(cli.runtime.as_deref())?;

    // Which image? Without a name: one of our own, from a registry of our own.
    let registry = Registry::start().await;
    let reference = match cli.reference {
        Some(reference) => reference,
        None => {
            let image = demo_image(&std::env::current_exe().context("this program has no path")?);
            registry.push(&image, "demo/hello", "latest");
            eprintln!("serving {}/demo/hello:latest", registry.host());
            format!("{}/demo/hello:latest", registry.host()).parse()?
        }
    };

    // Where? Everything lives below one folder.
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let windlass = Windlass::open(cli.root.as_deref().unwrap_or(temporary.path()))?;

    // Fetch all layers, and unpack them while they arrive.
    let started = std::time::Instant::now();
    let pulled = windlass.pull(&reference).await?;
    eprintln!("pulled {} ({}) in {:.1?}", pulled.name, pulled.target.digest(), started.elapsed());

    // A writable root file system on top of the image's, with the spec that its config asks for.
    let id = format!("run-{}", std::process::id());
    let options = spec::Options::default().args(cli.command).host_network(cli.host_network);
    let bundle = windlass.bundle(&pulled.name, &Platforms::Host, &id, options).await?;

    // Run it, and leave nothing behind.
    eprintln!("running it with {runtime:?}");
    let code = runtime.run(&bundle, &id, &windlass.root().join("runtime")).await;
    windlass.remove_container(&id, bundle, true).await?;
    Ok(ExitCode::from(code?))
}

/// What the demo's container says of where it is.
fn greet() -> ExitCode {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let names = |path| -> Vec<String> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    println!("Hello from a container!");
    println!("  process  {} (as user {})", std::process::id(), rustix::process::getuid().as_raw());
    println!("  host     {hostname}");
    println!("  root     {}", names("/").join(" "));
    ExitCode::SUCCESS
}
