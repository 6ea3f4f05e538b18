//! A thread whose files have the modes that they are made with.

use std::thread;

use rustix::{
    fs::Mode,
    process::umask,
    thread::{UnshareFlags, unshare_unsafe},
};

/// Runs `work` on a thread of its own, which takes away no bits of the modes of files: what other threads set with `umask` does
/// not reach it. `work` learns whether this is so; a sandbox may forbid it.
///
/// # Errors
///
/// If no thread can be started.
pub(super) fn without_umask<T: Send>(work: impl FnOnce(bool) -> T + Send) -> std::io::Result<T> {
    thread::scope(|scope| {
        let run = || {
            let own = unshare_umask();
            if own {
                umask(Mode::empty());
            }
            work(own)
        };
        let started = thread::Builder::new().name("windlass-apply".into()).spawn_scoped(scope, run)?;
        Ok(started.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[expect(unsafe_code, reason = "rustix marks the call as unsafe for the sake of another flag")]
fn unshare_umask() -> bool {
    // SAFETY: only `UnshareFlags::FILES` would let threads see other files.
    unsafe { unshare_unsafe(UnshareFlags::FS) }.is_ok()
}
