//! The main process: started once, kept by the shim, heard and fed by any number of clients.
//!
//! ```text
//!                     ┌─► log                                every byte, always
//! guest: out, err ────┼─► the owner       waited for: a slow pipe slows the process down
//!                     └─► others          not waited for: who lags MAX_LAG behind is cut off
//! guest: in ◄── owner, others             an owner's end of input is the process's
//! ```
//!
//! The owner is the client with which the bottle ends. A detached bottle has none: nobody can hold
//! its process up.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bottle_core::backend::ExitStatus;
use bottle_core::log::LogStream;
use bottle_wire::client::{ExecReport, ProcessRequest, Window};
use bottle_wire::message;
use bottle_wire::mux::MuxStream;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};

use super::clients::{Pending, for_guest, last_report, to_report};
use super::screen::Screen;
use crate::main_log::LogWriter;

/// Bytes read from the guest at once.
const CHUNK: usize = 32 << 10;
/// Chunks that may wait for one client.
const MAX_LAG: usize = 64;

/// The main process, running or ended.
#[derive(Debug)]
pub(super) struct MainProcess {
    hub: Arc<Hub>,
    requests: AsyncMutex<WriteHalf<MuxStream>>,
    input: Arc<AsyncMutex<Option<WriteHalf<MuxStream>>>>,
    status: watch::Receiver<Option<ExitStatus>>,
    attached: Arc<AtomicU32>,
    tty: bool,
}

/// Where output goes.
struct Hub {
    inner: Mutex<Inner>,
}

struct Inner {
    /// Absent once it could not be written.
    log: Option<LogWriter>,
    screen: Option<Screen>,
    taps: Vec<Tap>,
    /// Outputs that have not ended.
    open: usize,
    /// Whether the bottle ends with its owner.
    owned: bool,
}

/// How a client listens.
#[derive(Clone, Copy, Debug)]
struct Manner {
    owner: bool,
    late: bool,
}

/// One output of one client.
struct Tap {
    stream: LogStream,
    sink: mpsc::Sender<Bytes>,
    owner: bool,
    lagged: watch::Sender<bool>,
}

/// The guest's ends of a process that has just started.
pub(super) struct GuestEnds {
    pub(super) stdin: Option<MuxStream>,
    pub(super) stdout: MuxStream,
    /// Absent if it has a terminal.
    pub(super) stderr: Option<MuxStream>,
    pub(super) requests: WriteHalf<MuxStream>,
    pub(super) reports: ReadHalf<MuxStream>,
    pub(super) tty: Option<Window>,
}

/// A client's ends.
pub(super) struct ClientEnds {
    /// Standard streams, as far as the client opened them.
    pub(super) stdio: [Option<MuxStream>; 3],
    /// Carries reports to it and requests from it.
    pub(super) control: MuxStream,
    /// Whether the bottle ends with it.
    pub(super) owner: bool,
    /// Whether it comes late, and is shown first what is on the screen.
    pub(super) late: bool,
}

impl MainProcess {
    /// Takes charge of a process. `on_end` hears of its end; what it said last may still be coming.
    pub(super) fn new(
        guest: GuestEnds,
        log: LogWriter,
        pending: &Pending,
        on_end: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Self {
        let GuestEnds {
            stdin,
            stdout,
            stderr,
            requests,
            reports,
            tty,
        } = guest;
        let outputs = [(LogStream::Out, Some(stdout)), (LogStream::Err, stderr)];
        let outputs: Vec<_> = outputs
            .into_iter()
            .filter_map(|(stream, end)| Some((stream, end?)))
            .collect();
        let hub = Arc::new(Hub {
            inner: Mutex::new(Inner {
                log: Some(log),
                owned: true,
                screen: tty.map(Screen::new),
                taps: Vec::new(),
                open: outputs.len(),
            }),
        });
        for (stream, from) in outputs {
            // The bottle's end waits for this task: what was said last is not lost.
            let (hub, pending) = (Arc::clone(&hub), pending.clone());
            tokio::spawn(async move {
                hub.carry(stream, from).await;
                drop(pending);
            });
        }
        let (send, status) = watch::channel(None);
        tokio::spawn(async move {
            // Without a status the bottle has ended under it, and that is told elsewhere.
            if let Ok(ended) = last_report(reports).await {
                send.send_replace(Some(ended));
                on_end(ended);
            }
        });
        let input = stdin.map(|stdin| {
            let (_, input) = split(stdin);
            input
        });
        Self {
            hub,
            requests: AsyncMutex::new(requests),
            input: Arc::new(AsyncMutex::new(input)),
            status,
            attached: Arc::default(),
            tty: tty.is_some(),
        }
    }

    /// The bottle ends with nobody any more, and waits for nobody.
    pub(super) fn release(&self) {
        self.hub.lock().owned = false;
    }

    pub(super) fn has_tty(&self) -> bool {
        self.tty
    }

    /// How many clients are attached.
    pub(super) fn attached(&self) -> u32 {
        self.attached.load(Ordering::Relaxed)
    }

    /// How it ended, if it has.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        *self.status.borrow()
    }

    /// Asks something of it.
    ///
    /// # Errors
    ///
    /// If the bottle has gone.
    pub(super) async fn request(&self, request: ProcessRequest) -> io::Result<()> {
        if let ProcessRequest::Resize(window) = request
            && let Some(screen) = &mut self.hub.lock().screen
        {
            screen.resize(window);
        }
        let Some(request) = for_guest(request) else {
            return Ok(());
        };
        message::write(&mut *self.requests.lock().await, &request).await
    }

