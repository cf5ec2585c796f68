//! The seam: what a backend does for a bottle, object-safe and async.
//!
//! ```text
//! Spec ──plan()──► Plan ──start()──► dyn Bottle ──stop()──► ended ──remove()──► gone
//!        creates nothing   undoes all it made      wait() returns how
//! ```

use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::event::Event;
use crate::id::BottleId;
use crate::images::Images;
use crate::log::{LogChunk, LogPosition};
use crate::reporter::{Reporter, Stage};
use crate::secret::Secret;
use crate::spec::{Spec, UserName};

pub use crate::listing::{Live, State, Summary};

/// Makes and finds bottles.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Returns the name by which `--backend` finds it.
    fn name(&self) -> &'static str;

    /// Returns what this backend can do on this host.
    fn capabilities(&self) -> Capabilities;

    /// Binds a specification to this backend: says what a start would do, and creates nothing.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] for what the backend lacks; [`BackendError::Failed`] for an
    /// image or a host that cannot serve.
    fn plan(&self, spec: &Spec) -> Result<Plan, BackendError>;

    /// Starts what was planned and returns it running.
    ///
    /// # Errors
    ///
    /// [`BackendError::Start`] names the stage; everything made up to there was removed again.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the bottle and removes what was made; a bottle that is started again
    /// is as it was before.
    async fn start(
        &self,
        plan: Plan,
        reporter: &dyn Reporter,
    ) -> Result<Box<dyn Bottle>, BackendError>;

    /// Lists the bottles that this user has here, running or not, sorted by id.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the state directory cannot be read.
    async fn list(&self) -> Result<Vec<Summary>, BackendError>;

    /// Binds the specification of a bottle that has ended and was kept once more: same id, same
    /// image, same writable disk. `look_up` returns the value of a secret by its name, since values
    /// are not kept.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is no such bottle, [`BackendError::Running`] if it runs;
    /// else as [`Backend::plan`], and what `look_up` says.
    fn plan_again(&self, id: &BottleId, look_up: &LookUp<'_>) -> Result<Plan, BackendError>;

    /// Returns the events with a number of at least `from` of a bottle that runs, has ended, or was
    /// removed.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is no record of it; [`BackendError::Failed`] if it cannot
    /// be read.
    async fn events(&self, id: &BottleId, from: u64) -> Result<Vec<Event>, BackendError>;

    /// Returns a part of what the main process of a bottle said; the bottle runs or was kept.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is no such bottle; [`BackendError::Failed`] if its log
    /// cannot be read.
    async fn log(&self, id: &BottleId, from: LogPosition) -> Result<LogChunk, BackendError>;

    /// Removes a bottle that has ended, all but its record.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is none, [`BackendError::Running`] if it runs,
    /// [`BackendError::Failed`] names what is left.
    async fn remove(&self, id: &BottleId) -> Result<(), BackendError>;

    /// Returns the images that it keeps, if it keeps any.
    fn images(&self) -> Option<&dyn Images> {
        None
    }

    /// Opens a running bottle by id. A handle obtained here does not own the bottle.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotFound`] if there is none or it does not run.
    async fn open(&self, id: &BottleId) -> Result<Box<dyn Bottle>, BackendError>;
}

/// Finds the value of a secret by its name.
pub type LookUp<'a> =
    dyn Fn(&str) -> Result<Secret, Box<dyn Error + Send + Sync>> + Send + Sync + 'a;

/// One bottle. All methods may be called at any time and by several tasks at once.
///
/// The handle that [`Backend::start`] returned owns the bottle, unless [`Spec::detached`]: dropping
/// it, or the death of its process, ends the bottle.
#[async_trait]
pub trait Bottle: Send + Sync + Debug {
    /// Returns its id.
    fn id(&self) -> &BottleId;

    /// Starts a process inside and returns its streams.
    ///
    /// # Errors
    ///
    /// [`BackendError::Spawn`] if the guest could not start it.
    ///
    /// # Cancellation
    ///
    /// A process whose streams and control are dropped goes on by itself; what it says is lost,
    /// unless it is the main one of a detached bottle.
    async fn exec(&self, command: &Command) -> Result<Process, BackendError>;

