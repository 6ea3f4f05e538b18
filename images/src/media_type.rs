//! What a media type says about content, for OCI and for Docker schema 2.

use oci_spec::image::MediaType;

/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's index, which it calls a manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What to ask a registry for, the most wanted first.
pub const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    DOCKER_MANIFEST,
    DOCKER_INDEX,
];

const DOCKER_LAYERS: [&str; 2] =
    ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];

/// How a layer says that it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Whether this is an index, or Docker's manifest list.
pub fn is_index(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageIndex) || media_type.as_ref() == DOCKER_INDEX
}

/// Whether this is the manifest of one image.
pub fn is_manifest(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageManifest) || media_type.as_ref() == DOCKER_MANIFEST
}

/// Whether this is the config of an image.
pub fn is_config(media_type: &MediaType) -> bool {
    matches!(media_type, MediaType::ImageConfig) || media_type.as_ref() == DOCKER_CONFIG
}

/// Whether this is a layer: a tar that may be compressed, and may be one that others must not distribute.
pub fn is_layer(media_type: &MediaType) -> bool {
    compression(media_type).is_some()
}

/// What a layer's type says about its compression. `None` if it is no layer that we know.
pub fn compression(media_type: &MediaType) -> Option<Compression> {
    let text = media_type.as_ref();
    let known = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"]
        .into_iter()
        .chain(DOCKER_LAYERS);
    match known.into_iter().find_map(|tar| text.strip_prefix(tar))? {
        "" => Some(Compression::None),
        ".gzip" | "+gzip" => Some(Compression::Gzip),
        ".zstd" | "+zstd" => Some(Compression::Zstd),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_of_one_kind() {
        let layer = Some(Compression::None);
        let gzip = Some(Compression::Gzip);
        let zstd = Some(Compression::Zstd);
        for (text, kind, compressed) in [
            (MANIFESTS[0], "manifest", None),
            (MANIFESTS[1], "index", None),
            (DOCKER_MANIFEST, "manifest", None),
            (DOCKER_INDEX, "index", None),
            ("application/vnd.oci.image.config.v1+json", "config", None),
            (DOCKER_CONFIG, "config", None),
            ("application/vnd.oci.image.layer.v1.tar", "layer", layer),
            ("application/vnd.oci.image.layer.v1.tar+gzip", "layer", gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", "layer", zstd),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "layer", gzip),
            ("application/vnd.docker.image.rootfs.diff.tar", "layer", layer),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", "layer", gzip),
            ("application/vnd.docker.image.rootfs.diff.tar.zstd", "layer", zstd),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "layer", gzip),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", "", None),
            ("text/html", "", None),
        ] {
            let media_type = MediaType::from(text);
            let kinds = [
                ("index", is_index(&media_type)),
                ("manifest", is_manifest(&media_type)),
                ("config", is_config(&media_type)),
                ("layer", is_layer(&media_type)),
            ];

            let found: String = kinds.iter().filter(|(_, is)| *is).map(|(kind, _)| *kind).collect();
            assert_eq!(found, kind, "{text}");
            assert_eq!(compression(&media_type), compressed, "{text}");
        }
    }
}
