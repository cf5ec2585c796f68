//! What clients ask of a running bottle: processes, its end, and word of its end.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bottle_core::backend::{Ended, ExitStatus};
use bottle_wire::client::{
    self, Condition, Exec, ExecReport, MainStatus, Open, SignalRequest, StopReport,
};
use bottle_wire::guest::{self, FromHost, SpawnFailure};
use bottle_wire::message;
use bottle_wire::mux::{Incoming, MuxStream, Opener};
use bottle_wire::pump::pump;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, split};
use tokio::sync::{mpsc, watch};

/// Standard streams that wait for their process, per client.
const MAX_WAITING_STDIO: usize = 64;

/// What all clients of one bottle share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Opens streams to init.
    pub(super) guest: Opener<FromHost>,
    /// What a process with an empty `argv` runs.
    pub(super) default_argv: Vec<String>,
    /// Numbers processes within this boot.
    pub(super) numbers: AtomicU32,
    /// How the main process ended.
    pub(super) main: watch::Sender<Option<ExitStatus>>,
    /// Requests to stop, with their grace.
    pub(super) stop: mpsc::Sender<Duration>,
    /// What it does just now.
    pub(super) condition: watch::Receiver<Condition>,
    /// How the bottle ended.
    pub(super) ended: watch::Receiver<Option<Ended>>,
}

/// A client may still have to be told something while one of these lives.
pub(super) type Pending = mpsc::Sender<()>;

/// Serves one client until it goes away.
pub(super) async fn serve(shared: Arc<Shared>, mut incoming: Incoming<Open>, pending: Pending) {
    let mut stdio: HashMap<(u32, u8), MuxStream> = HashMap::new();
    while let Some((open, stream)) = incoming.accept().await {
        match open {
            Open::Wait => {
                tokio::spawn(tell_end(shared.ended.clone(), stream, pending.clone()));
            }
            Open::Watch => {
                tokio::spawn(tell_conditions(shared.condition.clone(), stream));
            }
            Open::Stop { grace_ms } => {
                // A full queue means that a stop is under way.
                let _ = shared.stop.try_send(Duration::from_millis(grace_ms));
                tokio::spawn(tell_stopped(shared.ended.clone(), stream, pending.clone()));
            }
            Open::Stdio { exec, fd } if fd < 3 && stdio.len() < MAX_WAITING_STDIO => {
                stdio.insert((exec, fd), stream);
            }
            Open::Exec(exec) => {
                let streams = [0, 1, 2].map(|fd| stdio.remove(&(exec.exec, fd)));
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(error) = run(&shared, exec, streams, stream).await {
                        tracing::debug!(%error, "a process lost its client or its bottle");
                    }
                });
            }
            // Dropping the stream resets it.
            Open::Launch(_) | Open::Stdio { .. } | _ => {}
        }
    }
}

async fn tell_end(
    mut ended: watch::Receiver<Option<Ended>>,
    mut stream: MuxStream,
    _pending: Pending,
) {
    let Ok(last) = ended
        .wait_for(Option::is_some)
        .await
        .map(|last| last.clone())
    else {
        return;
    };
    let Some(last) = last else { return };
    if message::write(&mut stream, &to_wire(last)).await.is_ok() {
        // Its end of file says that it has read the message.
        let _ = stream.read_u8().await;
    }
}

