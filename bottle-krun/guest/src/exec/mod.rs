//! A process of the bottle: started, fed, listened to, signaled, reported.

mod spawn;

use std::convert::Infallible;
use std::future::pending;
use std::io;

use bottle_wire::guest::{Exec, ExecReport, SignalRequest, SpawnFailure};
use bottle_wire::message;
use bottle_wire::mux::MuxStream;
use bottle_wire::pump::pump;
use nix::libc;
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, split};
use tokio::net::unix::pipe;
use tokio::task::{JoinHandle, spawn_local};

use self::spawn::{Pipes, Spawned, spawn};
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
    habitat: Result<&Habitat, &'static str>,
    reaper: &Reaper,
    exec: Exec,
    stdio: Stdio,
    stream: MuxStream,
) {
    // Whoever would hear of an error is the one who broke the stream.
    let _ = run_reporting(habitat, reaper, exec, stdio, stream).await;
}

async fn run_reporting(
    habitat: Result<&Habitat, &'static str>,
    reaper: &Reaper,
    exec: Exec,
    stdio: Stdio,
    mut stream: MuxStream,
) -> io::Result<()> {
    let pipes = Pipes {
        stdin: exec.stdin && stdio.stdin.is_some(),
        stdout: stdio.stdout.is_some(),
        stderr: stdio.stderr.is_some(),
    };
    let started = habitat
        .map_err(|why| SpawnFailure::Setup(why.to_owned()))
        .and_then(|habitat| spawn(habitat, &exec, pipes));
    let process = match started {
        Ok(process) => process,
        Err(failure) => {
            for output in [stdio.stdout, stdio.stderr].into_iter().flatten() {
                end(output).await;
            }
            message::write(&mut stream, &ExecReport::Failed(failure)).await?;
            return stream.shutdown().await;
        }
    };
    let Spawned {
        pid,
        stdin,
        stdout,
        stderr,
    } = process;
    let ended = reaper.register(pid);
    let outputs = [connect(stdout, stdio.stdout), connect(stderr, stdio.stderr)];
    if let (Some(pipe), Some(stream)) = (stdin, stdio.stdin) {
        spawn_local(feed(stream, pipe));
    }
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
        never = serve_signals(&mut requests, pid) => match never {},
    };
    message::write(&mut reports, &report).await?;
    reports.shutdown().await?;
    for output in outputs.into_iter().flatten() {
        let _ = output.await;
    }
    Ok(())
}

/// Signals the group while its leader is not reaped: its number can't be anybody else's so long.
async fn serve_signals(requests: &mut ReadHalf<MuxStream>, pid: Pid) -> Infallible {
    while let Ok(Some(SignalRequest { signal })) = message::read(requests).await {
        let _ = sys::signal_group(pid, libc::c_int::from(signal));
    }
    pending().await
}

fn connect(pipe: Option<pipe::Receiver>, stream: Option<MuxStream>) -> Option<JoinHandle<()>> {
    Some(spawn_local(drain(pipe?, stream?)))
}

/// Carries what the process says, until nobody can say anything any more or nobody listens.
async fn drain(pipe: pipe::Receiver, stream: MuxStream) {
    let (mut other, writer) = split(stream);
    let given_up = async {
        loop {
            match other.read(&mut [0; 64]).await {
                Ok(0) => pending().await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    tokio::select! {
        _ = pump(pipe, writer) => {}
        () = given_up => {}
    }
}

/// Carries what the process hears. If it does not want to hear more, the stream is reset.
async fn feed(mut stream: MuxStream, pipe: pipe::Sender) {
    if stream.shutdown().await.is_ok() {
        let _ = pump(&mut stream, pipe).await;
    }
}

/// Ends an output that never had a process.
async fn end(mut stream: MuxStream) {
    let _ = stream.shutdown().await;
}
