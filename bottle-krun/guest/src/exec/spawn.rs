//! From an [`Exec`] to a running process.
//!
//! Between fork and exec the child says on a pipe how far it came, so that a failure has its
//! name: what init set up, or the program itself.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use bottle_wire::guest::{Exec, SpawnFailure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Pid, Uid, chdir, fchown, pipe2, setgid, setgroups, setsid, setuid, write};
use tokio::net::unix::pipe;

use crate::control::Habitat;
use crate::error::chain;
use crate::provision::environment;
use crate::provision::users::{self, Identity};
use crate::sys;

/// A process and our ends of its standard streams.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: Pid,
    pub(super) stdin: Option<pipe::Sender>,
    pub(super) stdout: Option<pipe::Receiver>,
    pub(super) stderr: Option<pipe::Receiver>,
}

/// Which standard streams are pipes; the others are `/dev/null`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pipes {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// What the child does before it becomes the program, in this order. The last one means that all
/// of them are done.
const STEPS: [&str; 7] = [
    "start a session",
    "enter the network namespace",
    "set the groups",
    "set the group",
    "set the user",
    "enter the working directory",
    "run the program",
];

/// Starts a process. Blocks until the program runs: a few milliseconds.
pub(super) fn spawn(habitat: &Habitat, exec: &Exec, pipes: Pipes) -> Result<Spawned, SpawnFailure> {
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
        ));
    let streams = Streams::new(&mut command, pipes, &user).map_err(system("make its pipes"))?;
    let (mut progress, report) = pipe2(OFlag::O_CLOEXEC)
        .map(|(r, w)| (io::PipeReader::from(r), w))
        .map_err(system("make a pipe"))?;
    let setup = child_setup(habitat, &user, cwd, report)?;
    sys::before_exec(&mut command, setup);
    let spawned = command.spawn();
    drop(command); // and with it the parent's end for reports
    match spawned {
        Ok(child) => {
            // Only this thread waits for processes, and not before it has registered this one.
            let pid = Pid::from_raw(child.id().cast_signed());
            Ok(streams.with(pid))
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

/// Our ends.
struct Streams {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

impl Streams {
    fn new(command: &mut Command, pipes: Pipes, user: &Identity) -> io::Result<Self> {
        let mut ours = Self {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let input = if pipes.stdin {
            let (theirs, sender) = owned_pipe(user, End::Read)?;
            ours.stdin = Some(pipe::Sender::from_owned_fd(sender)?);
            theirs.into()
        } else {
            Stdio::null()
        };
        command.stdin(input);
        let output = |wanted: bool, slot: &mut Option<pipe::Receiver>| -> io::Result<Stdio> {
            if !wanted {
                return Ok(Stdio::null());
            }
            let (theirs, receiver) = owned_pipe(user, End::Write)?;
            *slot = Some(pipe::Receiver::from_owned_fd(receiver)?);
            Ok(theirs.into())
        };
        command.stdout(output(pipes.stdout, &mut ours.stdout)?);
        command.stderr(output(pipes.stderr, &mut ours.stderr)?);
        Ok(ours)
    }

    fn with(self, pid: Pid) -> Spawned {
        let Self {
            stdin,
            stdout,
            stderr,
        } = self;
        Spawned {
            pid,
            stdin,
            stdout,
            stderr,
        }
    }
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
        let cwd = classify(6, &error(Errno::ENOENT));
        let expected = "cannot enter the working directory: No such file or directory (os error 2)";
        assert_eq!(cwd, SpawnFailure::Setup(expected.to_owned()));
        let fork = classify(0, &error(Errno::EAGAIN));
        assert!(matches!(fork, SpawnFailure::Setup(why) if why.contains("start a process")));
    }
}
