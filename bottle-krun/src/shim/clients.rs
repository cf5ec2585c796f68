//! What clients ask of a running bottle: processes, its end, and word of its end.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bottle_core::backend::{Ended, ExitStatus};
use bottle_wire::client::{
    self, Condition, Done, Exec, ExecReport, Inspection, LaunchPort, MainStatus, Open,
    ProcessRequest,
};
use bottle_wire::guest::{self, FromHost, SpawnFailure};
use bottle_wire::message::{self, Message};
use bottle_wire::mux::{Incoming, MuxStream, Opener};
use bottle_wire::pump::pump;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, mpsc, watch};

use super::main_process::{ClientEnds, GuestEnds, MainProcess};
use crate::main_log::LogWriter;

/// Standard streams that wait for their process, per client.
const MAX_WAITING_STDIO: usize = 64;
/// How long a bottle whose main process has ended gives to what else runs in it.
const AFTER_MAIN: Duration = Duration::ZERO;

/// What all clients of one bottle share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Opens streams to init.
    pub(super) guest: Opener<FromHost>,
    /// What a process with an empty `argv` runs.
    pub(super) default_argv: Vec<String>,
    /// Where the log of the main process goes.
    pub(super) state_dir: PathBuf,
    /// The guest kernel's release.
    pub(super) kernel: String,
    /// What leads into it.
    pub(super) ports: Vec<LaunchPort>,
    /// Since when it runs.
    pub(super) started_ms: u64,
    /// Numbers processes within this boot.
    pub(super) numbers: AtomicU32,
    /// Processes besides the main one.
    pub(super) execs: AtomicU32,
    /// The main process, once it was started.
    pub(super) main: Mutex<Option<Arc<MainProcess>>>,
    /// How the main process ended.
    pub(super) main_ended: watch::Sender<Option<ExitStatus>>,
    /// Whether the bottle goes on without the client that launched it.
    pub(super) detached: watch::Sender<bool>,
    /// Requests to stop, with their grace.
    pub(super) stop: mpsc::Sender<Duration>,
    /// What it does just now.
    pub(super) condition: watch::Receiver<Condition>,
    /// How the bottle ended.
    pub(super) ended: watch::Receiver<Option<Ended>>,
}

/// A client may still have to be told something while one of these lives.
pub(super) type Pending = mpsc::Sender<()>;

/// Serves one client until it goes away; the `owner` is the one that launched the bottle.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut incoming: Incoming<Open>,
    owner: bool,
    pending: Pending,
) {
    let mut stdio: HashMap<(u32, u8), MuxStream> = HashMap::new();
    while let Some((open, stream)) = incoming.accept().await {
        match open {
            Open::Wait => {
                tokio::spawn(tell_end(shared.ended.clone(), stream, pending.clone()));
            }
            Open::Watch => {
                tokio::spawn(tell_conditions(shared.condition.clone(), stream));
            }
            Open::Inspect => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { tell(stream, &inspect(&shared).await).await });
            }
            Open::Stop { grace_ms } => {
                // A full queue means that a stop is under way.
                let _ = shared.stop.try_send(Duration::from_millis(grace_ms));
                tokio::spawn(tell_stopped(shared.ended.clone(), stream, pending.clone()));
            }
            Open::Kill { signal } => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    // Dropping the stream resets it.
                    let main = shared.main.lock().await.clone();
                    let main = main.filter(|main| main.status().is_none())?;
                    let request = ProcessRequest::Signal { signal };
                    main.request(request).await.ok()?;
                    tell(stream, &Done {}).await;
                    Some(())
                });
            }
            Open::Release => {
                shared.detached.send_replace(true);
                if let Some(main) = &*shared.main.lock().await {
                    main.release();
                }
                tokio::spawn(async move { tell(stream, &Done {}).await });
            }
            Open::Stdio { exec, fd } if fd < 3 && stdio.len() < MAX_WAITING_STDIO => {
                stdio.insert((exec, fd), stream);
            }
            Open::Exec(exec) => {
                let streams = [0, 1, 2].map(|fd| stdio.remove(&(exec.exec, fd)));
                let (shared, pending) = (Arc::clone(&shared), pending.clone());
                tokio::spawn(async move {
                    let served = if exec.main {
                        run_main(&shared, exec, streams, stream, owner, pending).await
                    } else {
                        let _count = Count::new(&shared.execs);
                        run(&shared, exec, streams, stream).await
                    };
                    note(served);
                });
            }
            Open::Attach(attach) => {
                let stdio = [0, 1, 2].map(|fd| stdio.remove(&(attach.exec, fd)));
                let (shared, pending) = (Arc::clone(&shared), pending.clone());
                tokio::spawn(async move {
                    note(self::attach(&shared, attach, stdio, stream, pending).await);
                });
            }
            // Dropping the stream resets it.
            Open::Launch(_) | Open::Stdio { .. } | _ => {}
        }
    }
}

