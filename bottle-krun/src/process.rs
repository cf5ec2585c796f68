//! The client's end of a process that runs inside a bottle.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use bottle_core::backend::{
    BackendError, Command, ExitStatus, Process, ProcessControl, SpawnFailure, Window,
};
use bottle_core::spec::UserName;
use bottle_wire::client::{self, Attach, Exec, ExecReport, Open, ProcessRequest};
use bottle_wire::message;
use bottle_wire::mux::{MuxStream, Opener};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadHalf, WriteHalf, empty, split};
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
    let Command {
        argv,
        env,
        cwd,
        user,
        stdin,
        tty,
        unheard,
        main,
    } = command;
    let exec = numbers.fetch_add(1, Ordering::Relaxed);
    let request = Exec {
        exec,
        argv: argv.clone(),
        env: env.clone(),
        cwd: cwd.clone(),
        user: user.as_ref().map(UserName::as_str).map(str::to_owned),
        stdin: *stdin,
        tty: tty.map(to_wire),
        main: *main,
    };
    let with = Streams {
        stdin: *stdin && !unheard,
        stdout: !unheard,
        stderr: !unheard && tty.is_none(),
    };
    match begin(opener, exec, with, Open::Exec(request)).await? {
        Ok(process) => Ok(process),
        Err(ExecReport::NotFound { program }) => Err(SpawnFailure::NotFound { program }.into()),
        Err(ExecReport::NotExecutable { program, why }) => {
            Err(SpawnFailure::NotExecutable { program, why }.into())
        }
        Err(ExecReport::Setup { program, why }) => Err(SpawnFailure::Setup { program, why }.into()),
        Err(report) => Err(out_of_turn(&report)),
    }
}

/// Attaches to the main process through the shim; `None` if there is none that runs.
///
/// # Errors
///
/// [`BackendError::Failed`] if the bottle has gone.
pub(crate) async fn attach(
    opener: &Opener<Open>,
    numbers: &AtomicU32,
    window: Option<Window>,
) -> Result<Option<Process>, BackendError> {
    let exec = numbers.fetch_add(1, Ordering::Relaxed);
    let attach = Attach {
        exec,
        window: window.map(to_wire),
    };
    let with = Streams {
        stdin: true,
        stdout: true,
        stderr: true,
    };
    match begin(opener, exec, with, Open::Attach(attach)).await? {
        Ok(process) => Ok(Some(process)),
        Err(ExecReport::NoMain) => Ok(None),
        Err(report) => Err(out_of_turn(&report)),
    }
}

/// Which standard streams are wanted.
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Opens streams and what they are for; the inner error is the shim's refusal.
async fn begin(
    opener: &Opener<Open>,
    exec: u32,
    with: Streams,
    open: Open,
) -> Result<Result<Process, ExecReport>, BackendError> {
    let gone = |source| failed("start a process in the bottle", ShimError::Gone { source });
    let opened = async |open: Open| {
        opener
            .open(&open)
            .await
            .map_err(|e| gone(Some(io::Error::other(e))))
    };
    let stream = async |wanted, fd| match wanted {
        true => opened(Open::Stdio { exec, fd }).await.map(Some),
        false => Ok(None),
    };
    let stdin = stream(with.stdin, 0).await?;
    let stdout = stream(with.stdout, 1).await?;
    let stderr = stream(with.stderr, 2).await?;
    let mut reports = opened(open).await?;
    let first = message::read::<_, ExecReport>(&mut reports)
        .await
        .map_err(|e| gone(Some(e)))?;
    match first {
        Some(ExecReport::Started) => Ok(Ok(Process {
            stdin: stdin.map(|stream| Box::new(stream) as _),
            stdout: output(stdout).await,
            stderr: output(stderr).await,
            control: Box::new(Control::new(reports)),
        })),
        Some(report) => Ok(Err(report)),
        None => Err(gone(None)),
    }
}

fn out_of_turn(report: &ExecReport) -> BackendError {
    let what = format!("{report:?}");
    failed(
        "start a process in the bottle",
        ShimError::OutOfTurn { what },
    )
}

fn to_wire(window: Window) -> client::Window {
    let Window {
        rows,
        cols,
        x_pixels,
        y_pixels,
    } = window;
    client::Window {
        rows,
        cols,
        x_pixels,
        y_pixels,
    }
}

/// What is read of an output; the other direction is ended, since it has no use.
async fn output(stream: Option<MuxStream>) -> Box<dyn AsyncRead + Send + Unpin> {
    let Some(mut stream) = stream else {
        return Box::new(empty());
    };
    // A connection that is over shows at the first read.
    let _ = stream.shutdown().await;
    Box::new(stream)
}

/// Signals to, and the end of, one process.
struct Control {
    requests: Mutex<WriteHalf<MuxStream>>,
    ended: watch::Receiver<Option<Result<ExitStatus, Lost>>>,
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

/// Why the end of a process is not known.
#[derive(Debug)]
enum Lost {
    /// We did not listen in time.
    Lagged,
    /// In words.
    Otherwise(String),
}

async fn last_report(mut reports: ReadHalf<MuxStream>) -> Result<ExitStatus, Lost> {
    let lost = |text| Err(Lost::Otherwise(text));
    match message::read::<_, ExecReport>(&mut reports).await {
        Ok(Some(ExecReport::Exited { code })) => Ok(ExitStatus::Exited(code)),
        Ok(Some(ExecReport::Signaled { signal })) => Ok(ExitStatus::Signaled(signal)),
        Ok(Some(ExecReport::Lagged)) => Err(Lost::Lagged),
        Ok(Some(report)) => lost(format!(
            "the bottle's host process answered out of turn: {report:?}"
        )),
        Ok(None) => lost("the bottle ended under the process".to_owned()),
        Err(error) => lost(format!("the bottle ended under the process: {error}")),
    }
}

impl Control {
    /// Asks something of a process; one that has ended takes no note.
    async fn request(&self, op: &str, request: ProcessRequest) -> Result<(), BackendError> {
        if self.ended.borrow().as_ref().is_some_and(Result::is_ok) {
            return Ok(());
        }
        let mut requests = self.requests.lock().await;
        message::write(&mut *requests, &request)
            .await
            .map_err(|error| {
                let source = Some(error);
                failed(op, ShimError::Gone { source })
            })
    }
}

#[async_trait]
impl ProcessControl for Control {
    async fn signal(&self, signal: i32) -> Result<(), BackendError> {
        let signal = u8::try_from(signal)
            .ok()
            .filter(|number| (1..=64).contains(number))
            .ok_or_else(|| failed("send a signal", format!("{signal} is not a Linux signal")))?;
        let request = ProcessRequest::Signal { signal };
        self.request("send a signal", request).await
    }

    async fn resize(&self, window: Window) -> Result<(), BackendError> {
        let request = ProcessRequest::Resize(to_wire(window));
        self.request("resize a terminal", request).await
    }

    async fn wait(&self) -> Result<ExitStatus, BackendError> {
        let mut ended = self.ended.clone();
        let last = ended.wait_for(Option::is_some).await;
        match last.as_deref() {
            Ok(Some(Ok(status))) => Ok(*status),
            Ok(Some(Err(Lost::Lagged))) => Err(BackendError::Lagged),
            Ok(Some(Err(Lost::Otherwise(text)))) => Err(failed("wait for a process", text.clone())),
            Ok(None) | Err(_) => Err(failed(
                "wait for a process",
                ShimError::Gone { source: None },
            )),
        }
    }
}