    /// Hears and feeds the main process; `window` is the size of the caller's terminal. If the main
    /// process has a terminal, what it shows is painted first.
    ///
    /// # Errors
    ///
    /// [`BackendError::NoMain`] if there is no main process, or none any more.
    async fn attach(&self, window: Option<Window>) -> Result<Process, BackendError>;

    /// Sends a signal (Linux number) to the main process and its group.
    ///
    /// # Errors
    ///
    /// [`BackendError::NoMain`] if there is no main process, or none any more.
    async fn kill(&self, signal: u8) -> Result<(), BackendError>;

    /// Lets the bottle go on when this handle is dropped, if it owns the bottle; from then on the
    /// bottle is as [`Spec::detached`] has it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle has ended.
    async fn release(&self) -> Result<(), BackendError>;

    /// Says what it does just now.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle has ended.
    async fn inspect(&self) -> Result<Live, BackendError>;

    /// Returns the events recorded so far with a number of at least `from`.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the record cannot be read.
    async fn events(&self, from: u64) -> Result<Vec<Event>, BackendError>;

    /// Ends the workload (SIGTERM, then SIGKILL after `grace`) and the bottle. May be called again.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle could not be ended.
    async fn stop(&self, grace: Duration) -> Result<(), BackendError>;

    /// Waits until the bottle has ended and says how.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if that cannot be learnt.
    async fn wait(&self) -> Result<Ended, BackendError>;

    /// Waits until its condition is another than `known`, and returns that; for ever, if it has
    /// ended.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost; call it again.
    async fn changed(&self, known: &Condition) -> Condition;

    /// Stops it if it runs and removes all of it but its record, even if it was to be kept.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] names what is left.
    async fn remove(self: Box<Self>) -> Result<(), BackendError>;
}

/// What a backend can do on this host; checked when a [`Spec`] is planned.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Capabilities {
    /// The kernel under the workload is the bottle's own.
    pub own_kernel: bool,
    /// Most virtual CPUs of one bottle.
    pub max_vcpus: u8,
    /// `sandboxed egress`: there is no way out but the gateway.
    pub egress_gateway: bool,
}

/// What a start would do. Made by [`Backend::plan`] and consumed by [`Backend::start`].
#[derive(Clone, Debug)]
pub struct Plan {
    /// The specification that was bound.
    pub spec: Spec,
    /// The id the bottle will have.
    pub id: BottleId,
    /// The backend's name.
    pub backend: &'static str,
    /// What would happen, a line each, in order: `image` → `oci:… sha256:…`.
    ///
    /// `command` says what an empty [`Command::argv`] stands for, `record` where the record will
    /// be; both are there in every plan.
    pub lines: Vec<PlanLine>,
    /// Whether it is a bottle that was kept, and is started again.
    pub again: bool,
}

/// One thing that a start would do.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PlanLine {
    /// The subject, one word.
    pub what: &'static str,
    /// The decision.
    pub value: String,
}

/// A process to start inside a bottle.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Command {
    /// Program and arguments; the program is looked up in the guest's `PATH`.
    ///
    /// Empty means what the specification's [`Spec::command`] says, and if that is absent the
    /// image's own entrypoint and command. A [`Plan`] shows the words under `command`.
    pub argv: Vec<String>,
    /// Variables on top of the bottle's.
    pub env: Vec<(String, String)>,
    /// Working directory; absent means the image's.
    pub cwd: Option<String>,
    /// User; absent means the bottle's.
    pub user: Option<UserName>,
    /// Whether the process has a standard input; if not it reads end of file at once.
    pub stdin: bool,
    /// The size of its terminal, if it has one: then all its output comes on
    /// [`Process::stdout`], and its input is what is typed.
    pub tty: Option<Window>,
    /// Whether nobody wants to hear it: what it says is thrown away, or if it is the main process
    /// only logged.
    pub unheard: bool,
    /// Whether its exit status is the bottle's. What the main process says is logged, and it goes on
    /// when nobody listens.
    pub main: bool,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub cols: u16,
    /// Width in pixels; zero if not known.
    pub x_pixels: u16,
    /// Height in pixels; zero if not known.
    pub y_pixels: u16,
}

