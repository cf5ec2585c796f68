//! What a client and the shim say to each other over a Unix socket; both are ours and trusted.
//!
//! ```text
//! client is Side::Dialer, shim is Side::Listener; streams are opened by the client only
//!
//! client ── open Launch ──►    ◄ LaunchReport…        once, on the socket the shim was born with
//!        ── open Wait ──►      ◄ Ended                when the bottle has ended
//!        ── open Watch ──►     ◄ Condition…
//!        ── open Stop ──►      ◄ StopReport
//!        ── open Stdio × 2..3, open Exec ──►   ◄ ExecReport…, SignalRequest… ►
//! ```
//!
//! The socket that launched a bottle owns it: when it closes, the bottle ends.

use std::fmt::{self, Debug, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::rule::LaunchRule;

/// First message of a stream that a client opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Open {
    /// Start the bottle.
    Launch(Box<Launch>),
    /// Say when the bottle has ended.
    Wait,
    /// Say in which condition the bottle is, and whenever that changes.
    Watch,
    /// End the bottle.
    Stop {
        /// Milliseconds between SIGTERM and SIGKILL.
        grace_ms: u64,
    },
    /// Carries one standard stream of the process that the same number in [`Exec`] starts.
    Stdio {
        /// The number, chosen by this client and not reused on this connection.
        exec: u32,
        /// 0, 1 or 2.
        fd: u8,
    },
    /// Start a process.
    Exec(Exec),
}

/// What a bottle that has not ended does just now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Condition {
    /// It runs.
    Running,
    /// It is frozen; why, and what to do.
    Frozen(String),
}

/// Everything the shim needs to start a bottle; all paths are absolute paths of the host.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// The bottle's id.
    pub id: String,
    /// The guest's host name.
    pub hostname: String,
    /// The program to re-execute as warden and vmm.
    pub helper: PathBuf,
    /// The kernel library.
    pub kernel: PathBuf,
    /// The read-only disk.
    pub image: LaunchImage,
    /// The writable disk; absent means that what is written stays in memory.
    pub overlay: Option<PathBuf>,
    /// The bottle's directory of state.
    pub state_dir: PathBuf,
    /// The bottle's directory of sockets.
    pub runtime_dir: PathBuf,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory.
    pub ram_mib: u32,
    /// The rules.
    pub rules: Vec<LaunchRule>,
    /// Addresses named on the host's side.
    pub resolve: Vec<LaunchResolve>,
    /// PEM texts of further roots for upstreams.
    pub upstream_roots: Vec<String>,
    /// Names and values that may not leave.
    pub known_values: Vec<(String, Vec<u8>)>,
    /// The environment of every process.
    pub env: Vec<(String, String)>,
    /// The default user; empty means root.
    pub user: String,
    /// The default working directory; empty means `/`.
    pub cwd: String,
    /// What a process with an empty `argv` runs.
    pub default_argv: Vec<String>,
    /// The Linux signal that asks the bottle's processes to end.
    pub stop_signal: u8,
}

/// Shows the id alone: the rest holds environment and secret values.
impl Debug for Launch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The files of the read-only disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchImage {
    /// What joins the parts: it names them by their file names alone.
    pub descriptor: PathBuf,
    /// The parts, each with a file name of its own.
    pub parts: Vec<PathBuf>,
}

/// An address named on the host's side for a name and port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchResolve {
    /// The name.
    pub host: String,
    /// The port the guest asks for.
    pub port: u16,
    /// What is dialled.
    pub dial: SocketAddr,
}

/// What the shim says of a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LaunchReport {
    /// A stage began; stages are named as `bottle_core::reporter::Stage` names them.
    Began {
        /// The stage.
        stage: String,
    },
    /// A stage ended well.
    Ended {
        /// The stage.
        stage: String,
        /// How long it took.
        took_ms: u64,
        /// What came of it.
        note: String,
    },
    /// The bottle runs; the last report.
    Ready,
    /// The start failed and everything is undone; the last report.
    Failed {
        /// The stage.
        stage: String,
        /// Whose concern it is.
        blame: Blame,
        /// What can be done about it.
        hint: Option<String>,
        /// The console's last lines.
        console: Vec<String>,
        /// The error and its causes, outermost first.
        chain: Vec<String>,
    },
}

/// Whose concern an error is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Blame {
    /// The host lacks something.
    Environment,
    /// The image or what runs in the guest.
    Guest,
    /// Us.
    Bug,
}

/// A process to start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exec {
    /// Pairs it with its [`Open::Stdio`] streams.
    pub exec: u32,
    /// Program and arguments; empty means the image's own.
    pub argv: Vec<String>,
    /// Variables on top of the bottle's.
    pub env: Vec<(String, String)>,
    /// Working directory, if not the default.
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, if not the default.
    pub user: Option<String>,
    /// Whether a stream for standard input was opened.
    pub stdin: bool,
    /// Whether its exit status is the bottle's.
    pub main: bool,
}

/// What becomes of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ExecReport {
    /// It runs.
    Started,
    /// There is no such program.
    NotFound {
        /// The program.
        program: String,
    },
    /// The program cannot be run.
    NotExecutable {
        /// The program.
        program: String,
        /// The guest's error.
        why: String,
    },
    /// User, directory or limits are impossible.
    Setup {
        /// The program.
        program: String,
        /// What is impossible.
        why: String,
    },
    /// It exited.
    Exited {
        /// The code.
        code: u8,
    },
    /// A signal ended it.
    Signaled {
        /// The Linux number.
        signal: u8,
    },
}

/// Sends a signal to a process's group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SignalRequest {
    /// The Linux signal number.
    pub signal: u8,
}

/// How a bottle ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Ended {
    /// The guest said goodbye; how its main process had ended, if it had.
    Goodbye(Option<MainStatus>),
    /// It was ended from outside without a goodbye.
    Killed,
    /// It ended by itself without a goodbye.
    Crashed(String),
}

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum MainStatus {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// The answer to [`Open::Stop`]: the bottle has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StopReport {}