    /// Serves a client until it goes, or the process has ended.
    ///
    /// # Errors
    ///
    /// If the client or the bottle has gone.
    pub(super) async fn serve(&self, client: ClientEnds, pending: Pending) -> io::Result<()> {
        let ClientEnds {
            stdio: [stdin, stdout, stderr],
            control,
            owner,
            late,
        } = client;
        let _attached = Attached::new(&self.attached);
        let (lagged, mut has_lagged) = watch::channel(false);
        self.hub.attach(
            [(LogStream::Out, stdout), (LogStream::Err, stderr)],
            Manner { owner, late },
            &lagged,
            &pending,
        );
        drop(lagged);
        if let Some(stdin) = stdin {
            let ends = owner && !self.tty;
            tokio::spawn(feed(stdin, Arc::clone(&self.input), ends));
        }
        let (mut requests, mut reports) = split(control);
        message::write(&mut reports, &ExecReport::Started).await?;
        let obey = async {
            while let Some(request) = message::read(&mut requests).await? {
                self.request(request).await?;
            }
            io::Result::Ok(())
        };
        let mut status = self.status.clone();
        let end = async {
            tokio::select! {
                ended = status.wait_for(Option::is_some) => {
                    ended.ok().and_then(|it| *it).map(to_report)
                }
                Ok(_) = has_lagged.wait_for(|lagged| *lagged) => Some(ExecReport::Lagged),
            }
        };
        tokio::pin!(end);
        let last = tokio::select! {
            last = &mut end => last,
            obeyed = obey => match obeyed {
                // A client that asks for nothing more may still wait for the end.
                Ok(()) => end.await,
                Err(error) => return Err(error),
            },
        };
        // Dropping it without a report says that the bottle has gone.
        let Some(last) = last else { return Ok(()) };
        message::write(&mut reports, &last).await?;
        reports.shutdown().await
    }
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries one output to everybody, to its end.
    async fn carry(&self, stream: LogStream, mut from: MuxStream) {
        // The guest has nothing to hear on it.
        let _ = from.shutdown().await;
        let mut chunk = vec![0; CHUNK];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let bytes = Bytes::copy_from_slice(chunk.get(..length).unwrap_or_default());
            let owner = self.tell(stream, &bytes);
            // Held outside of the lock: a slow owner holds up this output alone.
            if let Some(owner) = owner
                && owner.send(bytes).await.is_err()
                && self.lock().owned
            {
                // As with a pipe, the process learns that its reader has gone.
                break;
            }
        }
        let mut inner = self.lock();
        inner.open -= 1;
        inner.taps.retain(|tap| tap.stream != stream);
    }

    /// Logs and shows a chunk, and gives it to whoever is not waited for. Returns the owner's sink.
    fn tell(&self, stream: LogStream, bytes: &Bytes) -> Option<mpsc::Sender<Bytes>> {
        let mut inner = self.lock();
        if let Some(log) = &mut inner.log
            && let Err(error) = log.write(stream, bytes)
        {
            tracing::warn!(%error, "cannot write the log of the main process; it ends here");
            inner.log = None;
        }
        if let Some(screen) = &mut inner.screen {
            screen.write(bytes);
        }
        let mut owner = None;
        let owned = inner.owned;
        inner.taps.retain(|tap| {
            if tap.stream != stream {
                return true;
            }
            if tap.owner && owned {
                owner = Some(tap.sink.clone());
                return true;
            }
            match tap.sink.try_send(bytes.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tap.lagged.send_replace(true);
                    false
                }
                // It listens no more.
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        });
        owner
    }

    /// Adds a client's outputs, painted first if there is something to paint. Those of outputs that
    /// have ended end at once.
    fn attach(
        &self,
        outputs: [(LogStream, Option<MuxStream>); 2],
        Manner { owner, late }: Manner,
        lagged: &watch::Sender<bool>,
        pending: &Pending,
    ) {
        let mut inner = self.lock();
        for (stream, to) in outputs {
            let Some(to) = to else { continue };
            let (sink, chunks) = mpsc::channel(MAX_LAG);
            if late
                && stream == LogStream::Out
                && let Some(screen) = &mut inner.screen
            {
                // The queue is empty.
                let _ = sink.try_send(Bytes::from(screen.paint()));
            }
            if inner.open > 0 {
                inner.taps.push(Tap {
                    stream,
                    sink,
                    owner,
                    lagged: lagged.clone(),
                });
            }
            let pending = pending.clone();
            tokio::spawn(async move {
                if let Err(error) = pass_on(chunks, to).await {
                    tracing::debug!(%error, "a client listens no more");
                }
                drop(pending);
            });
        }
    }
}

impl Debug for Hub {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

/// Writes what comes to one client's stream, and ends it.
async fn pass_on(mut chunks: mpsc::Receiver<Bytes>, mut to: MuxStream) -> io::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        to.write_all(&chunk).await?;
        if chunks.is_empty() {
            to.flush().await?;
        }
    }
    to.shutdown().await
}

/// Passes a client's input on; if it `ends` the process's with its own, that too.
async fn feed(
    mut from: MuxStream,
    to: Arc<AsyncMutex<Option<WriteHalf<MuxStream>>>>,
    ends: bool,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = from.read(&mut chunk).await?;
        let mut to = to.lock().await;
        if length == 0 {
            if ends && let Some(mut input) = to.take() {
                input.shutdown().await?;
            }
            // Ended in our direction too, so that dropping it is no reset.
            return from.shutdown().await;
        }
        let Some(input) = &mut *to else { return Ok(()) };
        input
            .write_all(chunk.get(..length).unwrap_or_default())
            .await?;
        input.flush().await?;
    }
}

/// Counts a client as long as it is attached.
struct Attached(Arc<AtomicU32>);

impl Attached {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