impl Command {
    /// A command of these words, with standard input, as the bottle's user.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            stdin: true,
            tty: None,
            unheard: false,
            main: false,
        }
    }
}

/// A process that runs inside a bottle.
pub struct Process {
    /// Its standard input; shutting it down is end of file. Absent if none was asked for.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its standard output.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its standard error.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// Signals and exit status.
    pub control: Box<dyn ProcessControl>,
}

impl Debug for Process {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// Signals and exit status of a process; may be used while its streams are in use elsewhere.
#[async_trait]
pub trait ProcessControl: Send + Sync {
    /// Sends a signal (Linux number) to the process and its group.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle has gone; a process that has ended is no error.
    async fn signal(&self, signal: i32) -> Result<(), BackendError>;

    /// Gives its terminal another size; one without a terminal takes no note.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle has gone; a process that has ended is no error.
    async fn resize(&self, window: Window) -> Result<(), BackendError>;

    /// Waits until the process has ended. Its streams end by themselves.
    ///
    /// # Errors
    ///
    /// [`BackendError::Failed`] if the bottle went away under it.
    async fn wait(&self) -> Result<ExitStatus, BackendError>;
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_enums, reason = "a process ends in one of two ways")]
pub enum ExitStatus {
    /// It exited with this code.
    Exited(u8),
    /// A signal (Linux number) ended it.
    Signaled(u8),
}

impl ExitStatus {
    /// Returns the status as a shell would: the code, or 128 + signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.wrapping_add(signal),
        }
    }
}

impl Display for ExitStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Signaled(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

/// How a bottle ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new way to end must be worded wherever one is shown"
)]
pub enum Ended {
    /// The guest said goodbye; the status of its main process, if that had ended.
    Goodbye(Option<ExitStatus>),
    /// It was ended from outside without a goodbye.
    Killed,
    /// It ended by itself without a goodbye; what the console and the wait status say.
    Crashed(String),
}

/// What a bottle that has not ended does just now.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a new condition must be worded wherever one is shown"
)]
pub enum Condition {
    /// It runs.
    #[default]
    Running,
    /// It is frozen until a person does something.
    Frozen {
        /// Why, and what to do.
        why: String,
    },
}

/// Why a guest could not start a process.
#[derive(Clone, Debug, Eq, Error, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_enums,
    reason = "each has an exit status of its own"
)]
pub enum SpawnFailure {
    /// There is no such program (exit status 127).
    #[error("{program:?} was not found in the bottle")]
    NotFound {
        /// The program.
        program: String,
    },
    /// The program is there and cannot be run (exit status 126).
    #[error("{program:?} cannot be run in the bottle: {why}")]
    NotExecutable {
        /// The program.
        program: String,
        /// The guest's error.
        why: String,
    },
    /// User, directory or limits are impossible (exit status 125).
    #[error("cannot start {program:?} in the bottle: {why}")]
    Setup {
        /// The program.
        program: String,
        /// What is impossible.
        why: String,
    },
}

impl SpawnFailure {
    /// Returns docker's exit status for it.
    pub fn code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::Setup { .. } => 125,
        }
    }
}

/// Who has to act upon an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "blame decides exit status and tone"
)]
pub enum Blame {
    /// The request cannot be met as it stands.
    User,
    /// The host lacks something.
    Environment,
    /// What runs inside the bottle.
    Guest,
    /// Us.
    Bug,
}

/// What a person can do about an error, word for word.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hint(pub String);

