//! A process of the bottle: started, fed, listened to, signaled, reported.

mod spawn;
mod terminal;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::rc::Rc;

use bottle_wire::guest::{Exec, ExecReport, ProcessRequest, SpawnFailure};
use bottle_wire::message;
use bottle_wire::mux::MuxStream;
use bottle_wire::pump::{Pumped, pump};
use nix::libc;
use nix::unistd::Pid;
use tokio::io::{AsyncWriteExt, ReadHalf, sink, split};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle, spawn_local};

use self::spawn::{Ends, Spawned, Wanted, spawn};
use self::terminal::{Screen, Terminal};
use crate::carry::{drain, feed};
use crate::control::Habitat;
use crate::reap::{End, Reaper};
use crate::sys;

/// The streams that the host opened for a process.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) stdin: Option<MuxStream>,
    pub(crate) stdout: Option<MuxStream>,
    pub(crate) stderr: Option<MuxStream>,
}

/// Runs a process to its end and until its output has ended, too.
pub(crate) async fn run(
    habitat: Result<&Habitat, SpawnFailure>,
    reaper: &Reaper,
    exec: Exec,
    stdio: Stdio,
    stream: MuxStream,
) {
    // Whoever would hear of an error is the one who broke the stream.
    let _ = run_reporting(habitat, reaper, exec, stdio, stream).await;
}

async fn run_reporting(
    habitat: Result<&Habitat, SpawnFailure>,
    reaper: &Reaper,
    exec: Exec,
    stdio: Stdio,
    mut stream: MuxStream,
) -> io::Result<()> {
    let wanted = match exec.tty {
        Some(window) => Wanted::Terminal(window),
        None => Wanted::Pipes {
            stdin: exec.stdin && stdio.stdin.is_some(),
            stdout: stdio.stdout.is_some(),
            stderr: stdio.stderr.is_some(),
        },
    };
    let Spawned { pid, ends } = match habitat.and_then(|habitat| spawn(habitat, &exec, wanted)) {
        Ok(process) => process,
        Err(failure) => {
            for output in [stdio.stdout, stdio.stderr].into_iter().flatten() {
                end(output).await;
            }
            message::write(&mut stream, &ExecReport::Failed(failure)).await?;
            return stream.shutdown().await;
        }
    };
    let ended = reaper.register(pid);
    let Joined {
        terminal,
        lives,
        outputs,
    } = connect(ends, stdio);
    let pid_number = pid.as_raw().cast_unsigned();
    message::write(&mut stream, &ExecReport::Started { pid: pid_number }).await?;
    let (mut requests, mut reports) = split(stream);
    let report = tokio::select! {
        biased;
        ended = ended => match ended {
            Ok(End::Exited { code }) => ExecReport::Exited { code },
            Ok(End::Signaled { signal }) => ExecReport::Signaled { signal },
            Err(_) => return Err(io::ErrorKind::BrokenPipe.into()),
        },
        never = serve_requests(&mut requests, pid, &terminal) => match never {},
    };
    drop(lives);
    message::write(&mut reports, &report).await?;
    reports.shutdown().await?;
    for output in outputs {
        let _ = output.await;
    }
    Ok(())
}

/// A terminal as long as somebody may look at it.
type Watched = Rc<RefCell<Option<Terminal>>>;

/// What carries a process's streams.
struct Joined {
    terminal: Watched,
    /// To be dropped when the process has ended.
    lives: oneshot::Sender<Infallible>,
    /// Run until its outputs have ended.
    outputs: Vec<JoinHandle<()>>,
}

/// Joins the ends of a process's streams with the host's.
fn connect(ends: Ends, stdio: Stdio) -> Joined {
    let (lives, process) = oneshot::channel();
    match ends {
        Ends::Pipes {
            stdin,
            stdout,
            stderr,
        } => {
            if let (Some(pipe), Some(stream)) = (stdin, stdio.stdin) {
                spawn_local(feed(stream, pipe));
            }
            let outputs = [(stdout, stdio.stdout), (stderr, stdio.stderr)]
                .into_iter()
                .filter_map(|(pipe, stream)| Some((pipe?, stream?)))
                .map(|(pipe, stream)| spawn_local(async { drop(drain(pipe, stream).await) }));
            Joined {
                terminal: Watched::default(),
                lives,
                outputs: outputs.collect(),
            }
        }
        Ends::Terminal(terminal) => {
            let keys = stdio
                .stdin
                .map(|stream| spawn_local(feed(stream, terminal.clone())).abort_handle());
            let watched = Watched::new(RefCell::new(Some(terminal.clone())));
            let screen = Screen::new(terminal, process);
            let shown = show(screen, stdio.stdout, keys, Rc::clone(&watched));
            Joined {
                terminal: watched,
                lives,
                outputs: vec![spawn_local(shown)],
            }
        }
    }
}

/// Serves until the process's end. Its group is signaled while its leader is not reaped: the
/// number can't be anybody else's so long.
async fn serve_requests(
    requests: &mut ReadHalf<MuxStream>,
    pid: Pid,
    terminal: &Watched,
) -> Infallible {
    while let Ok(Some(request)) = message::read(requests).await {
        match request {
            ProcessRequest::Signal { signal } => {
                let _ = sys::signal_group(pid, libc::c_int::from(signal));
            }
            ProcessRequest::Resize(window) => {
                if let Some(terminal) = &*terminal.borrow() {
                    let _ = terminal.resize(window);
                }
            }
        }
    }
    pending().await
}

/// Carries what a terminal shows, to its end or until the host looks no longer. Then all that is
/// ours of the terminal is closed, and the kernel hangs it up.
async fn show(
    mut screen: Screen,
    stream: Option<MuxStream>,
    keys: Option<AbortHandle>,
    watched: Watched,
) {
    let shown = match stream {
        Some(stream) => drain(&mut screen, stream).await,
        None => pump(&mut screen, sink()).await,
    };
    // A process may close its terminal and live on: it is its terminal still.
    if matches!(shown, Ok(Pumped::Whole)) {
        screen.process_ended().await;
    }
    watched.borrow_mut().take();
    if let Some(keys) = keys {
        keys.abort();
    }
}

/// Ends an output that never had a process.
async fn end(mut stream: MuxStream) {
    let _ = stream.shutdown().await;
}
