//! From an [`Exec`] to a running process.
//!
//! Between fork and exec the child says on a pipe how far it came, so that a failure has its
//! name: what init set up, or the program itself.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use bottle_wire::guest::{Exec, SpawnFailure, Window};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Pid, Uid, chdir, fchown, pipe2, setgid, setgroups, setsid, setuid, write};
use tokio::net::unix::pipe;

use super::terminal::Terminal;
use crate::control::Habitat;
use crate::error::chain;
use crate::provision::environment;
use crate::provision::users::{self, Identity};
use crate::sys;

/// A process and our ends of its standard streams.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: Pid,
    pub(super) ends: Ends,
}

/// Our ends.
#[derive(Debug)]
pub(super) enum Ends {
    Pipes {
        stdin: Option<pipe::Sender>,
        stdout: Option<pipe::Receiver>,
        stderr: Option<pipe::Receiver>,
    },
    Terminal(Terminal),
}

/// What the standard streams are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted {
    /// Pipes; those that are not wanted are `/dev/null`.
    Pipes {
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// All three are a new terminal of this size.
    Terminal(Window),
}

/// What the child does before it becomes the program, in this order. The last one means that all
/// of them are done.
const STEPS: [&str; 8] = [
    "start a session",
    "take its terminal",
    "enter the network namespace",
    "set the groups",
    "set the group",
    "set the user",
    "enter the working directory",
    "run the program",
];

/// Starts a process. Blocks until the program runs: a few milliseconds.
pub(super) fn spawn(
    habitat: &Habitat,
    exec: &Exec,
    wanted: Wanted,
) -> Result<Spawned, SpawnFailure> {
    let Some((program, arguments)) = exec.argv.split_first() else {
        return Err(SpawnFailure::Setup("there is no program to run".to_owned()));
    };
    let user = exec.user.as_deref().unwrap_or(&habitat.defaults.user);
    let user = users::resolve(user).map_err(|error| SpawnFailure::Setup(chain(&error)))?;
    let cwd = exec.cwd.as_deref().unwrap_or(&habitat.defaults.cwd);
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment::of_process(
            &habitat.defaults.env,
            &exec.env,
            &user,
            exec.tty.is_some(),
        ));
    let ends = match wanted {
        Wanted::Pipes {
            stdin,
            stdout,
            stderr,
        } => pipes(&mut command, &user, [stdin, stdout, stderr]).map_err(system("make its pipes")),
        Wanted::Terminal(window) => {
            terminal(&mut command, &user, window).map_err(system("make its terminal"))
        }
    }?;
    let (mut progress, report) = pipe2(OFlag::O_CLOEXEC)
        .map(|(r, w)| (io::PipeReader::from(r), w))
        .map_err(system("make a pipe"))?;
    let on_terminal = matches!(ends, Ends::Terminal(_));
    let setup = child_setup(habitat, &user, cwd, on_terminal, report)?;
    sys::before_exec(&mut command, setup);
    let spawned = command.spawn();
    drop(command); // and with it the parent's end for reports
    match spawned {
        Ok(child) => {
            // Only this thread waits for processes, and not before it has registered this one.
            let pid = Pid::from_raw(child.id().cast_signed());
            Ok(Spawned { pid, ends })
        }
        Err(error) => {
            let mut done = Vec::new();
            let _ = progress.read_to_end(&mut done);
            Err(classify(done.len(), &error))
        }
    }
}

/// The closure that runs in the child. Everything it needs is allocated here.
fn child_setup(
    habitat: &Habitat,
    user: &Identity,
    cwd: &str,
    on_terminal: bool,
    report: OwnedFd,
) -> Result<impl FnMut() -> io::Result<()> + Send + Sync + use<>, SpawnFailure> {
    let namespace = habitat
        .namespace
        .try_clone()
        .map_err(|error| SpawnFailure::Setup(format!("cannot copy a descriptor: {error}")))?;
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let cwd = CString::new(cwd).map_err(|_| {
        SpawnFailure::Setup("the working directory contains a zero byte".to_owned())
    })?;
    Ok(move || {
        let done = || write(&report, b".").map(drop);
        done()?;
        setsid()?;
        done()?;
        if on_terminal {
            sys::take_terminal()?;
        }
        done()?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        done()?;
        setgroups(&groups)?;
        done()?;
        setgid(gid)?;
        done()?;
        setuid(uid)?;
        done()?;
        chdir(cwd.as_c_str())?;
        done()?;
        Ok(())
    })
}