/// Why a backend did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// An operation failed.
    #[error("cannot {op}")]
    Failed {
        /// The operation, as an infinitive: ``plan bottle `x` ``.
        op: String,
        /// Who has to act.
        blame: Blame,
        /// What they can do.
        hint: Option<Hint>,
        /// The backend's own error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no bottle of this id that this can be done with.
    #[error("there is no {} `{id}`", if *running { "running bottle" } else { "bottle" })]
    NotFound {
        /// The id.
        id: BottleId,
        /// Whether it would have to run.
        running: bool,
    },
    /// There is no main process, or none any more.
    #[error("bottle `{id}` has no main process that runs")]
    NoMain {
        /// The bottle.
        id: BottleId,
    },
    /// It runs, and this can only be done when it does not.
    #[error("bottle `{id}` runs")]
    Running {
        /// The bottle.
        id: BottleId,
    },
    /// Somebody who was attached did not listen in time, and was cut off.
    #[error("the output came faster than it was taken")]
    Lagged,
    /// The guest could not start a process.
    #[error(transparent)]
    Spawn(#[from] SpawnFailure),
    /// A start failed; everything it had made was removed.
    #[error("cannot start bottle `{id}`: stage `{}` failed", stage.name())]
    Start {
        /// The bottle.
        id: BottleId,
        /// Where it failed.
        stage: Stage,
        /// Who has to act.
        blame: Blame,
        /// What they can do.
        hint: Option<Hint>,
        /// The last lines of the console, if there were any.
        console: Vec<String>,
        /// The backend's own error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The backend cannot do this at all.
    #[error("backend `{backend}` cannot {what}")]
    Unsupported {
        /// The backend.
        backend: &'static str,
        /// What it cannot do, as an infinitive.
        what: String,
    },
}

impl BackendError {
    /// Says who has to act.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Failed { blame, .. } | Self::Start { blame, .. } => *blame,
            Self::NotFound { .. }
            | Self::NoMain { .. }
            | Self::Running { .. }
            | Self::Lagged
            | Self::Unsupported { .. } => Blame::User,
            Self::Spawn(_) => Blame::Guest,
        }
    }

    /// Returns what a person can do, if the backend knows.
    pub fn hint(&self) -> Option<&Hint> {
        match self {
            Self::Failed { hint, .. } | Self::Start { hint, .. } => hint.as_ref(),
            Self::NotFound { .. }
            | Self::NoMain { .. }
            | Self::Running { .. }
            | Self::Lagged
            | Self::Spawn(_)
            | Self::Unsupported { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_as_a_shell_tells_it() {
        assert_eq!(ExitStatus::Exited(7).code(), 7);
        assert_eq!(ExitStatus::Signaled(9).code(), 137);
        assert_eq!(ExitStatus::Signaled(15).code(), 143);
        assert_eq!(ExitStatus::Signaled(9).to_string(), "killed by signal 9");
    }

    #[test]
    fn a_process_that_could_not_start_has_the_status_that_docker_gives() {
        let program = || "x".to_owned();
        let why = || "because".to_owned();
        let not_found = SpawnFailure::NotFound { program: program() };
        let not_executable = SpawnFailure::NotExecutable {
            program: program(),
            why: why(),
        };
        let setup = SpawnFailure::Setup {
            program: program(),
            why: why(),
        };
        assert_eq!(
            [not_found.code(), not_executable.code(), setup.code()],
            [127, 126, 125]
        );
    }

    #[test]
    fn a_program_name_with_a_terminal_sequence_is_escaped_in_its_error() {
        let error = SpawnFailure::NotFound {
            program: "\u{1b}[2J".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            r#""\u{1b}[2J" was not found in the bottle"#
        );
    }

    #[test]
    fn an_error_names_who_has_to_act_and_what_to_do() {
        let error = BackendError::Start {
            id: "web".parse().unwrap(),
            stage: Stage::Jail,
            blame: Blame::Environment,
            hint: Some(Hint("allow user namespaces".to_owned())),
            console: Vec::new(),
            source: "no more namespaces".into(),
        };
        assert_eq!(
            error.to_string(),
            "cannot start bottle `web`: stage `jail` failed"
        );
        assert_eq!(error.blame(), Blame::Environment);
        assert_eq!(error.hint().unwrap().0, "allow user namespaces");
    }
}
