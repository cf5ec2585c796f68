//! The programs that are installed in a fake bottle.
//!
//! What they do is what programs of these names do in a real one, so that a case of the contract
//! needs no knowledge of where it runs. `crash` and `yes` serve tests of the command line.

use std::future::pending;
use std::time::Duration;

use tokio::io::{self, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

use crate::backend::{ExitStatus, SpawnFailure};

/// The script that outlives SIGINT and SIGTERM; a real shell runs it as well.
pub(super) const STUBBORN: &str = "trap '' INT TERM; echo ready; while :; do sleep 1; done";

/// What a program sees of its bottle.
pub(super) struct World {
    pub(super) env: Vec<(String, String)>,
    pub(super) user: String,
    pub(super) cwd: String,
    pub(super) stdin: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) stdout: Box<dyn AsyncWrite + Send + Unpin>,
    pub(super) stderr: Box<dyn AsyncWrite + Send + Unpin>,
}

/// A program that was found.
#[derive(Debug)]
pub(super) enum Program {
    Cat,
    Crash,
    Echo(String),
    EchoToStderr(String),
    Env,
    Exit(u8),
    Id,
    Kill(u8),
    PrintEnv(String),
    Pwd,
    Sleep(Duration),
    Stubborn,
    Yes,
}

/// How a program ended.
pub(super) enum Outcome {
    /// As processes do.
    Ended(ExitStatus),
    /// It took the whole bottle down.
    Crashed,
}

impl Program {
    /// Looks a command up as `execvp` would.
    pub(super) fn find(argv: &[String]) -> Result<Self, SpawnFailure> {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        Ok(match words.as_slice() {
            ["cat"] => Self::Cat,
            ["crash"] => Self::Crash,
            ["echo", rest @ ..] => Self::Echo(rest.join(" ")),
            ["env"] => Self::Env,
            ["false"] => Self::Exit(1),
            ["id", "-un"] => Self::Id,
            ["printenv", name] => Self::PrintEnv((*name).to_owned()),
            ["pwd"] => Self::Pwd,
            ["sh", "-c", script] => Self::script(script),
            ["sleep", seconds] => {
                Self::Sleep(Duration::from_secs(seconds.parse().unwrap_or_default()))
            }
            ["true"] => Self::Exit(0),
            ["yes"] => Self::Yes,
            [program @ ("/etc/passwd" | "/etc"), ..] => {
                return Err(SpawnFailure::NotExecutable {
                    program: (*program).to_owned(),
                    why: "Permission denied".to_owned(),
                });
            }
            [program, ..] => {
                return Err(SpawnFailure::NotFound {
                    program: (*program).to_owned(),
                });
            }
            [] => {
                return Err(SpawnFailure::Setup {
                    program: String::new(),
                    why: "neither the image nor the command line says what to run".to_owned(),
                });
            }
        })
    }

    /// Understands the few scripts that tests use.
    fn script(script: &str) -> Self {
        if script == STUBBORN {
            return Self::Stubborn;
        }
        let words: Vec<&str> = script.split_whitespace().collect();
        match words.as_slice() {
            ["exit", code] => Self::Exit(code.parse().unwrap_or(2)),
            ["kill", signal, "$$"] => {
                Self::Kill(signal.trim_start_matches('-').parse().unwrap_or(15))
            }
            ["echo", text @ .., ">&2"] => Self::EchoToStderr(text.join(" ")),
            _ => Self::Exit(2),
        }
    }

    /// Returns the signals on which the program lives.
    pub(super) fn ignored_signals(&self) -> &'static [i32] {
        if matches!(self, Self::Stubborn) {
            &[2, 15]
        } else {
            &[]
        }
    }

    /// Runs it to its end.
    pub(super) async fn run(self, mut world: World) -> Outcome {
        let written = match self {
            Self::Cat => io::copy(&mut world.stdin, &mut world.stdout)
                .await
                .map(drop),
            Self::Crash => return Outcome::Crashed,
            Self::Echo(text) => line(&mut world.stdout, &text).await,
            Self::EchoToStderr(text) => line(&mut world.stderr, &text).await,
            Self::Env => {
                let lines: Vec<_> = world
                    .env
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                line(&mut world.stdout, &lines.join("\n")).await
            }
            Self::Exit(code) => return Outcome::Ended(ExitStatus::Exited(code)),
            Self::Id => line(&mut world.stdout, &world.user).await,
            Self::Kill(signal) => return Outcome::Ended(ExitStatus::Signaled(signal)),
            Self::PrintEnv(wanted) => {
                let value = world.env.iter().rev().find(|(name, _)| *name == wanted);
                match value {
                    Some((_, value)) => line(&mut world.stdout, value).await,
                    None => return Outcome::Ended(ExitStatus::Exited(1)),
                }
            }
            Self::Pwd => line(&mut world.stdout, &world.cwd).await,
            Self::Sleep(time) => {
                sleep(time).await;
                Ok(())
            }
            Self::Stubborn => match line(&mut world.stdout, "ready").await {
                Ok(()) => pending().await,
                Err(error) => Err(error),
            },
            Self::Yes => {
                let mut forever = io::repeat(b'y').take(u64::MAX);
                io::copy(&mut forever, &mut world.stdout).await.map(drop)
            }
        };
        Outcome::Ended(match written {
            Ok(()) => ExitStatus::Exited(0),
            // Nobody reads any more: a process dies of SIGPIPE.
            Err(_) => ExitStatus::Signaled(13),
        })
    }
}

async fn line(stream: &mut (dyn AsyncWrite + Send + Unpin), text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.write_all(b"\n").await
}
