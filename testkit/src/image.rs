//! Images and indexes, built in memory.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use oci_spec::image::{Descriptor, Digest, MediaType};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::layer::Layer;

/// All blobs of an image or an index, and which of them is the root.
#[derive(Clone)]
pub struct Image {
    /// The manifest, index or manifest list that everything else hangs from.
    pub root: Descriptor,
    /// Media type and bytes of every blob, the root too, by digest.
    pub blobs: BTreeMap<String, (String, Bytes)>,
    /// The DiffIDs, lowest layer first. An index has none of its own.
    pub diff_ids: Vec<Digest>,
}

impl Image {
    /// An image whose manifest is these bytes, which are none.
    pub fn not_a_manifest(bytes: &'static [u8]) -> Self {
        let mut blobs = Blobs::default();
        let root = blobs.add(OCI.manifest, Bytes::from_static(bytes));
        Self { root: descriptor(&root), blobs: blobs.0, diff_ids: Vec::new() }
    }

    /// The layers as the manifest lists them, lowest first.
    pub fn layers(&self) -> Vec<Descriptor> {
        let manifest = self.manifest();
        manifest["layers"]
            .as_array()
            .expect("an image's manifest lists its layers")
            .iter()
            .map(descriptor)
            .collect()
    }

    /// The config as the manifest names it.
    pub fn config(&self) -> Descriptor {
        descriptor(&self.manifest()["config"])
    }

    /// The bytes of a blob.
    pub fn blob(&self, digest: &Digest) -> Bytes {
        let (_, bytes) =
            self.blobs.get(digest.as_ref()).unwrap_or_else(|| panic!("the image has no {digest}"));
        bytes.clone()
    }

    /// Whether blobs of this media type are served as manifests.
    pub(crate) fn is_manifest(media_type: &str) -> bool {
        [&OCI, &DOCKER].iter().any(|types| [types.manifest, types.index].contains(&media_type))
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&self.blob(self.root.digest())).expect("the manifest is JSON")
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blobs =
            self.blobs.iter().map(|(digest, (kind, bytes))| format!("{kind} {digest} {}", bytes.len()));
        f.debug_struct("Image").field("root", &self.root).field("blobs", &blobs.collect::<Vec<_>>()).finish()
    }
}

type Change = Box<dyn FnOnce(&mut Value) + Send>;

/// Builds an [`Image`].
#[derive(Default)]
pub struct ImageBuilder {
    platform: Option<String>,
    layers: Vec<Layer>,
    settings: serde_json::Map<String, Value>,
    change: Option<Change>,
    docker: bool,
}

impl ImageBuilder {
    /// An OCI image without layers, for the host's platform.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what it runs on, as `os/architecture` or `os/architecture/variant`. The host if not set.
    pub fn platform(self, platform: &str) -> Self {
        Self { platform: Some(platform.to_owned()), ..self }
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets what is started. Nothing if not set.
    pub fn entrypoint(self, arguments: &[&str]) -> Self {
        self.set("Entrypoint", json!(arguments))
    }

    /// Sets the arguments for when the user gives none. Nothing if not set.
    pub fn cmd(self, arguments: &[&str]) -> Self {
        self.set("Cmd", json!(arguments))
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let variables = self.settings.entry("Env").or_insert_with(|| json!([]));
        variables.as_array_mut().expect("it was made as a list").push(json!(format!("{name}={value}")));
        self
    }

    /// Sets `user`, `user:group`, or their numbers. Root if not set.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// Sets the folder to start in. `/` if not set.
    pub fn working_dir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    /// Changes the config, as JSON, just before it becomes a blob. The last such change counts.
    pub fn config(self, change: impl FnOnce(&mut Value) + Send + 'static) -> Self {
        Self { change: Some(Box::new(change)), ..self }
    }

    /// Uses Docker's media types (image manifest schema 2) instead of OCI's.
    pub fn docker(self) -> Self {
        Self { docker: true, ..self }
    }

    /// Makes the blobs.
    pub fn build(self) -> Image {
        let types = if self.docker { &DOCKER } else { &OCI };
        let mut blobs = Blobs::default();
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let tar = layer.tar();
            diff_ids.push(sha256(&tar));
            let media_type = format!("{}{}", types.layer, layer.media_type_suffix(types.separator));
            layers.push(blobs.add(&media_type, layer.compress(tar)));
        }

        let mut config = platform_of(self.platform.as_deref().unwrap_or(&host()));
        config["created"] = json!("1970-01-01T00:00:00Z");
        config["config"] = self.settings.into();
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        config["history"] = layers.iter().map(|_| json!({ "created_by": "windlass-testkit" })).collect();
        if let Some(change) = self.change {
            change(&mut config);
        }
        let config = blobs.add(types.config, config.to_string().into());

        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": types.manifest,
            "config": config,
            "layers": layers,
        });
        let root = blobs.add(types.manifest, manifest.to_string().into());
        Image { root: descriptor(&root), blobs: blobs.0, diff_ids }
    }

    fn set(mut self, name: &str, value: Value) -> Self {
        self.settings.insert(name.to_owned(), value);
        self
    }
}

