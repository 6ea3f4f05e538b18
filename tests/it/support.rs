//! The `dist` example as its users run it: as a process, on a folder of its own.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

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

/// Whether an error says that the disk is full: in the system's words, or, if a database was the first to notice, in SQLite's.
pub(crate) fn names_a_full_disk(line: &str) -> bool {
    line.contains("No space left on device") || line.contains("disk is full")
}

/// Where cargo put the example that it built with this test.
fn program() -> PathBuf {
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
