//! What is done with bottles that are there: the arguments of a dozen short verbs.

use std::path::PathBuf;

use bottle_core::id::BottleId;
use bottle_core::spec::UserName;
use clap::Args;

use super::values::{EnvArg, KillSignal, Since};
use crate::terminal::DetachKeys;

/// Flags of `exec`.
#[derive(Args, Debug)]
#[command(after_help = "\
The status of the command becomes the exit status. Signals to `bottle exec` go to the command.")]
pub(crate) struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal, and pass standard input on
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Start it and come back at once; what it says is thrown away
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// Set a variable, or take it over from here if it is set (can be repeated)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<EnvArg>,
    /// Set the variables of this file, one `NAME[=VALUE]` a line (can be repeated)
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Run as this user of the bottle
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<UserName>,
    /// Run in this directory of the bottle
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The bottle, by id or name
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
    /// The command and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<String>,
}

/// Flags of `attach`.
#[derive(Args, Debug)]
#[command(after_help = "\
Its status becomes the exit status. Signals to `bottle attach` go to the process.")]
pub(crate) struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    /// Detach from a terminal when these keys are typed
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: DetachKeys,
    /// The bottle, by id or name
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
}

/// Flags of `list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Also those that have ended and were kept
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only ids, a line each
    #[arg(long, conflicts_with = "json")]
    pub(crate) ids: bool,
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The bottle, by id or name
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
}

/// Flags of `logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// Go on until the bottle has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin with what was said then: a time (`2026-01-02T03:04:05Z`), or so long ago (`10m`)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<Since>,
    /// Put the time in front of each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// The bottle, by id or name
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
}

/// Flags of `events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Go on until the bottle has ended
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Print each as a line of JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The bottle, by id or name; one that was removed by id
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
}

/// Flags of `stop`.
#[derive(Args, Debug)]
pub(crate) struct StopArgs {
    /// Kill it after this many seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
    /// Bottles, by id or name
    #[arg(value_name = "BOTTLE", required = true)]
    pub(crate) bottles: Vec<BottleId>,
}

/// Flags of `kill`.
#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// Send this signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub(crate) signal: KillSignal,
    /// Bottles, by id or name
    #[arg(value_name = "BOTTLE", required = true)]
    pub(crate) bottles: Vec<BottleId>,
}

/// Flags of `rm`.
#[derive(Args, Debug)]
pub(crate) struct RmArgs {
    /// Stop those that run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Bottles, by id or name
    #[arg(value_name = "BOTTLE", required = true)]
    pub(crate) bottles: Vec<BottleId>,
}

/// Flags of `wait`.
#[derive(Args, Debug)]
pub(crate) struct WaitArgs {
    /// Bottles, by id or name
    #[arg(value_name = "BOTTLE", required = true)]
    pub(crate) bottles: Vec<BottleId>,
}

/// Flags of `restart`.
#[derive(Args, Debug)]
#[command(after_help = "\
Values of secrets are looked up again. A bottle that was not started detached runs in the
foreground again.")]
pub(crate) struct RestartArgs {
    /// Kill one that runs after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) time: u32,
    /// The bottle, by id or name
    #[arg(value_name = "BOTTLE")]
    pub(crate) bottle: BottleId,
}
