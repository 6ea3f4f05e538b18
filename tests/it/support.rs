//! The `dist` example as its users run it: as a process, on a folder of its own.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;
use windlass_testkit::{Layer, Registry};

/// A folder for `--root`, and the program.
#[derive(Debug)]
pub(crate) struct Dist {
    root: PathBuf,
    /// Removes the folder, if it is a temporary one.
    _temporary: Option<TempDir>,
}

/// What a run of `dist` left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    /// What it was ended by, if it was killed.
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Dist {
    /// A new, empty folder.
    pub(crate) fn new() -> Self {
        let temporary = tempfile::tempdir().expect("a temporary folder can be made");
        Self { root: temporary.path().to_owned(), _temporary: Some(temporary) }
    }

    /// This folder, which stays.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), _temporary: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `dist --root DIR ARGUMENTS…`, not started yet.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.arg("--root").arg(self.root()).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs to the end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().expect("dist starts").into()
    }

    /// Runs to the end, which must be a good one; gives stdout.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "dist {arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    /// Runs to the end, which must be exit code 1 with one line on stderr; gives that line.
    pub(crate) fn refused(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(1), "dist {arguments:?}: {ran:?}");
        let errors: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("dist: ")).collect();
        assert_eq!(errors.len(), 1, "one error line: {}", ran.stderr);
        errors[0].to_owned()
    }

    /// Runs to the end, which must be a good one; gives the one JSON object on stdout.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).expect("it prints one JSON object")
    }

    /// Runs to the end, which must be a good one; gives the JSON object on each line of stdout.
    pub(crate) fn json_lines(&self, arguments: &[&str]) -> Vec<Value> {
        let stdout = self.ok(arguments);
        stdout.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    /// The names of the images that are listed.
    pub(crate) fn names(&self) -> Vec<String> {
        let images = self.json_lines(&["images", "--json"]);
        images.iter().map(|image| image["ref"].as_str().expect("it has a name").to_owned()).collect()
    }

    /// Where a blob is on the disk, or would be.
    pub(crate) fn blob(&self, digest: impl AsRef<str>) -> PathBuf {
        self.root().join("content/blobs").join(digest.as_ref().replace(':', "/"))
    }

    /// The files that a container of an image sees, each with its content, in order: `./etc/motd=hello`.
    ///
    /// `settings` are arguments that all commands take. The snapshot stays.
    pub(crate) fn files(&self, settings: &[&str], name: &str) -> Vec<String> {
        let image = self.json(&["images", "inspect", name]);
        let layers = image["layers"].as_array().expect("it lists its layers");
        let chain_id = layers.last().expect("it has one")["chainID"].as_str().expect("it is text");
        let target = tempfile::tempdir().expect("a temporary folder can be made");
        let at = target.path().to_str().expect("the path is UTF-8");
        let key = format!("look-{}", target.path().file_name().expect("it has one").display());
        let prepare = ["rootfs", "prepare", chain_id, &key, "--target", at];
        let mount = self.ok(&[settings, &prepare].concat());
        let list = r#"find . -type f | sort | while read -r file; do echo "$file=$(cat "$file")"; done"#;
        let script = format!("set -e\n{mount}\n(cd {at}; {list})\numount {at}");
        let output =
            Command::new("unshare").args(["-m", "sh", "-c", &script]).output().expect("unshare starts");
        assert!(output.status.success(), "{mount}{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// Asserts that no image is listed. Files that no snapshot owns may be left, as after a crash, for cleanup.
    pub(crate) fn shows_nothing(&self) {
        assert_eq!(self.ok(&["images", "--json"]), "", "no image is listed");
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A layer with one small file, named after its content.
pub(crate) fn layer(content: &str) -> Layer {
    Layer::new().file(content, 0o644, content.as_bytes())
}

/// The digests, tags and the like that a registry was asked for with `GET`, since it had seen `before` requests.
pub(crate) fn fetched(registry: &Registry, before: usize) -> Vec<String> {
    let requests = registry.requests().split_off(before);
    let gets = requests.into_iter().filter(|request| request.method == "GET" && request.path != "/v2/");
    gets.map(|request| request.path.rsplit('/').next().unwrap_or_default().to_owned()).collect()
}

/// Whether an error says that the disk is full: in the system's words, or, if a database was the first to notice, in SQLite's.
pub(crate) fn names_a_full_disk(line: &str) -> bool {
    line.contains("No space left on device") || line.contains("disk is full")
}

/// Where cargo put the example that it built with this test.
pub(crate) fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let program = test.ancestors().nth(2).expect("tests live in target/PROFILE/deps").join("examples/dist");
    assert!(program.exists(), "{} is missing: run `cargo build --examples`", program.display());
    program
}

/// A tmpfs of a given size over a folder, until it is dropped.
#[derive(Debug)]
pub(crate) struct TmpfsMount {
    target: PathBuf,
}

impl TmpfsMount {
    /// `size` as `mount -o size=` takes it.
    pub(crate) fn new(target: &Path, size: &str) -> Self {
        mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], target);
        Self { target: target.to_owned() }
    }

    /// Gives it another size.
    pub(crate) fn grow(&self, size: &str) {
        mount(&["-o", &format!("remount,size={size}")], &self.target);
    }
}

impl Drop for TmpfsMount {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.target).status().expect("umount starts");
    }
}

fn mount(options: &[&str], target: &Path) {
    let status = Command::new("mount").args(options).arg(target).status().expect("mount starts");
    assert!(status.success(), "mount {options:?} {}", target.display());
}
