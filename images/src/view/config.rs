use std::collections::BTreeMap;

use oci_spec::image::{Descriptor, Digest};
use serde::{Deserialize, Deserializer, de::IgnoredAny};

use super::document::malformed;
use crate::Result;

/// The config of an image: where it runs, what it is made of, and how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The processor, by its Go name: `amd64`. Empty if the config does not say.
    pub architecture: String,
    /// The operating system, by its Go name: `linux`. Empty if the config does not say.
    pub os: String,
    /// The kind of processor: `v8`.
    pub variant: Option<String>,
    /// The digests of the uncompressed layers, the lowest first.
    pub diff_ids: Vec<Digest>,
    /// How to run it.
    pub config: ContainerConfig,
}

/// What a container of the image starts with. An empty text in the config counts as not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `user`, `uid`, `user:group`, `uid:gid`.
    #[serde(deserialize_with = "non_empty")]
    pub user: Option<String>,
    /// `NAME=value`, in their order.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// More arguments, which a caller may replace; the whole command if there is no entry point.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// The folder to start in.
    #[serde(deserialize_with = "non_empty")]
    pub working_dir: Option<String>,
    /// What the author says about the image.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that ends it: `SIGTERM`, or a number.
    #[serde(deserialize_with = "non_empty")]
    pub stop_signal: Option<String>,
    /// `port`, `port/tcp`, `port/udp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Folders whose content outlives the container.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
}

impl Config {
    /// Reads a config from the bytes that the descriptor names.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::Error::Malformed) if it is none, or a DiffID is not a digest.
    pub fn parse(descriptor: &Descriptor, bytes: &[u8]) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| malformed("config", descriptor, error))?;
        Ok(Self {
            architecture: raw.architecture,
            os: raw.os,
            variant: raw.variant,
            diff_ids: raw.rootfs.diff_ids,
            config: raw.config,
        })
    }
}

/// A config as it is written.
#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "non_empty")]
    variant: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RawRootfs,
    #[serde(default, deserialize_with = "or_default")]
    config: ContainerConfig,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

/// `null` is the same as nothing.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn non_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|text: &String| !text.is_empty()))
}

/// A set is written as an object with empty values.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let set: Option<BTreeMap<String, IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(set.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{HEX, descriptor};

    fn parse(json: &str) -> Result<Config> {
        Config::parse(&descriptor(MediaType::ImageConfig), json.as_bytes())
    }

    #[test]
    fn what_docker_writes_is_read() {
        let json = format!(
            r#"{{"architecture":"arm64","os":"linux","variant":"v8","Healthcheck":{{}},
            "config":{{"User":"","Env":["A=1"],"Entrypoint":null,"Cmd":["sh"],"WorkingDir":"/w","Labels":null,
            "StopSignal":"SIGINT","ExposedPorts":{{"80/tcp":{{}}}},"Volumes":null,"OnBuild":null,"Shell":["x"]}},
            "rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}}}}"#
        );

        let config = parse(&json).expect("it is well-formed");

        assert_eq!((&*config.architecture, &*config.os, config.variant.as_deref()), ("arm64", "linux", Some("v8")));
        assert_eq!(config.diff_ids.len(), 1);
        assert_eq!(config.config.user, None);
        assert_eq!((config.config.env, config.config.cmd), (vec!["A=1".to_owned()], vec!["sh".to_owned()]));
        assert_eq!(config.config.entrypoint, [""; 0]);
        assert_eq!(config.config.working_dir.as_deref(), Some("/w"));
        assert_eq!(config.config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.config.stop_signal.as_deref(), Some("SIGINT"));
    }

    #[test]
    fn a_config_may_say_nothing() {
        for json in ["{}", r#"{"config":null,"rootfs":null}"#, r#"{"rootfs":{"diff_ids":null}}"#] {
            assert_eq!(parse(json).expect(json), Config::default(), "{json}");
        }
    }

    #[test]
    fn a_bad_diff_id_is_refused() {
        let err = parse(r#"{"rootfs":{"diff_ids":["sha256:0"]}}"#).expect_err("it is too short");
        assert!(err.to_string().contains("digest length"), "{err}");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Config::parse(&descriptor(MediaType::ImageConfig), &bytes);
        }
    }
}
