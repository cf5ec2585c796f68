//! The command line as it is written; the comments are its help.

mod bottles;
mod doctor;
mod image;
mod start;
mod values;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub(crate) use self::bottles::{
    AttachArgs, EventsArgs, ExecArgs, InspectArgs, KillArgs, ListArgs, LogsArgs, RestartArgs,
    RmArgs, StopArgs, WaitArgs,
};
pub(crate) use self::doctor::DoctorArgs;
pub(crate) use self::image::{ExportArgs, ImageArgs, ImageCommand};
pub(crate) use self::start::StartArgs;
pub(crate) use self::values::{EnvArg, SecretRef, Since};
use crate::exit;
use crate::progress::Verbosity;

/// Run a program in a microVM of its own, with a gateway as its only way out
#[derive(Debug, Parser)]
#[command(name = "bottle", version, after_help = exit::HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// Use this backend
    #[arg(
        long,
        global = true,
        display_order = 900,
        value_name = "NAME",
        default_value = "krun"
    )]
    pub(crate) backend: String,
    /// Say more: every stage of a start, and how it ended
    #[arg(
        short,
        long,
        global = true,
        display_order = 901,
        conflicts_with = "quiet"
    )]
    verbose: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true, display_order = 902)]
    quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a bottle, run a command in it, and remove it when the command ends
    Start(Box<StartArgs>),
    /// Run another command in a bottle that runs
    Exec(Box<ExecArgs>),
    /// Connect to the main process of a bottle that runs
    Attach(AttachArgs),
    /// List bottles
    #[command(visible_aliases = ["ls", "ps"])]
    List(ListArgs),
    /// Say all that is known of a bottle, as JSON
    Inspect(InspectArgs),
    /// Print what the main process of a bottle said
    Logs(LogsArgs),
    /// Print what happened in a bottle: what it reached, and what was refused
    Events(EventsArgs),
    /// Stop bottles, giving what runs in them time to end
    Stop(StopArgs),
    /// Send a signal to the main process of bottles
    Kill(KillArgs),
    /// Wait until bottles have ended, and print the status of each
    Wait(WaitArgs),
    /// Start a bottle that was kept again, with the disk it had; one that runs is stopped first
    Restart(RestartArgs),
    /// Remove bottles that have ended; their records stay
    Rm(RmArgs),
    /// Get, list, export and remove images
    Image(Box<ImageArgs>),
    /// Say what this host has, what it lacks, and how to get it
    Doctor(DoctorArgs),
}

impl Args {
    /// Parses a command line; an error may also be a request for help.
    pub(crate) fn parse(
        args: impl IntoIterator<Item = OsString>,
        columns: Option<usize>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        if let Some(columns) = columns {
            command = command.term_width(columns);
        }
        let mut matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }

    /// Returns how much is to be said.
    pub(crate) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}
