//! What a launch says, and what is said of it: once, on the socket that the shim was born with.

use std::fmt::{self, Debug, Formatter};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LaunchRule;

/// Everything the shim needs to start a bottle; all paths are absolute paths of the host.
///
/// # Security
///
/// Here nothing that is not known may be left out: it could be what makes a bottle narrower.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// The host's proxy and what does not go through it, as `HTTPS_PROXY` and `NO_PROXY` say it.
    pub proxy: Option<(String, String)>,
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
    /// Whether the bottle goes on when its client has gone.
    pub detached: bool,
    /// Whether what is left of it when it has ended stays, until somebody removes it.
    pub kept: bool,
    /// After how many milliseconds it is stopped.
    pub timeout_ms: Option<u64>,
    /// Ports of the host that lead into the bottle.
    pub ports: Vec<LaunchPort>,
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

/// A port of the host that leads to a server in the bottle.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaunchPort {
    /// Where the shim listens.
    pub host: SocketAddr,
    /// The server's port.
    pub guest: u16,
}

/// What the shim says of a start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
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
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Blame {
    /// The host lacks something.
    Environment,
    /// The image or what runs in the guest.
    Guest,
    /// Us.
    Bug,
}
