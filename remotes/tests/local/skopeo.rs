//! Files that skopeo writes.

use std::process::Stdio;

use tokio::process::Command;
use windlass_images::{Image as Opened, Platform};
use windlass_remotes::{Registry, local::Source};
use windlass_testkit::{docker_registry, require};

use crate::fixtures::{app, pulled};

/// Copies an image from the registry on this machine; `same` says whether its manifest is kept.
async fn skopeo_copy(from: &str, to: &str, same: bool) {
    let skopeo = require("skopeo", "skopeo");
    let copy = Command::new(skopeo)
        .args(["--insecure-policy", "copy", "--src-tls-verify=false"])
        .args(same.then_some("--preserve-digests"))
        .args([from, to])
        .stdin(Stdio::null())
        .output()
        .await
        .expect("it starts");
    assert!(copy.status.success(), "{to}: {}", String::from_utf8_lossy(&copy.stderr));
}

#[tokio::test]
async fn what_skopeo_writes_can_be_pulled() {
    let server = docker_registry().await;
    server.push(&app(), "library/app", "v1").await;
    let folder = tempfile::tempdir().expect("there is room");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let registry = Registry::new().expect("the settings are good");
    for (location, name, same) in [
        (format!("oci:{}:v1", path("layout")), "localhost/layout:v1", true),
        (format!("oci-archive:{}:docker.io/library/app:v1", path("a.tar")), "docker.io/library/app:v1", true),
        (format!("docker-archive:{}:r.example/app:v1", path("docker.tar")), "r.example/app:v1", false),
        (format!("docker-archive:{}", path("nameless.tar")), "localhost/nameless:latest", false),
    ] {
        skopeo_copy(&format!("docker://{}/library/app:v1", server.host()), &location, same).await;
        let source: Source = location.parse().expect("it is a source");

        let resolved = source.resolve(&registry).await.expect(&location);

        assert_eq!(resolved.name, name);
        assert_eq!(resolved.descriptor == app().root, same, "{location}");
        let (_store, store) = pulled(&resolved).await;
        let image =
            Opened::open(&store, &resolved.descriptor, &Platform::host()).await.expect("it is an image");
        assert_eq!(image.layers().map(|(_, diff_id)| diff_id.clone()).collect::<Vec<_>>(), app().diff_ids);
    }
}
