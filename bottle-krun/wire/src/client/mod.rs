//! What a client and the shim say to each other over a Unix socket; both are ours and trusted, but
//! maybe of different releases: see [`Greeting`].
//!
//! ```text
//! both   ── Greeting ──                               message::write on the bare socket, then the mux
//! client is Side::Dialer, shim is Side::Listener; streams are opened by the client only
//!
//! client ── open Launch ──►    ◄ LaunchReport…        once, on the socket the shim was born with
//!        ── open Wait ──►      ◄ Ended                when the bottle has ended
//!        ── open Watch ──►     ◄ Condition…
//!        ── open Inspect ──►   ◄ Inspection
//!        ── open Stop ──►      ◄ Done                 when the bottle has ended
//!        ── open Kill, open Release ──►   ◄ Done
//!        ── open Stdio × 0..3, open Exec ──►     ◄ ExecReport…, ProcessRequest… ►
//!        ── open Stdio × 0..3, open Attach ──►   ◄ ExecReport…, ProcessRequest… ►
//! ```
//!
//! The socket that launched a bottle owns it, unless the launch says otherwise: when it closes, the
//! bottle ends.

mod greeting;
mod launch;

use serde::{Deserialize, Serialize};

use crate::message::as_json;

pub use crate::rule::LaunchRule;
pub use greeting::{GreetError, Greeting, MINOR, PROTOCOL, greet};
pub use launch::{Blame, Launch, LaunchImage, LaunchPort, LaunchReport, LaunchResolve};

/// First message of a stream that a client opens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "open", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Open {
    /// Start the bottle.
    Launch(Box<Launch>),
    /// Say when the bottle has ended.
    Wait,
    /// Say in which condition the bottle is, and whenever that changes.
    Watch,
    /// Say what the bottle does just now.
    Inspect,
    /// End the bottle.
    Stop {
        /// Milliseconds between the stop signal and SIGKILL.
        grace_ms: u64,
    },
    /// Let the bottle go on when the client that launched it has gone.
    Release,
    /// Send a signal to the main process; reset if there is none, or none any more.
    Kill {
        /// The Linux signal number.
        signal: u8,
    },
    /// Carries one standard stream of the process that the same number in [`Exec`] starts, or
    /// [`Attach`] attaches to.
    Stdio {
        /// The number, chosen by this client and not reused on this connection.
        exec: u32,
        /// 0, 1 or 2.
        fd: u8,
    },
    /// Start a process.
    Exec(Exec),
    /// Hear and feed the main process.
    Attach(Attach),
    /// Something of a later release; its stream is reset.
    #[serde(other)]
    Unknown,
}

/// What a bottle that has not ended does just now.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "condition", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Condition {
    /// It runs.
    Running,
    /// It is frozen.
    Frozen {
        /// Why, and what to do.
        why: String,
    },
    /// Something of a later release.
    #[serde(other)]
    Unknown,
}

/// What a bottle does just now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The shim's process id.
    pub shim_pid: u32,
    /// Since when it runs, milliseconds since the Unix epoch.
    pub started_ms: u64,
    /// The guest kernel's release.
    pub kernel: String,
    /// Ports of the host that lead into it.
    #[serde(default)]
    pub ports: Vec<LaunchPort>,
    /// Whether its main process has been started.
    pub main_started: bool,
    /// Whether its main process has a terminal.
    pub tty: bool,
    /// How many clients are attached to it.
    pub attached: u32,
    /// How many processes clients run in it besides the main one.
    pub execs: u32,
}

/// The size of a terminal, in characters and pixels (zero if not known).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
    /// Width in pixels.
    pub x_pixels: u16,
    /// Height in pixels.
    pub y_pixels: u16,
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
    /// Whether it has a standard input; without one it reads end of file.
    pub stdin: bool,
    /// Its terminal, if it has one: then its output all comes on stream 1.
    pub tty: Option<Window>,
    /// Whether its exit status is the bottle's. Such a process is the shim's: what it says is
    /// logged, and it goes on when its client has gone.
    pub main: bool,
}

/// Hears and feeds the main process, which is or was started by somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attach {
    /// Pairs it with its [`Open::Stdio`] streams.
    pub exec: u32,
    /// The size of this client's terminal.
    pub window: Option<Window>,
}

/// What becomes of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "kebab-case")]
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
    /// There is no main process to attach to, or it has ended; the only report.
    NoMain,
    /// This client did not listen in time and hears no more; the last report.
    Lagged,
    /// Something of a later release.
    #[serde(other)]
    Unknown,
}

/// What a client asks of a process that runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProcessRequest {
    /// Sends a signal to its group.
    Signal {
        /// The Linux signal number.
        signal: u8,
    },
    /// Gives its terminal this size.
    Resize(Window),
    /// Something of a later release.
    #[serde(other)]
    Unknown,
}

/// How a bottle ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ended", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Ended {
    /// The guest said goodbye.
    Goodbye {
        /// How its main process had ended, if it had.
        main: Option<MainStatus>,
    },
    /// It was ended from outside without a goodbye.
    Killed,
    /// It ended by itself without a goodbye.
    Crashed {
        /// What is known of it.
        why: String,
    },
    /// Something of a later release.
    #[serde(other)]
    Unknown,
}

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MainStatus {
    /// With this code.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

/// What was asked for is done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {}

as_json!(
    Open,
    Condition,
    Inspection,
    ExecReport,
    ProcessRequest,
    Ended,
    Done,
    LaunchReport,
    Greeting,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    /// What this release says, word for word: an older peer reads it, a newer one may send it.
    #[test]
    fn messages_have_the_form_that_other_releases_know() {
        let said = |message: &Open| String::from_utf8(message.to_bytes().unwrap()).unwrap();
        assert_eq!(said(&Open::Wait), r#"{"open":"wait"}"#);
        assert_eq!(
            said(&Open::Stop { grace_ms: 5 }),
            r#"{"open":"stop","grace_ms":5}"#
        );
        let exec = Exec {
            exec: 1,
            argv: vec!["sh".to_owned()],
            env: Vec::new(),
            cwd: None,
            user: None,
            stdin: true,
            tty: None,
            main: false,
        };
        assert_eq!(
            said(&Open::Exec(exec)),
            r#"{"open":"exec","exec":1,"argv":["sh"],"env":[],"cwd":null,"user":null,"stdin":true,"tty":null,"main":false}"#
        );
        let ended = Ended::Goodbye {
            main: Some(MainStatus::Exited(7)),
        };
        assert_eq!(
            String::from_utf8(ended.to_bytes().unwrap()).unwrap(),
            r#"{"ended":"goodbye","main":{"exited":7}}"#
        );
    }

    #[test]
    fn what_a_later_release_adds_is_no_error() {
        let open = |text: &str| Open::from_bytes(text.as_bytes()).unwrap();
        assert_eq!(
            open(r#"{"open":"freeze","until":{"then":[1]}}"#),
            Open::Unknown
        );
        assert_eq!(
            open(r#"{"open":"stop","grace_ms":5,"reason":"x"}"#),
            Open::Stop { grace_ms: 5 }
        );
        assert_eq!(
            ExecReport::from_bytes(br#"{"report":"frozen","code":1}"#).unwrap(),
            ExecReport::Unknown
        );
    }
}
