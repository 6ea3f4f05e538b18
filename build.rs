//! Tells the `dist` example which tree it was built from: the git description, `.m` for a modified tree.

use std::process::Command;

fn main() {
    for watched in ["build.rs", "Cargo.toml", "src", "examples", ".git/HEAD", ".git/index"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    // Outside a checkout there is no description, and the package's version says it all.
    let description = Command::new("git")
        .args(["describe", "--always", "--match", "v[0-9]*", "--dirty=.m"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok());
    let version = env!("CARGO_PKG_VERSION");
    match description {
        Some(description) => println!("cargo::rustc-env=WINDLASS_VERSION={version} {}", description.trim()),
        None => println!("cargo::rustc-env=WINDLASS_VERSION={version}"),
    }
}
