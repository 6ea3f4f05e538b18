//! What goes into registries, and who is let in: `push`, `copy`, `tags`, `login`, `logout`.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use windlass_testkit::{Image, ImageBuilder, Index, Layer, RealRegistry, require};

use crate::support::{Dist, Ran};

fn app(platform: &str) -> Image {
    let layer = Layer::new().file("platform", 0o644, platform.as_bytes()).file("big", 0o644, &[7; 50_000]);
    ImageBuilder::new().platform(platform).layer(layer).build()
}

/// What skopeo reads of an image on a registry without TLS.
fn skopeo(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(require("skopeo", "skopeo"))
        .args(["inspect", "--tls-verify=false"])
        .args(arguments)
        .arg(format!("docker://{name}"))
        .output()
        .expect("skopeo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it is text")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_pulled_is_pushed_under_another_name() {
    let (registry, image) = (RealRegistry::start().await, app("linux/amd64"));
    registry.push(&image, "app", "1").await;
    let (from, to) = (format!("{}/app:1", registry.host()), format!("{}/other/app:2", registry.host()));
    let dist = Dist::new();
    dist.ok(&["fetch", &from]);

    let pushed = dist.ok(&["push", &from, &to]);
    let again = dist.run(&["push", &from, &to]);

    assert_eq!(pushed, format!("{to} {}\n", image.root.digest()));
    assert!(again.stderr.lines().filter(|line| line.ends_with("exists")).count() == 3, "{}", again.stderr);
    assert_eq!(skopeo(&to, &["--raw"]).as_bytes(), image.blob(image.root.digest()));
    assert_eq!(dist.ok(&["tags", &to]), "2\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_copied_whole_and_mounted_within_one_registry() {
    let (one, other) = (RealRegistry::start().await, RealRegistry::start().await);
    let index = Index::of(&[app("linux/amd64"), app("linux/arm64")]);
    one.push(&index, "app", "1").await;
    let from = format!("{}/app:1", one.host());
    let dist = Dist::new();

    let near = dist.run(&["copy", &from, &format!("{}/copy:1", one.host())]);
    let far = dist.run(&["copy", &from, &format!("{}/copy:1", other.host())]);

    assert_eq!((near.code, far.code), (Some(0), Some(0)), "{near:?} {far:?}");
    let count = |ran: &Ran, word: &str| ran.stderr.lines().filter(|line| line.ends_with(word)).count();
    assert_eq!((count(&near, "mounted"), count(&near, "done")), (4, 3), "two configs, two layers");
    assert_eq!((count(&far, "mounted"), count(&far, "done")), (0, 7), "and two manifests, and the index");
    let raw = skopeo(&format!("{}/copy:1", other.host()), &["--raw"]);
    assert_eq!(raw.as_bytes(), index.blob(index.root.digest()));
    assert_eq!(dist.ok(&["list", "-q"]), "", "nothing was stored on the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_not_all_is_here_is_not_pushed_but_one_platform_is() {
    let registry = RealRegistry::start().await;
    let images = [app("linux/amd64"), app("linux/s390x")];
    registry.push(&Index::of(&images), "app", "1").await;
    let (from, to) = (format!("{}/app:1", registry.host()), format!("{}/one:1", registry.host()));
    let dist = Dist::new();
    dist.ok(&["fetch", "--platform", "linux/amd64", &from]);

    let refused = dist.refused(&["push", &from, &to]);
    dist.ok(&["push", "--platform", "linux/amd64", &from, &to]);

    assert!(refused.contains("--all-platforms"), "{refused}");
    assert!(refused.contains(images[1].root.digest().as_ref()), "{refused}");
    assert_eq!(skopeo(&to, &["--raw"]).as_bytes(), images[0].blob(images[0].root.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_image_is_pulled_and_copied_without_a_registry_of_its_own() {
    let (registry, image) = (RealRegistry::start().await, app("linux/amd64"));
    registry.push(&image, "app", "1").await;
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let archive = format!("oci-archive:{}", files.path().join("app.tar").display());
    let status = Command::new(require("skopeo", "skopeo"))
        .args(["copy", "--quiet", "--src-tls-verify=false"])
        .args([format!("docker://{}/app:1", registry.host()), format!("{archive}:v1")])
        .status();
    assert!(status.expect("skopeo starts").success());
    let dist = Dist::new();

    dist.ok(&["fetch", &archive]);
    dist.ok(&["copy", &archive, &format!("{}/again:1", registry.host())]);

    let images = dist.ok(&["images"]);
    assert!(images.contains("localhost/app:v1") && images.contains(image.root.digest().as_ref()), "{images}");
    let raw = skopeo(&format!("{}/again:1", registry.host()), &["--raw"]);
    assert_eq!(raw.as_bytes(), image.blob(image.root.digest()));
}

/// Runs `dist` with logins in `authfile`, certificates in `certs`, and something on stdin.
fn run(dist: &Dist, files: &Path, arguments: &[&str], stdin: &str) -> Ran {
    let (authfile, certs) = (files.join("auth.json"), files.join("certs.d"));
    let mut child = dist
        .command(arguments)
        .arg("--authfile")
        .arg(authfile)
        .arg("--hosts-dir")
        .arg(certs)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dist starts");
    // It may end without reading it.
    let _ = child.stdin.take().expect("it is piped").write_all(stdin.as_bytes());
    child.wait_with_output().expect("it ends").into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_opens_a_registry_over_tls_until_the_logout() {
    let registry = RealRegistry::builder().tls().htpasswd("user", "correct horse").start().await;
    let plain = RealRegistry::start().await;
    plain.push(&app("linux/amd64"), "app", "1").await;
    let (from, to) = (format!("{}/app:1", plain.host()), format!("{}/app:1", registry.host()));
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let certs = files.path().join("certs.d").join(registry.host());
    std::fs::create_dir_all(&certs).expect("a folder can be made");
    std::fs::write(certs.join("ca.crt"), registry.ca_pem()).expect("a file can be written");
    let hosts = format!("server = \"https://{}\"\nca = \"ca.crt\"\n", registry.host());
    std::fs::write(certs.join("hosts.toml"), hosts).expect("a file can be written");
    std::fs::write(files.path().join("auth.json"), "{}").expect("a file can be written");
    let dist = Dist::new();
    let run = |arguments: &[&str], stdin: &str| run(&dist, files.path(), arguments, stdin);
    let login = ["login", &*registry.host(), "--username", "user", "--password-stdin"];

    let anonymous = run(&["copy", &from, &to], "");
    let wrong = run(&login, "wrong-horse\n");
    let right = run(&login, "correct horse\n");
    let copied = run(&["copy", &from, &to], "");
    let tags = run(&["tags", &to], "");
    let out = run(&["logout", &registry.host()], "");
    let after = run(&["tags", &to], "");

    for refused in [&anonymous, &wrong, &after] {
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.stderr.contains("unauthorized"), "{refused:?}");
    }
    assert_eq!(
        (right.code, copied.code, out.code),
        (Some(0), Some(0), Some(0)),
        "{right:?} {copied:?} {out:?}"
    );
    assert_eq!(tags.stdout, "1\n");
    let said = format!("{wrong:?}{right:?}{copied:?}{out:?}");
    assert!(!said.contains("horse"), "the password is not repeated: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_file_that_does_not_parse_stops_the_pull() {
    let registry = RealRegistry::start().await;
    registry.push(&app("linux/amd64"), "app", "1").await;
    let files = tempfile::tempdir().expect("a temporary folder can be made");
    let certs = files.path().join("certs.d").join(registry.host());
    std::fs::create_dir_all(&certs).expect("a folder can be made");
    std::fs::write(certs.join("hosts.toml"), "server = \"\"\n[host.\"http://mirror\"\n")
        .expect("it is written");
    let dist = Dist::new();

    let refused = run(&dist, files.path(), &["fetch", &format!("{}/app:1", registry.host())], "");

    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("hosts.toml, line 2"), "{}", refused.stderr);
    dist.shows_nothing();
}
