//! `bottle attach`: in front of the main process of a bottle that runs.

use anyhow::anyhow;

use crate::args::{Args, AttachArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::Printer;
use crate::progress::Verbosity;
use crate::session::{OnTerminal, Outcome, Role, Session};

pub(super) async fn run(
    args: &Args,
    attach: &AttachArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let AttachArgs {
        no_stdin,
        detach_keys,
        bottle,
    } = attach;
    let backend = host.registry.make(&args.backend)?;
    let found = found::find(&*backend, bottle).await?;
    let terminal = host.terminal.clone().filter(|_| found.tty);
    if found.tty && terminal.is_none() && !no_stdin {
        return Err(Failure::user(anyhow!(
            "bottle `{}` has a terminal, and standard input and output are none",
            found.id
        ))
        .hint("`--no-stdin` shows what is on it"));
    }
    let bottle = found::open(&*backend, &found.id).await?;
    let window = terminal.as_ref().map(|terminal| terminal.window());
    let mut process = bottle.attach(window).await?;
    if *no_stdin {
        process.stdin = None;
    }
    let session = Session {
        bottle: bottle.as_ref(),
        printer,
        signals: &mut host.signals,
        role: Role::Visitor,
        terminal: terminal.map(|terminal| OnTerminal {
            terminal,
            keys: Some(detach_keys.clone()),
        }),
    };
    match session.run(process, &mut host.stdin).await? {
        Outcome::Ended(status) => Ok(status),
        Outcome::Left => {
            if args.verbosity() != Verbosity::Quiet {
                printer.say(&format!("detached from `{}`", found.id));
            }
            Ok(Status::DONE)
        }
    }
}
