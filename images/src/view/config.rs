use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, Digest};
use serde::Deserialize;

use crate::Result;

/// The config of an image: what it runs on, what it runs, and its layers' DiffIDs (image-spec, config.md).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// The CPU, as Go names it: `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// The operating system: `linux`.
    #[serde(default)]
    pub os: String,
    /// The CPU's variant: `v8`.
    #[serde(default)]
    pub variant: Option<String>,
    /// What a container of it runs.
    #[serde(default, deserialize_with = "super::or_default")]
    pub config: ContainerConfig,
    /// The layers, as digests of their uncompressed bytes.
    rootfs: RootFs,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "super::or_default")]
    diff_ids: Vec<Digest>,
}

/// What a container of an image runs by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[non_exhaustive]
pub struct ContainerConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(deserialize_with = "super::or_default")]
    pub user: String,
    /// `NAME=value`, in order.
    #[serde(deserialize_with = "super::or_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "super::or_default")]
    pub entrypoint: Vec<String>,
    /// Further arguments, or the program if there is no entrypoint.
    #[serde(deserialize_with = "super::or_default")]
    pub cmd: Vec<String>,
    /// Where it starts; empty for `/`.
    #[serde(deserialize_with = "super::or_default")]
    pub working_dir: String,
    /// What its author wrote on it.
    #[serde(deserialize_with = "super::or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends it well: `SIGTERM` if there is none.
    pub stop_signal: Option<String>,
}

impl Config {
    /// Reads the bytes of a config.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed).
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        super::parse("image config", descriptor, bytes)
    }

    /// The layers, lowest first, as digests of their uncompressed bytes.
    pub fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}
