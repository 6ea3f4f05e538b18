//! What was resolved elsewhere is pulled like any image of a registry.

use std::fs;

use windlass::{
    PullOptions, Windlass,
    remotes::local::{DockerArchive, OciArchive},
};
use windlass_testkit::{ImageBuilder, Layer};

#[tokio::test]
async fn an_image_in_a_local_archive_is_pulled_and_listed() {
    let layer = Layer::new().file("file", 0o644, b"content");
    let image = ImageBuilder::new().layer(layer.clone()).build();
    let config = image.blob(image.config().digest());
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [image.root] }).to_string();
    let saved = br#"[{ "Config": "config", "RepoTags": ["app:v1"], "Layers": ["layer"] }]"#;
    let layout = image.blobs.iter().fold(Layer::new(), |tar, (digest, (_, bytes))| {
        tar.file(format!("blobs/{}", digest.replace(':', "/")), 0o644, bytes)
    });
    let layout = layout.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#).file(
        "index.json",
        0o644,
        index.as_bytes(),
    );
    let docker = Layer::new().file("config", 0o644, &config).file("layer", 0o644, &layer.tar()).file(
        "manifest.json",
        0o644,
        saved,
    );
    let folder = tempfile::tempdir().expect("there is room");
    let (oci_path, docker_path) = (folder.path().join("oci.tar"), folder.path().join("docker.tar"));
    fs::write(&oci_path, layout.tar()).expect("there is room");
    fs::write(&docker_path, docker.tar()).expect("there is room");
    let oci = OciArchive::open(&oci_path).expect("it is a layout");
    let docker = DockerArchive::open(&docker_path).expect("it is what Docker saves");
    let windlass = Windlass::open(folder.path().join("root")).expect("there is room");

    for (resolved, name) in [
        (oci.resolve_tag(None).await, "localhost/oci:latest"),
        (docker.resolve_tag(None).await, "docker.io/library/app:v1"),
    ] {
        let resolved = resolved.expect("it is the only image");
        let pulled = windlass
            .pull_resolved(resolved, PullOptions::default().unpack(false))
            .await
            .expect("all of it is in the archive");

        assert_eq!(pulled.name, name);
        let image = windlass.image(name, &Default::default()).await.expect("it is listed");
        assert_eq!(image.layers().map(|(_, diff_id)| diff_id.clone()).collect::<Vec<_>>(), [layer.diff_id()]);
    }
}
