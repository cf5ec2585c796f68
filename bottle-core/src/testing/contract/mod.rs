//! What every backend promises, as cases that any of them can run.
//!
//! ```text
//! run ─┬─ cases of one life each: plan, start, stop, drop, remove, main process …
//!      └─ one bottle, shared by all cases which leave it as they found it (cheap where a boot costs)
//! ```
//!
//! A case is an async function whose name is the sentence it proves; it returns what it saw instead.
//! The image needs `sh`, `cat`, `echo`, `env`, `true` and `sleep`, and a readable `/etc/passwd`.

mod detached;
mod life;
mod process;

use std::error::Error;
use std::fmt::{self, Debug, Display, Formatter};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error as ThisError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

pub use self::detached::*;
pub use self::life::*;
pub use self::process::*;
use crate::backend::{Backend, BackendError, Bottle, Command, ExitStatus, Process};
use crate::id::BottleId;
use crate::reporter::Silent;
use crate::spec::Spec;

/// What the cases run against.
pub struct Subject {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// A specification that it can start; cases change the name and what they are about.
    pub spec: Spec,
    /// Lists all that exists now because of bottles (processes, files, namespaces…), records apart.
    pub traces: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// How long one case may take.
    pub patience: Duration,
}

impl Subject {
    /// Returns the specification under another name.
    fn named(&self, name: &str) -> Result<Spec, Seen> {
        let mut spec = self.spec.clone();
        spec.name = name
            .parse()
            .map_err(|error| Seen(format!("{name}: {error}")))?;
        Ok(spec)
    }

    /// Starts a bottle of this name.
    async fn start(&self, name: &str) -> Result<Box<dyn Bottle>, Seen> {
        let plan = self.backend.plan(&self.named(name)?)?;
        Ok(self.backend.start(plan, &Silent).await?)
    }

    /// Says whether the list shows this bottle as one that runs.
    async fn runs(&self, id: &BottleId) -> Result<bool, Seen> {
        let list = self.backend.list().await?;
        Ok(list.iter().any(|it| it.id == *id && it.runs()))
    }
}

impl Debug for Subject {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

/// What was seen instead of what was promised.
#[derive(Clone, Debug, Eq, ThisError, PartialEq)]
#[error("{0}")]
pub struct Seen(pub String);

impl From<BackendError> for Seen {
    fn from(error: BackendError) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(text)
    }
}

impl From<io::Error> for Seen {
    fn from(error: io::Error) -> Self {
        Self(format!("a stream of a process broke: {error}"))
    }
}

/// The promises that were not kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Broken(pub Vec<(&'static str, Seen)>);

impl Display for Broken {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} promises of the contract are broken", self.0.len())?;
        for (case, seen) in &self.0 {
            writeln!(f, "  {case}: {seen}")?;
        }
        Ok(())
    }
}

impl Error for Broken {}

type Verdict<'a> = Pin<Box<dyn Future<Output = Result<(), Seen>> + Send + 'a>>;
type Case<'a> = (&'static str, Verdict<'a>);

