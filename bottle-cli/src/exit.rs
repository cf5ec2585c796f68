//! Exit statuses: the one table.
//!
//! | status | of | meaning |
//! |---|---|---|
//! | 0, the process's own | `start`, `restart`, `exec`, `attach` | the process ended by itself |
//! | 125 | the same | bottle failed, or could not start the process |
//! | 126 | the same | the program is there and cannot be run |
//! | 127 | the same | the program was not found |
//! | 128+n | the same | signal n ended the process |
//! | 0 | others | done |
//! | 1 | others | not done, or the answer is no |
//! | 2 | all | the command line was not understood |

use std::process::ExitCode;

use bottle_core::backend::ExitStatus;

use crate::args::Command;
use crate::failure::Failure;

/// The same for `--help`.
pub(crate) const HELP: &str = "\
Exit status:
  start, restart, exec, attach: the process's own; 125 if bottle failed, 126 if the program cannot
  be run, 127 if it was not found, 128+n if signal n ended it. Others: 0, or 1 for failure. All: 2
  for a wrong command line";

/// What the process exits with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status(pub u8);

impl Status {
    /// It was done.
    pub const DONE: Self = Self(0);
    /// It was not done.
    pub const FAILED: Self = Self(1);
    /// The command line was not understood.
    pub const USAGE: Self = Self(2);
    /// The bottle failed, not what was to run in it.
    pub const BOTTLE_FAILED: Self = Self(125);

    /// A signal (Linux number) ended it.
    pub(crate) fn signaled(signal: u8) -> Self {
        ExitStatus::Signaled(signal).into()
    }
}

impl From<ExitStatus> for Status {
    fn from(status: ExitStatus) -> Self {
        Self(status.code())
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status.0)
    }
}

/// Returns the status for a command that failed.
pub(crate) fn of_failure(command: &Command, failure: &Failure) -> Status {
    match command {
        Command::Start(_) | Command::Restart(_) | Command::Exec(_) | Command::Attach(_) => {
            failure.spawn_code().map_or(Status::BOTTLE_FAILED, Status)
        }
        Command::Doctor(_)
        | Command::Events(_)
        | Command::Image(_)
        | Command::Inspect(_)
        | Command::Kill(_)
        | Command::List(_)
        | Command::Logs(_)
        | Command::Rm(_)
        | Command::Stop(_)
        | Command::Wait(_) => Status::FAILED,
    }
}
