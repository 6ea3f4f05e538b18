//! The manifest and config of an image with one more layer.

use std::time::SystemTime;

use oci_spec::image::{Descriptor, Digest, MediaType};
use serde::Serialize;
use windlass_images::media_type::{DOCKER_CONFIG, DOCKER_MANIFEST};
use windlass_rootfs::compression::Compression;

use super::document::{List, Object};

/// What layers are called in Docker's format, before their compression.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";

/// What a further layer changes in a config.
pub(super) struct Change<'a> {
    pub(super) diff_id: &'a Digest,
    /// How many layers there were.
    pub(super) layers: usize,
    pub(super) created: SystemTime,
    pub(super) author: Option<&'a str>,
    pub(super) comment: Option<&'a str>,
}

/// One step of an image's history (image-spec, config.md).
#[derive(Default, Serialize)]
struct Step<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    author: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
}

/// A config with one more layer, all else as it was.
pub(super) fn config(old: &[u8], change: &Change<'_>) -> serde_json::Result<Vec<u8>> {
    let Change { diff_id, layers, created, author, comment } = *change;
    let mut config = Object::parse(old)?;
    let created = humantime::format_rfc3339_seconds(created).to_string();
    config.set("created", &created)?;
    if let Some(author) = author {
        config.set("author", &author)?;
    }
    let mut rootfs = config.object("rootfs")?;
    let mut diff_ids = rootfs.list("diff_ids")?;
    diff_ids.push(serde_json::value::to_raw_value(diff_id)?);
    rootfs.set("diff_ids", &diff_ids)?;
    config.set("rootfs", &rootfs)?;

    let mut history = config.list("history")?;
    let mut told = 0;
    for step in &history {
        told += usize::from(!Object::parse(step.get().as_bytes())?.is_true("empty_layer"));
    }
    // Whoever reads it counts: each layer has one step. Some images have fewer, or none.
    for _ in told..layers {
        history.push(serde_json::value::to_raw_value(&Step::default())?);
    }
    let step = Step { created: Some(&created), created_by: Some("windlass commit"), author, comment };
    history.push(serde_json::value::to_raw_value(&step)?);
    config.set("history", &history)?;
    serde_json::to_vec(&config)
}

/// Whose names the parts of an image have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Docker,
    Oci,
}

impl Kind {
    /// That of the base image, unless it has no name for such a layer.
    pub(super) fn of(base: &Descriptor, compression: Compression) -> Self {
        match base.media_type().as_ref() {
            DOCKER_MANIFEST if compression != Compression::Zstd => Self::Docker,
            _ => Self::Oci,
        }
    }

    pub(super) fn media_type(self) -> MediaType {
        match self {
            Self::Docker => DOCKER_MANIFEST.into(),
            Self::Oci => MediaType::ImageManifest,
        }
    }

    /// What the config is called: what it was, unless that is the other kind's.
    pub(super) fn config(self, old: &MediaType) -> MediaType {
        match self {
            Self::Oci if old.as_ref() == DOCKER_CONFIG => MediaType::ImageConfig,
            _ => old.clone(),
        }
    }

    pub(super) fn layer(self, compression: Compression) -> MediaType {
        let (base, separator) = match self {
            Self::Docker => (DOCKER_LAYER, '.'),
            Self::Oci => (OCI_LAYER, '+'),
        };
        let name = match compression {
            Compression::Gzip => format!("{base}{separator}gzip"),
            Compression::Zstd => format!("{base}{separator}zstd"),
            _ => base.to_owned(),
        };
        name.as_str().into()
    }