/// Names each case after its function.
macro_rules! cases {
    ($($case:ident),* $(,)? => $on:expr) => {
        vec![$((stringify!($case), Box::pin($case($on)) as Verdict<'_>)),*]
    };
}

/// Returns early with what was seen unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($seen:tt)+) => {
        if !$holds {
            return Err($crate::testing::contract::Seen(format!($($seen)+)));
        }
    };
}
use ensure;

/// Runs every case; `make` is called once for each group.
///
/// # Errors
///
/// All cases that failed, with what they saw.
pub async fn run(make: impl Fn() -> Subject) -> Result<(), Broken> {
    let mut broken = Vec::new();
    for result in [lives(&make()).await, one_bottle(&make()).await] {
        if let Err(Broken(more)) = result {
            broken.extend(more);
        }
    }
    verdict(broken)
}

/// Runs the cases that start bottles of their own.
///
/// # Errors
///
/// All cases that failed, with what they saw.
pub async fn lives(subject: &Subject) -> Result<(), Broken> {
    let cases = cases![
        a_plan_creates_nothing,
        what_the_backend_lacks_is_refused_when_it_is_planned,
        a_bottle_is_listed_and_opened_while_it_runs_and_leaves_nothing_when_removed,
        stopping_twice_is_stopping_once_and_waiting_says_how_it_ended,
        a_workload_that_ignores_the_first_signal_is_killed_after_the_grace,
        dropping_the_handle_that_started_a_bottle_ends_it,
        a_detached_bottle_goes_on_without_its_handle_and_ends_with_its_main_process,
        a_bottle_that_is_kept_starts_again_until_it_is_removed,
    => subject];
    all(cases, subject.patience).await
}

/// Starts one bottle and runs all cases in it which leave it as they found it.
///
/// # Errors
///
/// All cases that failed, with what they saw.
pub async fn one_bottle(subject: &Subject) -> Result<(), Broken> {
    const CASE: &str = "a_bottle_for_the_shared_cases_starts_and_is_removed";
    let started = timeout(subject.patience, subject.start("contract-shared")).await;
    let bottle = match started {
        Ok(Ok(bottle)) => bottle,
        Ok(Err(seen)) => return Err(Broken(vec![(CASE, seen)])),
        Err(_) => {
            return Err(Broken(vec![(
                CASE,
                Seen("the start takes too long".to_owned()),
            )]));
        }
    };
    let result = in_bottle(bottle.as_ref(), subject.patience).await;
    let mut broken = result.err().map_or_else(Vec::new, |Broken(broken)| broken);
    if let Err(error) = bottle.remove().await {
        broken.push((CASE, error.into()));
    }
    verdict(broken)
}

/// Runs all cases which leave a bottle as they found it in one that runs already.
///
/// # Errors
///
/// All cases that failed, with what they saw.
pub async fn in_bottle(bottle: &dyn Bottle, patience: Duration) -> Result<(), Broken> {
    let cases = cases![
        a_process_ends_with_the_status_it_chose,
        a_process_that_kills_itself_ends_by_that_signal,
        what_cannot_be_started_is_told_apart,
        standard_input_comes_back_from_cat_unchanged,
        output_and_errors_arrive_on_their_own_streams,
        a_process_without_standard_input_reads_the_end_at_once,
        variables_of_a_command_reach_its_process,
        several_processes_run_at_once,
        a_signal_ends_a_process,
        events_are_numbered_from_one_without_gaps,
    => bottle];
    all(cases, patience).await
}

async fn all(cases: Vec<Case<'_>>, patience: Duration) -> Result<(), Broken> {
    let mut broken = Vec::new();
    for (name, case) in cases {
        match timeout(patience, case).await {
            Ok(Ok(())) => {}
            Ok(Err(seen)) => broken.push((name, seen)),
            Err(_) => broken.push((name, Seen(format!("no end after {patience:?}")))),
        }
    }
    verdict(broken)
}

fn verdict(broken: Vec<(&'static str, Seen)>) -> Result<(), Broken> {
    if broken.is_empty() {
        Ok(())
    } else {
        Err(Broken(broken))
    }
}

/// All that a process said, and how it ended.
struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Starts a command, gives it `input`, and waits for its end.
async fn output(bottle: &dyn Bottle, command: Command, input: &[u8]) -> Result<Output, Seen> {
    let process = bottle.exec(&command).await?;
    let Process {
        stdin,
        mut stdout,
        mut stderr,
        control,
    } = process;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        match stdin {
            Some(mut stdin) => {
                // A process may end without having read everything.
                let _ = stdin.write_all(input).await;
                let _ = stdin.shutdown().await;
            }
            None => ensure!(!command.stdin, "a command with standard input got none"),
        }
        Ok::<(), Seen>(())
    };
    let (fed, read_out, read_err, status) = tokio::join!(
        feed,
        stdout.read_to_end(&mut out),
        stderr.read_to_end(&mut err),
        control.wait(),
    );
    fed?;
    read_out?;
    read_err?;
    Ok(Output {
        status: status?,
        stdout: out,
        stderr: err,
    })
}
