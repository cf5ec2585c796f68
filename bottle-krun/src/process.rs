//! The client's end of a process that runs inside a bottle.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bottle_core::backend::{
    BackendError, Command, ExitStatus, Process, ProcessControl, SpawnFailure,
};
use bottle_core::spec::UserName;
use bottle_wire::client::{Exec, ExecReport, Open, SignalRequest};
use bottle_wire::message;
use bottle_wire::mux::{MuxStream, Opener};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, watch};

use crate::error::{ShimError, failed};

/// Starts a process through the shim.
///
/// # Errors
///
/// [`BackendError::Spawn`] if the guest could not start it, [`BackendError::Failed`] if the bottle
/// has gone.
pub(crate) async fn exec(
    opener: &Opener<Open>,
    numbers: &AtomicU32,
    command: &Command,
) -> Result<Process, BackendError> {
    let gone = |source| failed("start a process in the bottle", ShimError::Gone { source });
    let open = async |open: Open| {
        opener
            .open(&open)
            .await
            .map_err(|e| gone(Some(io::Error::other(e))))
    };
    let Command {
        argv,
        env,
        cwd,
        user,
        stdin,
        main,
    } = command;
    let exec = numbers.fetch_add(1, Ordering::Relaxed);
    let stdin_stream = if *stdin {
        Some(open(Open::Stdio { exec, fd: 0 }).await?)
    } else {
        None
    };
    let stdout = open(Open::Stdio { exec, fd: 1 }).await?;
    let stderr = open(Open::Stdio { exec, fd: 2 }).await?;
    let request = Exec {
        exec,
        argv: argv.clone(),
        env: env.clone(),
        cwd: cwd.clone(),
        user: user.as_ref().map(UserName::as_str).map(str::to_owned),
        stdin: *stdin,
        main: *main,
    };
    let mut reports = open(Open::Exec(request)).await?;
    let first = message::read::<_, ExecReport>(&mut reports)
        .await
        .map_err(|e| gone(Some(e)))?;
    let failure = match first {
        Some(ExecReport::Started) => {
            return Ok(Process {
                stdin: stdin_stream.map(|stream| Box::new(stream) as _),
                stdout: Box::new(read_only(stdout).await),
                stderr: Box::new(read_only(stderr).await),
                control: Box::new(Control::new(reports)),
            });
        }
        Some(ExecReport::NotFound { program }) => SpawnFailure::NotFound { program },
        Some(ExecReport::NotExecutable { program, why }) => {
            SpawnFailure::NotExecutable { program, why }
        }
        Some(ExecReport::Setup { program, why }) => SpawnFailure::Setup { program, why },
        Some(report) => {
            let what = format!("{report:?}");
            return Err(failed(
                "start a process in the bottle",
                ShimError::OutOfTurn { what },
            ));
        }
        None => return Err(gone(None)),
    };
    Err(failure.into())
}

/// Ends the direction that a process's output has no use for.
async fn read_only(mut stream: MuxStream) -> MuxStream {
    // A connection that is over shows at the first read.
    let _ = stream.shutdown().await;
    stream
}

/// Signals to, and the end of, one process.
struct Control {
    requests: Mutex<WriteHalf<MuxStream>>,
    ended: watch::Receiver<Option<Result<ExitStatus, String>>>,
}

impl Control {
    fn new(stream: MuxStream) -> Self {
        let (reports, requests) = split(stream);
        let (send, ended) = watch::channel(None);
        tokio::spawn(async move {
            let last = last_report(reports).await;
            // Nobody waits any more.
            let _ = send.send(Some(last));
        });
        Self {
            requests: Mutex::new(requests),
            ended,
        }
    }
}

async fn last_report(mut reports: ReadHalf<MuxStream>) -> Result<ExitStatus, String> {
    match message::read::<_, ExecReport>(&mut reports).await {
        Ok(Some(ExecReport::Exited { code })) => Ok(ExitStatus::Exited(code)),
        Ok(Some(ExecReport::Signaled { signal })) => Ok(ExitStatus::Signaled(signal)),
        Ok(Some(report)) => Err(format!(
            "the bottle's host process answered out of turn: {report:?}"
        )),
        Ok(None) => Err("the bottle ended under the process".to_owned()),
        Err(error) => Err(format!("the bottle ended under the process: {error}")),
    }
}

#[async_trait]
impl ProcessControl for Control {
    async fn signal(&self, signal: i32) -> Result<(), BackendError> {
        if self.ended.borrow().as_ref().is_some_and(Result::is_ok) {
            return Ok(());
        }
        let number = u8::try_from(signal)
            .ok()
            .filter(|number| (1..=64).contains(number))
            .ok_or_else(|| failed("send a signal", format!("{signal} is not a Linux signal")))?;
        let mut requests = self.requests.lock().await;
        message::write(&mut *requests, &SignalRequest { signal: number })
            .await
            .map_err(|source| {
                failed(
                    "send a signal",
                    ShimError::Gone {
                        source: Some(source),
                    },
                )
            })
    }

    async fn wait(&self) -> Result<ExitStatus, BackendError> {
        let mut ended = self.ended.clone();
        let last = ended.wait_for(Option::is_some).await;
        match last.as_deref() {
            Ok(Some(Ok(status))) => Ok(*status),
            Ok(Some(Err(text))) => Err(failed("wait for a process", text.clone())),
            Ok(None) | Err(_) => Err(failed(
                "wait for a process",
                ShimError::Gone { source: None },
            )),
        }
    }
}
