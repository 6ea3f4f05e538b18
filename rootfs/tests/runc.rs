//! What is generated is what a real runtime takes: an image's config runs under runc as it says.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::{Command, Output},
};

use oci_spec::image::{Descriptor, MediaType};
use tempfile::TempDir;
use windlass_content::hash::sha256;
use windlass_images::view::Config;
use windlass_rootfs::{Bundle, spec};
use windlass_snapshot::Mount;
use windlass_testkit::require;

fn config(json: &serde_json::Value) -> Config {
    let json = serde_json::json!({
        "os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}, "config": json
    });
    let json = json.to_string();
    let descriptor = Descriptor::new(MediaType::ImageConfig, json.len() as u64, sha256(json.as_bytes()));
    Config::parse(&descriptor, json.as_bytes()).expect("it is a config")
}

/// A root file system with busybox, a user and a folder of theirs.
fn tree() -> TempDir {
    let tree = tempfile::tempdir().expect("a temporary folder can be made");
    let path = |name: &str| tree.path().join(name);
    for folder in ["bin", "etc", "home", "home/app"] {
        fs::create_dir(path(folder)).expect("it can be made");
    }
    fs::copy(require("busybox", "busybox-static"), path("bin/busybox")).expect("it can be copied");
    fs::write(path("etc/passwd"), "root:x:0:0::/root:\napp:x:1000:1001::/home/app:\n").expect("written");
    fs::write(path("etc/group"), "app:x:1001:\nextra:x:2000:app\n").expect("written");
    chown(path("home/app"), Some(1000), Some(1001)).expect("root may");
    fs::set_permissions(tree.path(), fs::Permissions::from_mode(0o755)).expect("root may");
    tree
}

/// Runs a bundle to its end. Its cgroup and its state are its own, so that runs do not meet.
fn run(folder: &Path, config: &Config, options: &spec::Options) -> Output {
    let id = format!("windlass-test-{}-{}", std::process::id(), options.args.len());
    let tree = tree();
    let mount = Mount { fstype: "bind".into(), source: tree.path().into(), options: vec!["rbind".into()] };
    let bundle = Bundle::mount(folder.join("bundle"), &[mount]).expect("it can be mounted");
    let spec = spec::generate(config, &bundle.rootfs(), &id, options).expect("the config is complete");
    bundle.write_spec(&spec).expect("it can be written");
    let output = Command::new(require("runc", "runc"))
        .arg("--root")
        .arg(folder.join("state"))
        .args(["run", "--bundle"])
        .args([bundle.path().as_os_str(), id.as_ref()])
        .output()
        .expect("runc starts");
    bundle.remove().expect("the container has ended");
    output
}

#[test]
fn runc_runs_a_user_where_and_with_what_the_config_says() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let script = "id -u; id -g; id -G; pwd; echo $HOME $COLOUR; echo me > mine && busybox cat mine; \
        busybox grep NoNewPrivs /proc/self/status; busybox grep CapEff /proc/self/status; \
        echo x > /proc/sys/kernel/hostname || echo refused";
    let config = config(&serde_json::json!({
        "User": "app", "WorkingDir": "home/app", "Env": ["PATH=/bin", "COLOUR=blue"],
        "Entrypoint": ["busybox", "sh", "-c"], "Cmd": [script.replace("id ", "busybox id ")]
    }));

    let output = run(folder.path(), &config, &spec::Options::default());

    let expected = "1000\n1001\n1001 2000\n/home/app\n/home/app blue\nme\n\
        NoNewPrivs:\t1\nCapEff:\t0000000000000000\nrefused\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn runc_gives_back_the_exit_code_of_a_command_that_takes_the_place_of_cmd() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let config = config(&serde_json::json!({"Entrypoint": ["/bin/busybox", "sh", "-c"], "Cmd": ["exit 1"]}));
    let options = spec::Options::default().args(vec!["exit 7".into()]).host_network(true);

    let output = run(folder.path(), &config, &options);

    assert_eq!(output.status.code(), Some(7), "{output:?}");
}
