//! Init without a machine: a test is its host, and processes run where the test runs.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bottle_wire::guest::{Exec, ExecReport, FromGuest, FromHost, MAX_PROCESSES};
use bottle_wire::message;
use bottle_wire::mux::{self, MuxStream, Opener, Side};
use nix::unistd::Uid;
use tokio::io::{AsyncReadExt, duplex};
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;

use super::{Habitat, Init, MAX_COPIES, accept};
use crate::provision::Defaults;
use crate::reap::Reaper;

/// How long a test may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// The host's end.
pub(crate) struct Host {
    pub(crate) opener: Opener<FromHost>,
    numbers: Cell<u32>,
}

/// A process as the host sees it.
pub(crate) struct Process {
    /// Those streams that were asked for.
    pub(crate) stdio: [Option<MuxStream>; 3],
    /// Reports and requests.
    pub(crate) control: MuxStream,
}

/// Whether users and namespaces can be made; says so if not.
pub(crate) fn is_root() -> bool {
    let root = Uid::effective().is_root();
    if !root {
        eprintln!("skipped: users and namespaces need root");
    }
    root
}

/// Runs a test against an init whose workload has the test's network.
pub(crate) fn with_init<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F) {
    let own = File::open("/proc/self/ns/net").unwrap();
    with_init_in(own.into(), test);
}

/// Runs a test against an init whose workload has this network namespace.
///
/// One at a time: an init waits for every child of its process.
pub(crate) fn with_init_in<F: Future<Output = ()>>(
    namespace: OwnedFd,
    test: impl FnOnce(Host) -> F,
) {
    static ONE: Mutex<()> = Mutex::new(());
    if !is_root() {
        return;
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let (guest_end, host_end) = duplex(64 << 10);
        let (opener, incoming, driver) =
            mux::start::<_, FromGuest, FromHost>(guest_end, Side::Dialer);
        tokio::spawn(driver);
        let (host, _flows, driver) = mux::start::<_, FromHost, FromGuest>(host_end, Side::Listener);
        tokio::spawn(driver);
        let init = Init {
            opener,
            reaper: Reaper::default(),
            overlay: File::open("/").unwrap(),
            network: RefCell::default(),
            habitat: OnceCell::from(habitat(namespace)),
            stopping: Cell::new(false),
            stdio: RefCell::default(),
            processes: Semaphore::new(MAX_PROCESSES as usize),
            copies: Arc::new(Semaphore::new(MAX_COPIES as usize)),
        };
        init.reaper.start().unwrap();
        let (fatal, _deaths) = mpsc::unbounded_channel();
        spawn_local(accept(Rc::new(init), incoming, fatal));
        let host = Host {
            opener: host,
            numbers: Cell::new(1),
        };
        timeout(DEADLINE, test(host)).await.expect("in time");
    });
}

fn habitat(namespace: OwnedFd) -> Habitat {
    let pairs = [("BOTTLE", "1"), ("PATH", "/usr/bin:/bin")];
    let defaults = Defaults {
        env: pairs.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
        user: String::new(),
        cwd: "/".to_owned(),
    };
    Habitat {
        defaults,
        namespace,
        stop_signal: 15,
    }
}

/// A shell that runs a script.
pub(crate) fn shell(script: &str) -> Exec {
    Exec {
        exec: 0,
        argv: ["sh", "-c", script].map(str::to_owned).into(),
        env: Vec::new(),
        cwd: None,
        user: None,
        stdin: false,
        tty: None,
    }
}

impl Host {
    /// A number for a process.
    pub(crate) fn number(&self) -> u32 {
        self.numbers.replace(self.numbers.get() + 1)
    }

    /// Asks for a process with these standard streams.
    pub(crate) async fn ask(&self, mut exec: Exec, streams: &[u8]) -> Process {
        exec.exec = self.number();
        exec.stdin = streams.contains(&0);
        let mut stdio = [None, None, None];
        for fd in streams {
            let open = FromHost::Stdio {
                exec: exec.exec,
                fd: *fd,
            };
            stdio[usize::from(*fd)] = Some(self.opener.open(&open).await.unwrap());
        }
        let control = self.opener.open(&FromHost::Exec(exec)).await.unwrap();
        Process { stdio, control }
    }

    /// Starts a process with these standard streams.
    pub(crate) async fn start(&self, exec: Exec, streams: &[u8]) -> Process {
        let mut process = self.ask(exec, streams).await;
        let report = process.report().await;
        assert!(matches!(report, ExecReport::Started { .. }), "{report:?}");
        process
    }

    /// Runs a process to its end; what it says on standard output, and its last report.
    pub(crate) async fn run(&self, exec: Exec) -> (String, ExecReport) {
        let mut process = self.start(exec, &[1]).await;
        (process.output().await, process.report().await)
    }
}

impl Process {
    /// The next report.
    pub(crate) async fn report(&mut self) -> ExecReport {
        message::read(&mut self.control)
            .await
            .unwrap()
            .expect("a report")
    }

    /// All that is left of standard output.
    pub(crate) async fn output(&mut self) -> String {
        let mut bytes = Vec::new();
        let stdout = self.stdio[1].as_mut().unwrap();
        stdout.read_to_end(&mut bytes).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Standard output up to and with a text.
    pub(crate) async fn output_until(&mut self, text: &str) -> String {
        let mut bytes = Vec::new();
        let stdout = self.stdio[1].as_mut().unwrap();
        while !String::from_utf8_lossy(&bytes).contains(text) {
            let byte = stdout.read_u8().await;
            let seen = String::from_utf8_lossy(&bytes);
            bytes.push(byte.unwrap_or_else(|error| panic!("{error} after {seen:?}")));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