    /// A manifest with one more layer. What else the old one says (annotations, a subject) was of the old image.
    pub(super) fn manifest(
        self,
        old: &[u8],
        config: &Descriptor,
        layer: &Descriptor,
    ) -> serde_json::Result<Vec<u8>> {
        let mut layers = List::new();
        for old in Object::parse(old)?.list("layers")? {
            let mut object = Object::parse(old.get().as_bytes())?;
            let media_type = object.text("mediaType").unwrap_or_default();
            layers.push(match self {
                Self::Oci if media_type.starts_with("application/vnd.docker.") => {
                    object.set("mediaType", &oci_layer(&media_type))?;
                    serde_json::value::to_raw_value(&object)?
                }
                _ => old,
            });
        }
        layers.push(serde_json::value::to_raw_value(layer)?);
        let mut manifest = Object::default();
        manifest.set("schemaVersion", &2)?;
        manifest.set("mediaType", &self.media_type())?;
        manifest.set("config", config)?;
        manifest.set("layers", &layers)?;
        serde_json::to_vec(&manifest)
    }
}

/// OCI's name for one of Docker's layers.
fn oci_layer(docker: &str) -> String {
    let renamed =
        |from: &str, to: &str| Some(format!("{to}{}", docker.strip_prefix(from)?.replace('.', "+")));
    renamed(DOCKER_LAYER, OCI_LAYER)
        .or_else(|| renamed(DOCKER_FOREIGN_LAYER, OCI_FOREIGN_LAYER))
        .unwrap_or_else(|| docker.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use windlass_content::hash::sha256;

    use super::*;

    fn changed(old: &str, layers: usize) -> Value {
        let change = Change {
            diff_id: &sha256(b"new"),
            layers,
            created: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400),
            author: Some("me"),
            comment: None,
        };
        serde_json::from_slice(&config(old.as_bytes(), &change).expect("it can be changed"))
            .expect("it is JSON")
    }

    #[test]
    fn a_config_keeps_what_nobody_knows_and_gets_a_layer() {
        let old = r#"{"os":"linux","config":{"Healthcheck":{"Test":["CMD"]}},"rootfs":{"type":"layers","diff_ids":["sha256:1"]},
            "history":[{"created_by":"base"},{"created_by":"env","empty_layer":true}]}"#;

        let new = changed(old, 1);

        let step =
            json!({ "created": "1970-01-02T00:00:00Z", "created_by": "windlass commit", "author": "me" });
        let want = json!({
            "os": "linux",
            "config": { "Healthcheck": { "Test": ["CMD"] } },
            "rootfs": { "type": "layers", "diff_ids": ["sha256:1", sha256(b"new").to_string()] },
            "history": [{ "created_by": "base" }, { "created_by": "env", "empty_layer": true }, step],
            "created": "1970-01-02T00:00:00Z",
            "author": "me",
        });
        assert_eq!(new, want);
    }

    #[test]
    fn a_history_with_gaps_is_filled_so_that_each_layer_has_a_step() {
        for (history, layers, steps) in [("null", 2, 3), ("[]", 0, 1), (r#"[{"empty_layer":true}]"#, 1, 3)] {
            let old = format!(r#"{{"rootfs":{{"diff_ids":null}},"history":{history}}}"#);
            let new = changed(&old, layers);
            assert_eq!(new["history"].as_array().expect("it is a list").len(), steps, "{history}");
        }
    }

    #[test]
    fn a_docker_image_stays_one_unless_its_new_layer_has_no_name_there() {
        let base = Descriptor::new(DOCKER_MANIFEST.into(), 1, sha256(b""));
        let of = |compression| Kind::of(&base, compression);
        assert_eq!(
            of(Compression::Gzip).layer(Compression::Gzip).as_ref(),
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
        );
        assert_eq!(of(Compression::None).media_type().as_ref(), DOCKER_MANIFEST);
        assert_eq!(of(Compression::Zstd), Kind::Oci);

        let old = br#"{"layers":[{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":1,"new":2},
            {"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}],"annotations":{"old":"one"}}"#;
        let layer = Descriptor::new(MediaType::ImageLayerZstd, 1, sha256(b""));
        let manifest = Kind::Oci.manifest(old, &layer, &layer).expect("it can be changed");

        let manifest: Value = serde_json::from_slice(&manifest).expect("it is JSON");
        let layers = &manifest["layers"];
        assert_eq!(
            layers[0],
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 1, "new": 2 })
        );
        assert_eq!(layers[1]["mediaType"], "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        assert_eq!(layers[2]["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
        assert_eq!(manifest["annotations"], Value::Null);
    }
}
