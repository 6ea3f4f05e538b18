//! Processes of their own for tests: the test binary, run again for its test `child`.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    env,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{self, ChildStdin, ChildStdout, Command, Stdio},
};

use windlass_content::{LocalStore, Options};

/// What this process is to do, where, and with what; `None` if nobody started it as a child.
pub(crate) fn role() -> Option<(String, PathBuf, u64)> {
    let role = env::var("WINDLASS_CHILD_ROLE").ok()?;
    let root = env::var_os("WINDLASS_CHILD_ROOT").expect("a role comes with a folder");
    let seed = env::var("WINDLASS_CHILD_SEED").expect("a role comes with a seed");
    Some((role, root.into(), seed.parse().expect("a seed is a number")))
}

/// Says something to the parent.
pub(crate) fn say(text: &str) {
    // Not `println`: that goes through the test harness, and is one line at most by luck.
    let line = format!("\n@{text}\n");
    std::io::stdout().lock().write_all(line.as_bytes()).expect("the parent listens");
}

/// Waits until the parent says something.
pub(crate) fn wait() {
    std::io::stdin().lock().read_line(&mut String::new()).expect("the parent holds the other end");
}

pub(crate) fn open(root: &Path) -> LocalStore {
    LocalStore::open(root, Options::default()).expect("the folder can be opened")
}

/// A child process. It is killed when this is dropped.
pub(crate) struct Child {
    process: process::Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub(crate) fn start(role: &str, root: &Path, seed: u64) -> Self {
        let mut process = Command::new(env::current_exe().expect("it is running"))
            .args(["--exact", "child", "--nocapture"])
            .env("WINDLASS_CHILD_ROLE", role)
            .env("WINDLASS_CHILD_ROOT", root)
            .env("WINDLASS_CHILD_SEED", seed.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this binary can be run again");
        let stdin = process.stdin.take().expect("it was asked for");
        let lines = BufReader::new(process.stdout.take().expect("it was asked for")).lines();
        Self { process, stdin, lines }
    }

    /// The next thing that it says; `None` when it has ended.
    pub(crate) fn hear(&mut self) -> Option<String> {
        let mut said = self.lines.by_ref().map(|line| line.expect("it speaks UTF-8"));
        said.find_map(|line| line.strip_prefix('@').map(str::to_owned))
    }

    /// Ends its [`wait`].
    pub(crate) fn go(&mut self) {
        self.stdin.write_all(b"go\n").expect("it listens");
    }

    /// SIGKILL. It is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it is ours");
        self.process.wait().expect("it is ours");
    }

    pub(crate) fn succeeds(mut self) {
        while self.hear().is_some() {}
        assert!(self.process.wait().expect("it is ours").success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Numbers that look random, and are the same for the same seed (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}