impl fmt::Debug for ImageBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageBuilder").field("layers", &self.layers).finish_non_exhaustive()
    }
}

/// Builds an index, or a manifest list, out of images.
#[derive(Debug)]
pub struct Index;

impl Index {
    /// An index of these images, with the platform that each one's config names. It is a manifest list if the
    /// first image is Docker's.
    pub fn of(images: &[Image]) -> Image {
        let docker = images.first().is_some_and(|it| it.root.media_type().to_string() == DOCKER.manifest);
        let types = if docker { &DOCKER } else { &OCI };
        let mut blobs = Blobs::default();
        let mut manifests = Vec::new();
        for image in images {
            let config: Value =
                serde_json::from_slice(&image.blob(image.config().digest())).expect("the config is JSON");
            let mut platform = json!({ "os": config["os"], "architecture": config["architecture"] });
            if let Some(variant) = config.get("variant") {
                platform["variant"] = variant.clone();
            }
            let mut entry = serde_json::to_value(&image.root).expect("a descriptor is JSON");
            entry["platform"] = platform;
            manifests.push(entry);
            blobs.0.extend(image.blobs.clone());
        }
        Self::finish(types, &manifests, blobs)
    }

    /// An index that lists these, in this order and as often as they come. It has no blob but itself, whether or
    /// not there is anything that they describe.
    pub fn listing(children: &[Descriptor]) -> Image {
        let children: Vec<_> =
            children.iter().map(|it| serde_json::to_value(it).expect("a descriptor is JSON")).collect();
        Self::finish(&OCI, &children, Blobs::default())
    }

    fn finish(types: &MediaTypes, manifests: &[Value], mut blobs: Blobs) -> Image {
        let index = json!({ "schemaVersion": 2, "mediaType": types.index, "manifests": manifests });
        let root = blobs.add(types.index, index.to_string().into());
        Image { root: descriptor(&root), blobs: blobs.0, diff_ids: Vec::new() }
    }
}

/// `sha256:…` of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex(&Sha256::digest(bytes))).parse().expect("64 hex digits are a SHA-256 digest")
}