fn note(served: io::Result<()>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a process lost its client or its bottle");
    }
}

/// Answers a question, and waits until that was read.
async fn tell<M: Message>(mut stream: MuxStream, answer: &M) {
    if message::write(&mut stream, answer).await.is_ok() {
        // Its end of file says that it has read the message.
        let _ = stream.read_u8().await;
    }
}

async fn tell_end(mut ended: watch::Receiver<Option<Ended>>, stream: MuxStream, _pending: Pending) {
    let Ok(last) = ended
        .wait_for(Option::is_some)
        .await
        .map(|last| last.clone())
    else {
        return;
    };
    let Some(last) = last else { return };
    tell(stream, &to_wire(last)).await;
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
    stream: MuxStream,
    _pending: Pending,
) {
    if ended.wait_for(Option::is_some).await.is_ok() {
        tell(stream, &Done {}).await;
    }
}

async fn inspect(shared: &Shared) -> Inspection {
    let main = shared.main.lock().await.clone();
    Inspection {
        shim_pid: process::id(),
        started_ms: shared.started_ms,
        kernel: shared.kernel.clone(),
        ports: shared.ports.clone(),
        main_started: main.is_some(),
        tty: main.as_ref().is_some_and(|main| main.has_tty()),
        attached: main.as_ref().map_or(0, |main| main.attached()),
        execs: shared.execs.load(Ordering::Relaxed),
    }
}

fn to_wire(ended: Ended) -> client::Ended {
    match ended {
        Ended::Goodbye(main) => client::Ended::Goodbye {
            main: main.map(|status| match status {
                ExitStatus::Exited(code) => MainStatus::Exited(code),
                ExitStatus::Signaled(signal) => MainStatus::Signaled(signal),
            }),
        },
        Ended::Killed => client::Ended::Killed,
        Ended::Crashed(why) => client::Ended::Crashed { why },
    }
}

/// A process that runs in the guest, its streams joined with nobody's yet.
struct Spawned {
    /// Those that were asked for.
    stdio: [Option<MuxStream>; 3],
    reports: ReadHalf<MuxStream>,
    requests: WriteHalf<MuxStream>,
}

