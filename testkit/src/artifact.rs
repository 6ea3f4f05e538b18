//! Artifacts: manifests of things that are no images, and that may be about one.

use std::fmt;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use serde_json::{Map, Value, json};

use crate::image::{Blobs, Image, OCI, descriptor};

/// Builds a manifest with an `artifactType`.
#[derive(Clone)]
pub struct Artifact {
    artifact_type: String,
    blobs: Vec<(String, Bytes)>,
    subject: Option<Descriptor>,
    annotations: Map<String, Value>,
}

impl Artifact {
    /// An artifact of this type, such as `application/vnd.example.sbom`, without content of its own.
    pub fn new(artifact_type: &str) -> Self {
        Self {
            artifact_type: artifact_type.to_owned(),
            blobs: Vec::new(),
            subject: None,
            annotations: Map::new(),
        }
    }

    /// Adds content.
    pub fn blob(mut self, media_type: &str, bytes: impl Into<Bytes>) -> Self {
        self.blobs.push((media_type.to_owned(), bytes.into()));
        self
    }

    /// Says what it is about. Nothing if not set.
    pub fn subject(self, subject: &Descriptor) -> Self {
        Self { subject: Some(subject.clone()), ..self }
    }

    /// Adds an annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), json!(value));
        self
    }

    /// Makes the blobs.
    pub fn build(mut self) -> Image {
        const EMPTY: &str = "application/vnd.oci.empty.v1+json";
        if self.blobs.is_empty() {
            self = self.blob(EMPTY, "{}");
        }
        let mut blobs = Blobs::default();
        let config = blobs.add(EMPTY, Bytes::from_static(b"{}"));
        let layers: Vec<_> =
            self.blobs.iter().map(|(media_type, bytes)| blobs.add(media_type, bytes.clone())).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI.manifest,
            "artifactType": self.artifact_type,
            "config": config,
            "layers": layers,
        });
        if let Some(subject) = &self.subject {
            manifest["subject"] = serde_json::to_value(subject).expect("a descriptor is JSON");
        }
        if !self.annotations.is_empty() {
            manifest["annotations"] = self.annotations.into();
        }
        let root = blobs.add(OCI.manifest, manifest.to_string().into());
        Image { root: descriptor(&root), blobs: blobs.0, diff_ids: Vec::new() }
    }
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Artifact").field("type", &self.artifact_type).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_says_what_it_is_and_what_it_is_about() {
        let image = crate::sample::image();

        let artifact = Artifact::new("application/vnd.example.sbom")
            .blob("text/plain", "content")
            .subject(&image.root)
            .annotation("a", "1")
            .build();

        let manifest: Value =
            serde_json::from_slice(&artifact.blob(artifact.root.digest())).expect("it is JSON");
        assert_eq!(manifest["artifactType"], "application/vnd.example.sbom");
        assert_eq!(manifest["subject"]["digest"], image.root.digest().to_string());
        assert_eq!(manifest["annotations"], json!({ "a": "1" }));
        assert_eq!(artifact.blob(artifact.layers()[0].digest()), "content");
        assert_eq!(artifact.blob(artifact.config().digest()), "{}");
    }

    #[test]
    fn an_artifact_without_content_has_the_empty_blob() {
        let artifact = Artifact::new("application/vnd.example.sbom").build();

        assert_eq!(artifact.layers().len(), 1);
        assert_eq!(artifact.layers()[0].digest(), artifact.config().digest());
    }
}
