//! `dist` in the background.

use std::{
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::Dist;

/// A `dist` that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(dist: &Dist, arguments: &[&str]) -> Self {
        let mut command = dist.command(arguments);
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("dist starts"))
    }

    /// SIGKILL, if it has not ended. It is gone when this returns.
    pub(crate) fn kill(&mut self) {
        self.0.kill().expect("it is ours");
        self.0.wait().expect("it is ours");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> ExitStatus {
        self.0.wait().expect("it is ours")
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("it is ours").is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}
