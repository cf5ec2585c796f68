//! A bottle that runs: streams from the guest, clients, and every way in which it may end.

use std::collections::HashSet;
use std::fs::File;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, SystemTime};

use bottle_core::backend::{Ended, ExitStatus};
use bottle_core::event::{EventSink, Happening, unix_ms};
use bottle_core::policy::Reason;
use bottle_core::text::Escaped;
use bottle_egress::Egress;
use bottle_wire::client::{Condition, Open, greet};
use bottle_wire::guest::{FromGuest, ToHost};
use bottle_wire::mux::{self, Incoming, MuxError, MuxStream, Side};
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::clients::{self, Pending, Shared};
use super::clock;
use super::console::Console;
use super::guest_link::{ControlSocket, GuestLink, next_word, shut_down};
use super::ports::Ports;
use super::room::Room;
use crate::error::last_lines;
use crate::random;
use crate::record::Record;
use crate::stored::millis;
use crate::vmm::launch::{Brake, Vm, VmEnd};

/// How much longer than its grace the guest may take to say goodbye.
const GOODBYE_MARGIN: Duration = Duration::from_secs(5);
/// How long a client may take for its first words.
const GREETING: Duration = Duration::from_secs(10);
/// The grace of a bottle whose time is over, as docker has it.
const AFTER_LIMIT: Duration = Duration::from_secs(10);
/// How long clients have to take note of the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How many different UDP destinations are recorded.
const MAX_UDP_EVENTS: usize = 256;

/// A VM, its link, and what serves it.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) vm: Vm,
    pub(super) link: GuestLink,
    pub(super) tripwire: ControlSocket,
    pub(super) egress: Egress,
    pub(super) console: Console,
    pub(super) record: Arc<Record>,
    /// Of an overlay on a disk, with what freezes the machine when there is none left.
    pub(super) room: Option<(Room, Brake)>,
    pub(super) ports: Ports,
    /// Locked as long as the bottle runs, so that nobody removes its image.
    pub(super) disk: File,
    pub(super) default_argv: Vec<String>,
    pub(super) state_dir: PathBuf,
    /// Whether the bottle goes on without the client that launched it.
    pub(super) detached: bool,
    /// How long it may run.
    pub(super) limit: Option<Duration>,
}

impl Running {
    /// Serves until the bottle has ended, and ends it: afterwards the VM is gone.
    ///
    /// `owner` carries the requests of the client that launched the bottle, and `owner_gone`
    /// resolves when it goes. `farewell` is called between the VM's end and the news of it.
    pub(super) async fn serve(
        self,
        owner: Incoming<Open>,
        owner_gone: JoinHandle<Result<(), MuxError>>,
        listener: UnixListener,
        farewell: impl FnOnce(&Ended),
    ) {
        let Self {
            mut vm,
            link,
            tripwire,
            egress,
            console,
            record,
            room,
            ports,
            disk: _disk,
            default_argv,
            state_dir,
            detached,
            limit,
        } = self;
        let GuestLink {
            opener,
            incoming,
            control,
            driver,
            kernel,
        } = link;
        let (ended_send, ended) = watch::channel(None);
        let (condition_send, condition) = watch::channel(Condition::Running);
        let (stop, mut stops) = mpsc::channel(1);
        let (main_ended, main_status) = watch::channel(None);
        let (detached, is_detached) = watch::channel(detached);
        let shared = Arc::new(Shared {
            guest: opener,
            default_argv,
            state_dir,
            kernel,
            ports: ports.bound(),
            started_ms: unix_ms(SystemTime::now()),
            numbers: AtomicU32::new(0),
            execs: AtomicU32::new(0),
            main: Mutex::default(),
            main_ended,
            detached,
            stop,
            condition: condition.clone(),
            ended,
        });
        let ports = tokio::spawn(ports.serve(shared.guest.clone()));
        let (pending, mut all_told) = mpsc::channel(1);
        let guest = tokio::spawn(serve_guest(incoming, egress, Arc::clone(&record)));
        let owner = tokio::spawn(clients::serve(
            Arc::clone(&shared),
            owner,
            true,
            pending.clone(),
        ));
        let others = tokio::spawn(serve_others(listener, shared, pending));
        let tripwire = tokio::spawn(tripwire.watch(Arc::clone(&record)));
        let room = room.map(|(room, brake)| {
            tokio::spawn(room.watch(brake, condition_send, Arc::clone(&record)))
        });

        let (heard, mut told) = split(control);
        let mut said = tokio::spawn(next_word(heard, Arc::clone(&record)));
        let why = tokio::select! {
            grace = stops.recv() => Why::Stop(grace.unwrap_or_default()),
            () = owner_goes(owner_gone, is_detached) => Why::OwnerGone,
            limit = over(limit) => {
                record.record(Happening::TimedOut { limit_ms: millis(limit) });
                Why::Stop(AFTER_LIMIT)
            }
            end = vm.wait() => Why::VmEnded(end),
            over = driver => Why::LinkOver(over.unwrap_or(Ok(()))),
            said = &mut said => Why::GuestSaid(said.unwrap_or_else(|error| Err(error.into()))),
            never = clock::follow(&mut told) => match never {},
            () = record.broken() => Why::RecordBroken,
        };
        let main_ended = *main_status.borrow();
        if let Some(room) = room {
            room.abort();
        }
        // A frozen guest can say nothing.
        let frozen = matches!(*condition.borrow(), Condition::Frozen { .. });
        let ended = if let Why::Stop(grace) = why
            && !frozen
            && shut_down(&mut told, &mut said, grace, GOODBYE_MARGIN).await
        {
            Ended::Goodbye(*main_status.borrow())
        } else {
            classify(why, main_ended, &mut vm, &console, &record).await
        };
        vm.kill().await;
        guest.abort();
        tripwire.abort();
        ports.abort();
        said.abort();
        farewell(&ended);
        ended_send.send_replace(Some(ended));
        others.abort();
        // Each client that waits answers for itself; none may hold up the end for long.
        let _ = timeout(FAREWELL, async { while all_told.recv().await.is_some() {} }).await;
        owner.abort();
    }
}