async fn tell_conditions(mut condition: watch::Receiver<Condition>, mut stream: MuxStream) {
    loop {
        let now = condition.borrow_and_update().clone();
        if message::write(&mut stream, &now).await.is_err() || condition.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_stopped(
    mut ended: watch::Receiver<Option<Ended>>,
    mut stream: MuxStream,
    _pending: Pending,
) {
    if ended.wait_for(Option::is_some).await.is_ok()
        && message::write(&mut stream, &StopReport {}).await.is_ok()
    {
        let _ = stream.read_u8().await;
    }
}

fn to_wire(ended: Ended) -> client::Ended {
    match ended {
        Ended::Goodbye(main) => client::Ended::Goodbye(main.map(|status| match status {
            ExitStatus::Exited(code) => MainStatus::Exited(code),
            ExitStatus::Signaled(signal) => MainStatus::Signaled(signal),
        })),
        Ended::Killed => client::Ended::Killed,
        Ended::Crashed(why) => client::Ended::Crashed(why),
    }
}

/// Runs one process in the guest for a client.
async fn run(
    shared: &Shared,
    request: Exec,
    streams: [Option<MuxStream>; 3],
    mut client: MuxStream,
) -> io::Result<()> {
    let Exec {
        exec: _,
        mut argv,
        env,
        cwd,
        user,
        stdin,
        main,
    } = request;
    if argv.is_empty() {
        argv.clone_from(&shared.default_argv);
    }
    let program = argv.first().cloned().unwrap_or_default();
    let exec = shared.numbers.fetch_add(1, Ordering::Relaxed);
    for (fd, stream) in (0_u8..).zip(streams) {
        let Some(stream) = stream else { continue };
        let guest = shared.guest.open(&FromHost::Stdio { exec, fd }).await;
        tokio::spawn(join(stream, guest.map_err(io::Error::other)?));
    }
    let request = guest::Exec {
        exec,
        argv,
        env,
        cwd,
        user,
        stdin,
        tty: None,
    };
    let guest = shared
        .guest
        .open(&FromHost::Exec(request))
        .await
        .map_err(io::Error::other)?;
    let (mut reports, mut requests) = split(guest);

    let first = next_report(&mut reports).await?;
    let started = matches!(first, guest::ExecReport::Started { .. });
    message::write(&mut client, &translate(first, &program)).await?;
    if !started {
        return client.shutdown().await;
    }
    let (mut signals, mut client) = split(client);
    let forward_signals = async {
        while let Some(SignalRequest { signal }) = message::read(&mut signals).await? {
            message::write(&mut requests, &guest::ProcessRequest::Signal { signal }).await?;
        }
        io::Result::Ok(())
    };
    let last_report = async {
        let last = next_report(&mut reports).await?;
        let status = match &last {
            guest::ExecReport::Exited { code } => Some(ExitStatus::Exited(*code)),
            guest::ExecReport::Signaled { signal } => Some(ExitStatus::Signaled(*signal)),
            guest::ExecReport::Started { .. } | guest::ExecReport::Failed(_) => None,
        };
        if main && status.is_some() {
            shared.main.send_replace(status);
        }
        message::write(&mut client, &translate(last, &program)).await?;
        client.shutdown().await
    };
    tokio::pin!(last_report);
    tokio::select! {
        done = &mut last_report => done,
        // A client that sends no more signals may still wait for the end.
        forwarded = forward_signals => {
            forwarded?;
            last_report.await
        }
    }
}

async fn next_report(reports: &mut (impl AsyncRead + Unpin)) -> io::Result<guest::ExecReport> {
    message::read(reports)
        .await?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

fn translate(report: guest::ExecReport, program: &str) -> ExecReport {
    let program = program.to_owned();
    match report {
        guest::ExecReport::Started { .. } => ExecReport::Started,
        guest::ExecReport::Failed(SpawnFailure::NotFound) => ExecReport::NotFound { program },
        guest::ExecReport::Failed(SpawnFailure::NotExecutable(why)) => {
            ExecReport::NotExecutable { program, why }
        }
        guest::ExecReport::Failed(SpawnFailure::Setup(why)) => ExecReport::Setup { program, why },
        guest::ExecReport::Failed(SpawnFailure::TooMany { limit }) => {
            let why = format!("{limit} processes are served in this bottle, which is the limit");
            ExecReport::Setup { program, why }
        }
        guest::ExecReport::Exited { code } => ExecReport::Exited { code },
        guest::ExecReport::Signaled { signal } => ExecReport::Signaled { signal },
    }
}

/// Moves bytes both ways until both directions are over.
///
/// A sink that listens no longer ends its own direction only: whoever has ended a stream and
/// dropped it has reset it too, and what came before that has still to arrive. A source that was
/// reset ends both, and dropping them is the reset of the others.
async fn join(client: MuxStream, guest: MuxStream) {
    let (from_client, to_client) = split(client);
    let (from_guest, to_guest) = split(guest);
    let both = async { tokio::try_join!(pump(from_client, to_guest), pump(from_guest, to_client)) };
    if let Err(error) = both.await {
        tracing::debug!(%error, "a standard stream was reset");
    }
}

#[cfg(test)]
mod tests {
    use bottle_wire::mux::{Side, start};
    use tokio::io::duplex;
    use tokio::task::yield_now;

    use super::*;

    /// Returns a stream and its other end.
    async fn pair() -> (MuxStream, MuxStream) {
        let (here, there) = duplex(1 << 16);
        let (opener, _, driver) = start::<_, u8, u8>(here, Side::Dialer);
        let (_, mut incoming, other_driver) = start::<_, u8, u8>(there, Side::Listener);
        tokio::spawn(driver);
        tokio::spawn(other_driver);
        let near = opener.open(&0).await.unwrap();
        let (_, far) = incoming.accept().await.unwrap();
        (near, far)
    }

    /// The guest ends its direction at once, the client drops an input that it has ended: neither
    /// may cost a byte of what came before.
    #[tokio::test]
    async fn an_input_that_was_ended_and_dropped_arrives_whole() {
        let (mut client, client_end) = pair().await;
        let (guest_end, mut guest) = pair().await;
        client.write_all(b"short").await.unwrap();
        client.shutdown().await.unwrap();
        drop(client);
        guest.shutdown().await.unwrap();
        let (client_end, guest_end) = (settled(client_end).await, settled(guest_end).await);
        tokio::spawn(join(client_end, guest_end));
        let mut heard = String::new();
        guest.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "short");
    }

    /// Lets the drivers deliver what they have.
    async fn settled(stream: MuxStream) -> MuxStream {
        for _ in 0..100 {
            yield_now().await;
        }
        stream
    }
}
