//! Running a bundle: with runc, crun or youki, or with the `libcontainer` crate inside this program.

use std::{
    ffi::OsStr,
    fs,
    io::{self, IsTerminal},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitCode, ExitStatus},
};

use anyhow::{Context, bail};
use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use windlass::rootfs::Bundle;

/// The first argument of the process that runs a container with `libcontainer`.
const EMBEDDED_CHILD: &str = "windlass-embedded-runtime";

/// What is passed on to the container.
const SIGNALS: [Signal; 7] =
    [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2, Signal::WINCH];

/// What a terminal sends by itself to all who run in its foreground.
const FROM_TERMINAL: [Signal; 3] = [Signal::INT, Signal::QUIT, Signal::WINCH];

/// What runs containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// A program with runc's command line.
    Program(PathBuf),
    /// The `libcontainer` crate, in a child process of this program.
    Embedded,
}

impl Runtime {
    /// The one that is asked for (`embedded`, a path or a name); else the first of runc, crun and youki that is installed;
    /// else the embedded one.
    pub(crate) fn find(wanted: Option<&Path>) -> anyhow::Result<Self> {
        match wanted {
            Some(wanted) if wanted == Path::new("embedded") => Ok(Self::Embedded),
            Some(wanted) => {
                let found = installed(wanted.as_os_str());
                Ok(Self::Program(found.with_context(|| format!("there is no runtime {}", wanted.display()))?))
            }
            None => {
                let program = ["runc", "crun", "youki"].iter().find_map(|name| installed(OsStr::new(name)));
                Ok(program.map_or(Self::Embedded, Self::Program))
            }
        }
    }

    /// Runs a bundle to its end, passes on signals, and gives its exit code: 128 and the signal's number, if one ended it.
    ///
    /// The runtime keeps its own notes below `state`.
    pub(crate) async fn run(&self, bundle: &Bundle, id: &str, state: &Path) -> anyhow::Result<u8> {
        fs::create_dir_all(state).with_context(|| format!("cannot create {}", state.display()))?;
        let pid_file = state.join(format!("{id}.pid"));
        let mut command = match self {
            Self::Program(program) => {
                let mut command = Command::new(program);
                command.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle.path()).arg(id);
                command
            }
            Self::Embedded => {
                // What a killed run has left must not be taken for this container's.
                let _ = fs::remove_file(&pid_file);
                let mut command = Command::new("/proc/self/exe");
                command.arg(EMBEDDED_CHILD).arg(state).arg(bundle.path()).arg(&pid_file).arg(id);
                command
            }
        };
        // A terminal signals a whole process group. Out of it, the runtime gets each signal once, and from here. But runc
        // reads standard input for its container, and a terminal is read only by the group that it signals.
        let in_group = *self != Self::Embedded && io::stdin().is_terminal();
        if !in_group {
            command.process_group(0);
        }
        let mut signals = listen()?;
        let mut runtime = command.spawn().with_context(|| format!("cannot start {self:?}"))?;
        let status = loop {
            tokio::select! {
                status = runtime.wait() => break status.context("cannot wait for the runtime")?,
                // Twice would be wrong: redis takes a second SIGINT for "now, and do not save".
                Some(signal) = signals.recv() => if !(in_group && FROM_TERMINAL.contains(&signal)) {
                    self.pass_on(&runtime, &pid_file, signal);
                },
            }
        };
        self.clean_up(id, state, &pid_file, status).await;
        Ok(code(status))
    }

    /// Sends a signal to the container.
    fn pass_on(&self, runtime: &Child, pid_file: &Path, signal: Signal) {
        // Programs pass signals on themselves. One that comes before the container has a process ends its runtime instead.
        let container = if *self == Self::Embedded { pid_in(pid_file) } else { None };
        let runtime = runtime.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = container.or(runtime) {
            // It may have ended at this moment.
            let _ = kill_process(pid, signal);
        }
    }

    /// Removes what is left of a container whose runtime was ended from outside.
    async fn clean_up(&self, id: &str, state: &Path, pid_file: &Path, status: ExitStatus) {
        match self {
            // Most often there is nothing left, and they say so.
            Self::Program(program) => {
                let mut delete = Command::new(program);
                delete.arg("--root").arg(state).args(["delete", "--force", id]);
                let _ = delete.output().await;
            }
            Self::Embedded => {
                if let Some(pid) = pid_in(pid_file).filter(|_| status.signal().is_some()) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = fs::remove_dir_all(state.join(id));
                let _ = fs::remove_file(pid_file);
            }
        }
    }
}

/// Where a program is: a path as it is, a name looked up in `$PATH` and where root's programs are.
fn installed(name: &OsStr) -> Option<PathBuf> {
    let name = Path::new(name);
    if name.components().count() > 1 {
        return name.exists().then(|| name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// The signals that reach this process, from now on.
fn listen() -> anyhow::Result<mpsc::UnboundedReceiver<Signal>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for number in SIGNALS {
        let mut stream =
            signal(SignalKind::from_raw(number.as_raw())).context("cannot listen for signals")?;
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(number).is_ok() {} });
    }
    Ok(receiver)
}

/// The container's first process, once it has one.
fn pid_in(pid_file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(pid_file).ok()?.trim().parse().ok()?)
}

fn code(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1)
}

/// Runs a container with `libcontainer`, if this process was started for that. Call it first in `main`: there may be no other thread.
pub(crate) fn embedded_child() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != EMBEDDED_CHILD {
        return None;
    }
    let arguments: Vec<_> = arguments.collect();
    Some(run_embedded(&arguments).map_or_else(
        |error| {
            eprintln!("embedded runtime: {error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    ))
}

fn run_embedded(arguments: &[String]) -> anyhow::Result<u8> {
    let [state, bundle, pid_file, id] = arguments else {
        bail!("it takes a state folder, a bundle, a pid file, an id")
    };
    let mut container = ContainerBuilder::new(id.clone(), SyscallType::default())
        .with_root_path(state)?
        .with_pid_file(Some(pid_file))?
        .validate_id()?
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(false)
        .build()
        .context("cannot create the container")?;
    let pid = container
        .pid()
        .and_then(|pid| Pid::from_raw(pid.as_raw()))
        .context("the container has no process")?;
    container.start().context("cannot start the container")?;
    let (_, status) =
        waitpid(Some(pid), WaitOptions::empty())?.context("the container's process is not ours")?;
    container.delete(true).context("cannot delete the container")?;
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    Ok(number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1))
}
