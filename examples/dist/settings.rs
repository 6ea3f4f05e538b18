//! What all commands have in common: the folder, and the way to the registries.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use windlass::{
    Driver, Windlass,
    remotes::{ParallelFetch, Registry, credentials::AuthFiles, hosts::HostsDir},
};

/// What all commands have in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Settings {
    /// Where everything is kept [default: /var/lib/windlass for root, else $XDG_DATA_HOME/windlass].
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Say on stderr what is being done.
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    /// Give up after this long, such as `90s` or `5m` [default: never].
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,

    /// Give up on a connection that is not there after this long.
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    connect_timeout: Duration,

    /// Mirrors and certificates of registries, in containerd's format.
    #[arg(long, global = true, value_name = "DIR", default_value = "/etc/containerd/certs.d")]
    hosts_dir: PathBuf,

    /// Speak plain HTTP with this registry too, written `name` or `name:port`.
    #[arg(long, global = true, value_name = "HOST")]
    plain_http: Vec<String>,

    /// Logins, in Docker's or podman's format [default: where docker and podman look].
    #[arg(long, global = true, value_name = "FILE")]
    authfile: Option<PathBuf>,

    /// Fetch large blobs over so many connections at once.
    #[arg(long, global = true, value_name = "N", default_value = "1")]
    connections: NonZeroUsize,

    /// How unpacked layers are kept.
    #[arg(long, global = true, value_enum, default_value_t = Snapshotter::Auto)]
    snapshotter: Snapshotter,

    /// Wait for the disk before anything is listed, or let a power cut damage what was pulled last.
    #[arg(long, global = true, value_enum, default_value_t = Durability::Safe)]
    durability: Durability,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Snapshotter {
    /// As what is here already is kept; else the best way that works.
    Auto,
    /// As an EROFS image for each layer.
    #[cfg(feature = "erofs")]
    Erofs,
    /// As overlayfs layers.
    #[cfg(feature = "overlay")]
    Overlay,
    /// As snapshots of btrfs.
    #[cfg(feature = "btrfs")]
    Btrfs,
    /// As whole copies.
    Native,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Durability {
    /// What is listed survives a power cut.
    Safe,
    /// It does not; pulls are faster.
    Fast,
}

impl Settings {
    /// Opens the folder that `--root` names.
    pub(crate) async fn open(&self) -> anyhow::Result<Windlass> {
        let root = match &self.root {
            Some(root) => root.clone(),
            None => default_root()?,
        };
        let registry = self.registry()?;
        let driver = match self.snapshotter {
            Snapshotter::Auto => Driver::Auto,
            #[cfg(feature = "erofs")]
            Snapshotter::Erofs => Driver::Erofs,
            #[cfg(feature = "overlay")]
            Snapshotter::Overlay => Driver::Overlay,
            #[cfg(feature = "btrfs")]
            Snapshotter::Btrfs => Driver::Btrfs,
            Snapshotter::Native => Driver::Native,
        };
        let durability = match self.durability {
            Durability::Safe => windlass::snapshot::Durability::Safe,
            Durability::Fast => windlass::snapshot::Durability::Fast,
        };
        let builder = Windlass::builder().resolver(registry).driver(driver).durability(durability);
        let open = move || anyhow::Ok(builder.open(root)?);
        tokio::task::spawn_blocking(open).await?
    }

    /// The way to the registries.
    pub(crate) fn registry(&self) -> anyhow::Result<Registry> {
        Ok(self.registry_settings().credentials_from(self.logins()).build()?)
    }

    /// The same, but for who we are there.
    pub(crate) fn registry_settings(&self) -> windlass::remotes::Builder {
        let mut settings =
            Registry::builder().connect_timeout(self.connect_timeout).hosts(HostsDir::new(&self.hosts_dir));
        for host in &self.plain_http {
            settings = settings.plain_http(host);
        }
        match self.connections.get() {
            1 => settings,
            _ => settings
                .parallel_fetch(ParallelFetch { connections: self.connections, ..ParallelFetch::default() }),
        }
    }

    /// What `login` remembers, here and in docker and podman.
    pub(crate) fn logins(&self) -> AuthFiles {
        self.authfile.as_ref().map_or_else(AuthFiles::from_env, AuthFiles::new)
    }
}

/// `/var/lib/windlass` for root, else a folder of the user's own.
fn default_root() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/windlass".into());
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("XDG_DATA_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("windlass"))
        .ok_or_else(|| anyhow::anyhow!("neither $XDG_DATA_HOME nor $HOME is set; say where with --root DIR"))
}
