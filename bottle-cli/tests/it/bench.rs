//! A command line with streams, signals and a backend of the test's own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::{self, Display, Formatter};
use std::io::{self, Cursor, ErrorKind, Write};
use std::mem::forget;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bottle_cli::exit::Status;
use bottle_cli::host::{Host, Signal};
use bottle_core::backend::Backend;
use bottle_core::registry::{Finding, Registry};
use bottle_core::testing::FakeBackend;
use tokio::io::{AsyncRead, duplex, empty};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that a test can look at while it is written, and close.
#[derive(Clone, Default)]
pub(crate) struct Pipe {
    bytes: Arc<Mutex<Vec<u8>>>,
    closed: bool,
}

impl Pipe {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pipe whose reader has gone.
    pub(crate) fn closed() -> Self {
        Self {
            closed: true,
            ..Self::default()
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a command left behind.
pub(crate) struct Output {
    pub(crate) status: Status,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// As a snapshot shows it.
impl Display for Output {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        let stdout = String::from_utf8_lossy(stdout);
        writeln!(f, "status: {}", status.0)?;
        write!(f, "----- stdout\n{stdout}----- stderr\n{stderr}")
    }
}

/// The world of one command.
pub(crate) struct Bench {
    pub(crate) fake: FakeBackend,
    pub(crate) stdout: Pipe,
    pub(crate) stderr: Pipe,
    findings: Vec<Finding>,
    stdin: Box<dyn AsyncRead + Send + Unpin>,
    variables: HashMap<String, String>,
    terminal: bool,
    signals: (mpsc::Sender<Signal>, mpsc::Receiver<Signal>),
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(FakeBackend::new())
    }

    pub(crate) fn with(fake: FakeBackend) -> Self {
        Self {
            fake,
            stdout: Pipe::default(),
            stderr: Pipe::default(),
            findings: Vec::new(),
            stdin: Box::new(empty()),
            variables: HashMap::new(),
            terminal: false,
            signals: mpsc::channel(16),
        }
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Box::new(Cursor::new(bytes.into()));
        self
    }

    /// A standard input at which nobody types and which does not end.
    pub(crate) fn silent_stdin(mut self) -> Self {
        let (ours, theirs) = duplex(1);
        forget(theirs);
        self.stdin = Box::new(ours);
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn terminal(mut self) -> Self {
        self.terminal = true;
        self
    }

    pub(crate) fn findings(mut self, findings: impl IntoIterator<Item = Finding>) -> Self {
        self.findings.extend(findings);
        self
    }

    pub(crate) fn stdout(mut self, pipe: Pipe) -> Self {
        self.stdout = pipe;
        self
    }

    /// Returns what sends signals to the command.
    pub(crate) fn signals(&self) -> mpsc::Sender<Signal> {
        self.signals.0.clone()
    }

    /// Runs `bottle --backend fake start oci:/fake --name web` with these words behind.
    pub(crate) async fn start(self, words: &[&str]) -> Output {
        let fixed = ["--backend", "fake", "start", "oci:/fake", "--name", "web"];
        let all: Vec<_> = fixed.iter().chain(words).copied().collect();
        self.run(&all).await
    }

    /// Runs `bottle` with these words, and checks that it left no bottle.
    pub(crate) async fn run(self, words: &[&str]) -> Output {
        let fake = self.fake.clone();
        let output = self.run_leaving(words).await;
        assert!(
            fake.traces().is_empty(),
            "left: {:?}\n{output}",
            fake.traces()
        );
        output
    }

    /// Runs a command on the fake that may leave bottles behind.
    pub(crate) async fn on(self, words: &[&str]) -> Output {
        let all: Vec<_> = ["--backend", "fake"].iter().chain(words).copied().collect();
        self.run_leaving(&all).await
    }

    async fn run_leaving(self, words: &[&str]) -> Output {
        let Self {
            fake,
            stdout,
            stderr,
            findings,
            stdin,
            variables,
            terminal,
            signals: (_alive, signals),
        } = self;
        let made = fake.clone();
        let registry = Registry::new()
            .with("fake", move || {
                Ok(Arc::new(made.clone()) as Arc<dyn Backend>)
            })
            .with_doctor("fake", move || findings.clone());
        let host = Host {
            registry,
            variable: Box::new(move |name| variables.get(name).map(OsString::from)),
            stdin,
            stdout: Box::new(stdout.clone()),
            stdout_is_terminal: terminal,
            stderr: Box::new(stderr.clone()),
            stderr_is_terminal: terminal,
            terminal: None,
            signals,
            columns: Some(100),
        };
        let args = ["bottle"].iter().chain(words).map(OsString::from);
        let status = timeout(PATIENCE, bottle_cli::run(args, host)).await;
        let output = Output {
            status: status.unwrap_or(Status(255)),
            stdout: stdout.bytes(),
            stderr: stderr.text(),
        };
        assert_ne!(
            output.status,
            Status(255),
            "{words:?} did not end\n{output}"
        );
        output
    }
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
}