/// Names what failed: `begun` steps were begun by the child.
fn classify(begun: usize, error: &io::Error) -> SpawnFailure {
    match begun
        .checked_sub(1)
        .and_then(|step| STEPS.get(step).map(|name| (step, *name)))
    {
        Some((step, _)) if step + 1 == STEPS.len() => {
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT | Errno::ENOTDIR) => SpawnFailure::NotFound,
                Some(Errno::E2BIG) => {
                    SpawnFailure::Setup("arguments and environment are too long".to_owned())
                }
                _ => SpawnFailure::NotExecutable(error.to_string()),
            }
        }
        Some((_, name)) => SpawnFailure::Setup(format!("cannot {name}: {error}")),
        None => SpawnFailure::Setup(format!("cannot start a process: {error}")),
    }
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SpawnFailure {
    move |error| SpawnFailure::Setup(format!("cannot {what}: {}", error.into()))
}

/// Gives the process the wanted ones of its standard streams as pipes; returns our ends.
fn pipes(command: &mut Command, user: &Identity, wanted: [bool; 3]) -> io::Result<Ends> {
    let [stdin, stdout, stderr] = wanted;
    let (theirs, stdin) = if stdin {
        let (theirs, ours) = owned_pipe(user, End::Read)?;
        (theirs.into(), Some(pipe::Sender::from_owned_fd(ours)?))
    } else {
        (Stdio::null(), None)
    };
    command.stdin(theirs);
    let output = |wanted: bool| -> io::Result<(Stdio, Option<pipe::Receiver>)> {
        if !wanted {
            return Ok((Stdio::null(), None));
        }
        let (theirs, ours) = owned_pipe(user, End::Write)?;
        Ok((theirs.into(), Some(pipe::Receiver::from_owned_fd(ours)?)))
    };
    let (theirs, stdout) = output(stdout)?;
    command.stdout(theirs);
    let (theirs, stderr) = output(stderr)?;
    command.stderr(theirs);
    Ok(Ends::Pipes {
        stdin,
        stdout,
        stderr,
    })
}

/// Gives the process a terminal; returns our end.
fn terminal(command: &mut Command, user: &Identity, window: Window) -> io::Result<Ends> {
    let (ours, theirs) = Terminal::open(user, window)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    Ok(Ends::Terminal(ours))
}

/// Which end the process gets.
#[derive(Clone, Copy)]
enum End {
    Read,
    Write,
}

/// A pipe whose inode belongs to the user, so that he can open `/dev/stdout`: his end, and ours.
fn owned_pipe(user: &Identity, end: End) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(
        &reader,
        Some(Uid::from_raw(user.uid)),
        Some(Gid::from_raw(user.gid)),
    )?;
    Ok(match end {
        End::Read => (reader, writer),
        End::Write => (writer, reader),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_named_by_how_far_the_child_came() {
        let error = |errno: Errno| io::Error::from(errno);
        let all = STEPS.len();
        assert_eq!(classify(all, &error(Errno::ENOENT)), SpawnFailure::NotFound);
        let denied = classify(all, &error(Errno::EACCES));
        assert!(
            matches!(denied, SpawnFailure::NotExecutable(_)),
            "{denied:?}"
        );
        let cwd = classify(7, &error(Errno::ENOENT));
        let expected = "cannot enter the working directory: No such file or directory (os error 2)";
        assert_eq!(cwd, SpawnFailure::Setup(expected.to_owned()));
        let fork = classify(0, &error(Errno::EAGAIN));
        assert!(matches!(fork, SpawnFailure::Setup(why) if why.contains("start a process")));
    }
}