/// Whether this is the digest of these bytes, by SHA-256 or SHA-512.
pub(crate) fn is_digest_of(digest: &str, bytes: &[u8]) -> bool {
    match digest.split_once(':') {
        Some(("sha256", digest)) => digest == hex(&Sha256::digest(bytes)),
        Some(("sha512", digest)) => digest == hex(&Sha512::digest(bytes)),
        _ => false,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) struct MediaTypes {
    pub(crate) index: &'static str,
    pub(crate) manifest: &'static str,
    config: &'static str,
    /// Up to the compression, whose name follows this separator.
    layer: &'static str,
    separator: char,
}

pub(crate) const OCI: MediaTypes = MediaTypes {
    index: "application/vnd.oci.image.index.v1+json",
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar",
    separator: '+',
};

const DOCKER: MediaTypes = MediaTypes {
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar",
    separator: '.',
};

#[derive(Default)]
pub(crate) struct Blobs(pub(crate) BTreeMap<String, (String, Bytes)>);

impl Blobs {
    /// Adds a blob, and gives its descriptor as JSON.
    pub(crate) fn add(&mut self, media_type: &str, bytes: Bytes) -> Value {
        let (digest, size) = (sha256(&bytes).to_string(), bytes.len());
        self.0.insert(digest.clone(), (media_type.to_owned(), bytes));
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }
}

pub(crate) fn descriptor(json: &Value) -> Descriptor {
    let text = |name: &str| json[name].as_str().expect("a descriptor has a media type and a digest");
    let digest: Digest = text("digest").parse().expect("a descriptor's digest parses");
    Descriptor::new(
        MediaType::from(text("mediaType")),
        json["size"].as_u64().expect("a size is a number"),
        digest,
    )
}

fn platform_of(text: &str) -> Value {
    let mut parts = text.split('/');
    let (os, architecture) = (parts.next(), parts.next().expect("a platform is os/architecture[/variant]"));
    let mut platform = json!({ "os": os, "architecture": architecture });
    if let Some(variant) = parts.next() {
        platform["variant"] = json!(variant);
    }
    platform
}

/// The platform of this machine, in the names that images use.
fn host() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(image: &Image, digest: &Digest) -> Value {
        serde_json::from_slice(&image.blob(digest)).expect("it is JSON")
    }

    #[test]
    fn every_blob_is_what_its_descriptor_says() {
        let layer = Layer::new().file("file", 0o644, b"content");
        let image =
            ImageBuilder::new().layer(layer.clone()).layer(layer.clone().zstd()).layer(layer.plain()).build();

        for (digest, (_, bytes)) in &image.blobs {
            assert_eq!(&sha256(bytes).to_string(), digest);
        }
        assert_eq!(image.blobs.len(), 5, "manifest, config, three layers");
        let layers = image.layers();
        let suffixes: Vec<_> = layers.iter().map(|it| it.media_type().to_string()).collect();
        assert!(suffixes[0].ends_with("v1.tar+gzip"), "{suffixes:?}");
        assert!(suffixes[1].ends_with("v1.tar+zstd"), "{suffixes:?}");
        assert!(suffixes[2].ends_with("v1.tar"), "{suffixes:?}");
        assert_eq!(layers[0].size(), image.blob(layers[0].digest()).len() as u64);
        let config = json_of(&image, image.config().digest());
        assert_eq!(config["rootfs"]["diff_ids"], json!(image.diff_ids));
    }

    #[test]
    fn settings_are_in_the_config() {
        let image = ImageBuilder::new()
            .platform("linux/arm/v7")
            .entrypoint(&["/bin/app"])
            .cmd(&["--help"])
            .env("A", "1")
            .env("B", "2")
            .user("app:app")
            .working_dir("/data")
            .config(|config| config["config"]["Healthcheck"] = json!(null))
            .build();

        let config = json_of(&image, image.config().digest());

        assert_eq!((&config["architecture"], &config["variant"]), (&json!("arm"), &json!("v7")));
        let want = json!({
            "Entrypoint": ["/bin/app"], "Cmd": ["--help"], "Env": ["A=1", "B=2"],
            "User": "app:app", "WorkingDir": "/data", "Healthcheck": null,
        });
        assert_eq!(config["config"], want);
    }

    #[test]
    fn an_index_lists_images_with_their_platforms() {
        let of = |platform: &str| ImageBuilder::new().docker().platform(platform).build();
        let index = Index::of(&[of("linux/amd64"), of("linux/arm64/v8")]);

        let list = json_of(&index, index.root.digest());

        assert_eq!(list["mediaType"], DOCKER.index);
        assert_eq!(list["manifests"][0]["platform"], json!({ "os": "linux", "architecture": "amd64" }));
        assert_eq!(list["manifests"][1]["platform"]["variant"], "v8");
        assert_eq!(index.blobs.len(), 5, "the list, and a manifest and a config of each");
    }

    #[test]
    fn an_index_can_list_one_thing_a_thousand_times() {
        let image = ImageBuilder::new().build();

        let index = Index::listing(&vec![image.root.clone(); 1000]);

        let list = json_of(&index, index.root.digest());
        assert_eq!(list["manifests"].as_array().map(Vec::len), Some(1000));
        assert_eq!(list["manifests"][999]["digest"], image.root.digest().to_string());
        assert_eq!(index.blobs.len(), 1);
    }

    #[test]
    fn a_digest_is_of_one_content_only() {
        // `printf x | sha512sum`
        let sha512 = "sha512:a4abd4448c49562d828115d13a1fccea927f52b4d5459297f8b43e42da89238b\
             c13626e43dcb38ddb082488927ec904fb42057443983e88585179d50551afe62";
        for (digest, is_right) in [
            (sha256(b"x").as_ref(), true),
            (sha256(b"y").as_ref(), false),
            (sha512, true),
            ("md5:9dd4e461268c8034f5c8564e155c67a6", false),
        ] {
            assert_eq!(is_digest_of(digest, b"x"), is_right, "{digest}");
        }
    }
}