/// Waits until the client that launched the bottle has gone, and it is not to go on without it.
async fn owner_goes(gone: JoinHandle<Result<(), MuxError>>, detached: watch::Receiver<bool>) {
    let _ = gone.await;
    if *detached.borrow() {
        pending::<()>().await;
    }
}

/// Waits until the bottle's time is over.
async fn over(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            sleep(limit).await;
            limit
        }
        None => pending().await,
    }
}

/// What ended the serving of a bottle.
enum Why {
    Stop(Duration),
    OwnerGone,
    VmEnded(VmEnd),
    LinkOver(Result<(), MuxError>),
    GuestSaid(io::Result<Option<ToHost>>),
    RecordBroken,
}

/// Finds the reason for an end that nobody asked for.
async fn classify(
    why: Why,
    main: Option<ExitStatus>,
    vm: &mut Vm,
    console: &Console,
    record: &Record,
) -> Ended {
    let mut text = match why {
        Why::GuestSaid(Ok(Some(ToHost::Goodbye))) => return Ended::Goodbye(main),
        Why::GuestSaid(Ok(Some(_))) => {
            record.record(Happening::Violation {
                what: "a control message out of turn".to_owned(),
            });
            "the guest broke the control protocol".to_owned()
        }
        Why::LinkOver(Err(error @ MuxError::Violation { .. })) => {
            record.record(Happening::Violation {
                what: error.to_string(),
            });
            format!("the guest broke the control protocol: {error}")
        }
        Why::LinkOver(_) | Why::GuestSaid(_) => {
            // A VM that ends takes its connection along: its own end says more.
            match timeout(GOODBYE_MARGIN, vm.wait()).await {
                Ok(end) => format!("the VM ended ({end})"),
                Err(_) => "the guest closed the control channel".to_owned(),
            }
        }
        Why::VmEnded(end) => format!("the VM ended ({end})"),
        Why::RecordBroken => "the record cannot be written (is the disk full?)".to_owned(),
        Why::Stop(_) | Why::OwnerGone => return Ended::Killed,
    };
    let words = vm.last_words().await;
    if !words.is_empty() {
        text = format!("{text}; libkrun says: {}", Escaped(&last_lines(&words)));
    }
    if let Some(line) = console
        .tail()
        .iter()
        .rev()
        .find(|line| line.contains("panic"))
    {
        text = format!("{text}; the console says: {}", Escaped(line));
    } else if let Some(line) = console.tail().last() {
        text = format!("{text}; the console's last line: {}", Escaped(line));
    }
    Ended::Crashed(text)
}

/// Serves clients that did not start the bottle.
async fn serve_others(listener: UnixListener, shared: Arc<Shared>, pending: Pending) {
    while let Ok((socket, _)) = listener.accept().await {
        let ours = socket
            .peer_cred()
            .is_ok_and(|peer| peer.uid() == Uid::effective().as_raw());
        if !ours {
            continue;
        }
        let (shared, pending) = (Arc::clone(&shared), pending.clone());
        tokio::spawn(serve_other(socket, shared, pending));
    }
}

/// Greets a client that did not start the bottle, and serves it.
async fn serve_other(mut socket: UnixStream, shared: Arc<Shared>, pending: Pending) {
    match timeout(GREETING, greet(&mut socket)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return tracing::warn!(%error, "a client is not understood"),
        Err(_) => return tracing::warn!("a client did not greet in time"),
    }
    let (_, incoming, driver) = mux::start::<_, (), Open>(socket, Side::Listener);
    tokio::spawn(driver);
    clients::serve(shared, incoming, false, pending).await;
}

/// Serves the streams that init opens.
async fn serve_guest(mut incoming: Incoming<FromGuest>, egress: Egress, record: Arc<Record>) {
    let mut udp = HashSet::new();
    while let Some((open, stream)) = incoming.accept().await {
        match open {
            FromGuest::Dns => {
                tokio::spawn(serve_dns(stream, egress.clone()));
            }
            FromGuest::Flow { destination } => {
                let egress = egress.clone();
                tokio::spawn(async move { egress.serve(destination, stream).await });
            }
            FromGuest::UdpRefused { destination } => {
                if udp.len() < MAX_UDP_EVENTS && udp.insert(destination) {
                    record.record(udp_refused(destination));
                }
            }
        }
    }
}

fn udp_refused(destination: SocketAddr) -> Happening {
    Happening::Refused {
        id: random::base32::<8>().unwrap_or_default(),
        host: destination.ip().to_string(),
        port: destination.port(),
        method: None,
        path: None,
        reason: Reason::UdpNotAllowed,
        detail: format!("UDP to {destination} is not allowed; only DNS is answered"),
    }
}

/// Answers DNS messages with their two-byte length (RFC 1035, 4.2.2) until the stream ends.
async fn serve_dns(mut stream: MuxStream, egress: Egress) {
    let mut query = Vec::new();
    while let Ok(len) = stream.read_u16().await {
        query.resize(usize::from(len), 0);
        if stream.read_exact(&mut query).await.is_err() {
            return;
        }
        let Some(answer) = egress.answer(&query) else {
            continue;
        };
        let Ok(len) = u16::try_from(answer.len()) else {
            continue;
        };
        let framed = [&len.to_be_bytes()[..], &answer].concat();
        if stream.write_all(&framed).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}
