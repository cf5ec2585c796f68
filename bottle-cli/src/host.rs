//! What a command gets from the process it runs in: environment, streams, signals, backends.

use std::env::var_os;
use std::ffi::OsString;
use std::fmt::{self, Debug, Formatter};
use std::io::{IsTerminal, Write, sink, stderr, stdout};
use std::mem::replace;
use std::sync::{Arc, Mutex};

use bottle_core::registry::Registry;
use tokio::io::{AsyncRead, stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::printer::{Printer, Sink};
use crate::terminal::{self, Terminal};

/// A signal that somebody sends to us and means for the workload; the number is Linux's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "each has its own treatment")]
pub enum Signal {
    /// The terminal has gone.
    Hangup = 1,
    /// Control-C.
    Interrupt = 2,
    /// Control-backslash.
    Quit = 3,
    /// A meaning of the workload's own.
    User1 = 10,
    /// A meaning of the workload's own.
    User2 = 12,
    /// Please end.
    Terminate = 15,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Hangup,
        Self::Interrupt,
        Self::Quit,
        Self::User1,
        Self::User2,
        Self::Terminate,
    ];

    /// Returns the Linux number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Looks up a variable by name.
pub type Lookup = dyn Fn(&str) -> Option<OsString> + Send + Sync;

/// The world around one command line.
pub struct Host {
    /// The backends there are.
    pub registry: Registry,
    /// Looks up one variable of the environment.
    pub variable: Box<Lookup>,
    /// Standard input; read only on behalf of a workload.
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// Standard output.
    pub stdout: Box<dyn Write + Send>,
    /// Whether standard output is a terminal, which is no place for bytes.
    pub stdout_is_terminal: bool,
    /// Standard error.
    pub stderr: Box<dyn Write + Send>,
    /// Whether somebody looks at standard error on a terminal.
    pub stderr_is_terminal: bool,
    /// The terminal that standard input and output are, if they are one.
    pub terminal: Option<Arc<dyn Terminal>>,
    /// Signals to this process, in order.
    pub signals: mpsc::Receiver<Signal>,
    /// The width for help texts; absent means the terminal's.
    pub columns: Option<usize>,
}

impl Host {
    /// Takes the world of the current process, whose signals from now on arrive in
    /// [`Host::signals`]. Call it within a runtime.
    pub fn current(registry: Registry) -> Self {
        Self {
            registry,
            variable: Box::new(|name| var_os(name)),
            stdin: Box::new(stdin()),
            stdout: Box::new(stdout()),
            stdout_is_terminal: stdout().is_terminal(),
            stderr: Box::new(stderr()),
            stderr_is_terminal: stderr().is_terminal(),
            terminal: terminal::own(),
            signals: listen(),
            columns: None,
        }
    }

    /// Takes the two output streams away into a printer.
    pub(crate) fn printer(&mut self) -> Printer {
        let take = |stream: &mut Box<dyn Write + Send>| -> Sink {
            let taken = replace(stream, Box::new(sink()));
            Arc::new(Mutex::new(taken))
        };
        Printer::new(take(&mut self.stdout), take(&mut self.stderr))
    }
}

impl Debug for Host {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// Sends every signal of interest into a queue; one that does not fit is dropped, as signals are.
fn listen() -> mpsc::Receiver<Signal> {
    let (sender, receiver) = mpsc::channel(16);
    for which in Signal::ALL {
        // A handler that cannot be installed leaves the signal its default: the process ends, and
        // the bottle with it.
        let kind = SignalKind::from_raw(i32::from(which.number()));
        if let Ok(mut arrivals) = signal(kind) {
            let sender = sender.clone();
            tokio::spawn(async move {
                while arrivals.recv().await.is_some() {
                    let _ = sender.try_send(which);
                }
            });
        }
    }
    receiver
}