/// Starts a process in the guest, with the standard streams that are `wanted`; or says why not.
async fn spawn(
    shared: &Shared,
    request: Exec,
    wanted: [bool; 3],
) -> io::Result<Result<Spawned, ExecReport>> {
    let Exec {
        exec: _,
        mut argv,
        env,
        cwd,
        user,
        stdin,
        tty,
        main: _,
    } = request;
    if argv.is_empty() {
        argv.clone_from(&shared.default_argv);
    }
    let program = argv.first().cloned().unwrap_or_default();
    let exec = shared.numbers.fetch_add(1, Ordering::Relaxed);
    let mut stdio = [None, None, None];
    for ((fd, slot), wanted) in (0_u8..).zip(&mut stdio).zip(wanted) {
        if wanted {
            let open = shared.guest.open(&FromHost::Stdio { exec, fd }).await;
            *slot = Some(open.map_err(io::Error::other)?);
        }
    }
    let request = guest::Exec {
        exec,
        argv,
        env,
        cwd,
        user,
        stdin,
        tty: tty.map(to_guest),
    };
    let guest = shared
        .guest
        .open(&FromHost::Exec(request))
        .await
        .map_err(io::Error::other)?;
    let (mut reports, requests) = split(guest);
    Ok(match next_report(&mut reports).await? {
        guest::ExecReport::Started { .. } => Ok(Spawned {
            stdio,
            reports,
            requests,
        }),
        report @ (guest::ExecReport::Failed(_)
        | guest::ExecReport::Exited { .. }
        | guest::ExecReport::Signaled { .. }) => Err(translate(report, program)),
    })
}

/// Runs one process in the guest for a client.
async fn run(
    shared: &Shared,
    request: Exec,
    streams: [Option<MuxStream>; 3],
    mut client: MuxStream,
) -> io::Result<()> {
    let wanted = [0, 1, 2].map(|fd: usize| streams.get(fd).is_some_and(Option::is_some));
    let spawned = match spawn(shared, request, wanted).await? {
        Ok(spawned) => spawned,
        Err(failure) => {
            message::write(&mut client, &failure).await?;
            return client.shutdown().await;
        }
    };
    let Spawned {
        stdio,
        reports,
        mut requests,
    } = spawned;
    for (ours, theirs) in streams.into_iter().zip(stdio) {
        if let (Some(ours), Some(theirs)) = (ours, theirs) {
            tokio::spawn(join(ours, theirs));
        }
    }
    message::write(&mut client, &ExecReport::Started).await?;
    let (mut asked, mut client) = split(client);
    let forward = async {
        while let Some(request) = message::read(&mut asked).await? {
            let Some(request) = for_guest(request) else {
                continue;
            };
            message::write(&mut requests, &request).await?;
        }
        io::Result::Ok(())
    };
    let last = async {
        let report = to_report(last_report(reports).await?);
        message::write(&mut client, &report).await?;
        client.shutdown().await
    };
    tokio::pin!(last);
    tokio::select! {
        done = &mut last => done,
        // A client that asks for nothing more may still wait for the end.
        forwarded = forward => {
            forwarded?;
            last.await
        }
    }
}

/// Starts the main process, and serves the client that did.
async fn run_main(
    shared: &Arc<Shared>,
    request: Exec,
    streams: [Option<MuxStream>; 3],
    mut client: MuxStream,
    owner: bool,
    pending: Pending,
) -> io::Result<()> {
    let mut slot = shared.main.lock().await;
    let detached = *shared.detached.borrow();
    let program = request.argv.first().cloned().unwrap_or_default();
    let tty = request.tty;
    let started = if slot.is_some() {
        let why = "there is a main process already".to_owned();
        Err(ExecReport::Setup { program, why })
    } else {
        let wanted = [request.stdin, true, tty.is_none()];
        spawn(shared, request, wanted).await?
    };
    let spawned = match started {
        Ok(spawned) => spawned,
        Err(failure) => {
            message::write(&mut client, &failure).await?;
            return client.shutdown().await;
        }
    };
    let Spawned {
        stdio: [stdin, stdout, stderr],
        reports,
        requests,
    } = spawned;
    let ends = GuestEnds {
        stdin,
        stdout: stdout.ok_or(io::ErrorKind::NotFound)?,
        stderr,
        requests,
        reports,
        tty,
    };
    let log = LogWriter::open(&shared.state_dir)?;
    let its_end = Arc::clone(shared);
    let main = Arc::new(MainProcess::new(ends, log, &pending, move |status| {
        its_end.main_ended.send_replace(Some(status));
        if *its_end.detached.borrow() {
            // Its bottle has nothing more to do. A full queue means that it is ending.
            let _ = its_end.stop.try_send(AFTER_MAIN);
        }
    }));
    if detached {
        main.release();
    }
    *slot = Some(Arc::clone(&main));
    drop(slot);
    let ends = ClientEnds {
        stdio: streams,
        control: client,
        owner: owner && !detached,
        late: false,
    };
    main.serve(ends, pending).await
}

