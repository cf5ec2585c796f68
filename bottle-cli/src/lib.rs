//! The dialogue of the `bottle` command: arguments, words and exit statuses, and nothing else.
//!
//! ```text
//! main ── Host (environment, streams, signals, registry) ──► run ──► args ──► commands ──► Status
//!                                                                     │           │
//!                                                             clap's words    printer, failure
//! ```
//!
//! Everything that a command reads or writes comes in with [`Host`], so that tests drive the whole
//! of it in memory, with a backend of their own.
#![forbid(unsafe_code)]

mod args;
pub mod backends;
mod commands;
pub mod exit;
mod exporting;
mod failure;
mod found;
pub mod host;
mod modes;
mod names;
mod printer;
mod progress;
mod pulling;
mod session;
mod sizes;
mod table;
pub mod terminal;

use std::ffi::OsString;
use std::io;

use anyhow::Error;

use crate::args::Args;
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;

/// Says why nothing can be run at all, and returns the exit status.
pub fn cannot_begin(error: io::Error) -> Status {
    let failure = Failure::environment(Error::new(error).context("cannot start threads"));
    failure.print(&Printer::of_this_process());
    Status::FAILED
}

/// Runs one command line and returns the exit status.
///
/// # Cancellation
///
/// Dropping the future ends a bottle that it started.
pub async fn run(args: impl IntoIterator<Item = OsString>, mut host: Host) -> Status {
    let printer = host.printer();
    let args = match Args::parse(args, host.columns) {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            printer.say_as_it_is(&error.to_string());
            return Status::USAGE;
        }
        Err(help) => {
            return match printer.data(&help.to_string()) {
                Ok(()) => Status::DONE,
                Err(_) => Status::FAILED,
            };
        }
    };
    match commands::run(&args, &mut host, &printer).await {
        Ok(status) => status,
        Err(failure) => {
            failure.print(&printer);
            exit::of_failure(&args.command, &failure)
        }
    }
}