/// Attaches a client to the main process.
async fn attach(
    shared: &Shared,
    attach: client::Attach,
    stdio: [Option<MuxStream>; 3],
    mut client: MuxStream,
    pending: Pending,
) -> io::Result<()> {
    let main = shared.main.lock().await.clone();
    let Some(main) = main.filter(|main| main.status().is_none()) else {
        message::write(&mut client, &ExecReport::NoMain).await?;
        return client.shutdown().await;
    };
    if let Some(window) = attach.window {
        main.request(ProcessRequest::Resize(window)).await?;
    }
    let ends = ClientEnds {
        stdio,
        control: client,
        owner: false,
        late: true,
    };
    main.serve(ends, pending).await
}

/// Counts a process as long as it is served.
struct Count<'a>(&'a AtomicU32);

impl<'a> Count<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client asks of a process, as the guest is asked; `None` if this release does not know it.
pub(super) fn for_guest(request: ProcessRequest) -> Option<guest::ProcessRequest> {
    match request {
        ProcessRequest::Signal { signal } => Some(guest::ProcessRequest::Signal { signal }),
        ProcessRequest::Resize(window) => Some(guest::ProcessRequest::Resize(to_guest(window))),
        ProcessRequest::Unknown | _ => None,
    }
}

fn to_guest(window: client::Window) -> guest::Window {
    let client::Window {
        rows,
        cols,
        x_pixels,
        y_pixels,
    } = window;
    guest::Window {
        rows,
        cols,
        x_pixels,
        y_pixels,
    }
}

/// The last report of a process that ended so.
pub(super) fn to_report(status: ExitStatus) -> ExecReport {
    match status {
        ExitStatus::Exited(code) => ExecReport::Exited { code },
        ExitStatus::Signaled(signal) => ExecReport::Signaled { signal },
    }
}

/// Waits for the end of a process.
///
/// # Errors
///
/// If the bottle ended under it.
pub(super) async fn last_report(mut reports: ReadHalf<MuxStream>) -> io::Result<ExitStatus> {
    match next_report(&mut reports).await? {
        guest::ExecReport::Exited { code } => Ok(ExitStatus::Exited(code)),
        guest::ExecReport::Signaled { signal } => Ok(ExitStatus::Signaled(signal)),
        guest::ExecReport::Started { .. } | guest::ExecReport::Failed(_) => {
            Err(io::Error::other("the guest reported out of turn"))
        }
    }
}

async fn next_report(reports: &mut (impl AsyncRead + Unpin)) -> io::Result<guest::ExecReport> {
    message::read(reports)
        .await?
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Words a report that is no start.
fn translate(report: guest::ExecReport, program: String) -> ExecReport {
    match report {
        guest::ExecReport::Failed(SpawnFailure::NotFound) => ExecReport::NotFound { program },
        guest::ExecReport::Failed(SpawnFailure::NotExecutable(why)) => {
            ExecReport::NotExecutable { program, why }
        }
        guest::ExecReport::Failed(SpawnFailure::Setup(why)) => ExecReport::Setup { program, why },
        guest::ExecReport::Failed(SpawnFailure::TooMany { limit }) => {
            let why = format!("{limit} processes are served in this bottle, which is the limit");
            ExecReport::Setup { program, why }
        }
        guest::ExecReport::Started { .. }
        | guest::ExecReport::Exited { .. }
        | guest::ExecReport::Signaled { .. } => ExecReport::Setup {
            program,
            why: "the guest reported out of turn".to_owned(),
        },
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
