//! The ends of bottles: `stop`, `kill`, `wait`, `rm`.

use std::time::Duration;

use bottle_core::backend::{Ended, ExitStatus, State};

use super::print;
use crate::args::{Args, KillArgs, RmArgs, StopArgs, WaitArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::Printer;

/// What is printed for a bottle that ended without a status of its main process.
const NO_STATUS: u8 = 137;

/// Stops bottles; those that have ended are no error.
pub(super) async fn stop(
    args: &Args,
    stop: &StopArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let grace = Duration::from_secs(stop.time.into());
    for word in &stop.bottles {
        let found = found::find(&*backend, word).await?;
        // One that can't be opened any more has just ended.
        if found.runs()
            && let Ok(bottle) = backend.open(&found.id).await
        {
            bottle.stop(grace).await?;
        }
        print(printer, &format!("{}\n", found.id))?;
    }
    Ok(Status::DONE)
}

/// Sends a signal to the main process of bottles.
pub(super) async fn kill(
    args: &Args,
    kill: &KillArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    for word in &kill.bottles {
        let bottle = found::open(&*backend, word).await?;
        bottle.kill(kill.signal.0).await?;
        print(printer, &format!("{}\n", bottle.id()))?;
    }
    Ok(Status::DONE)
}

/// Waits for the end of bottles, and prints the status of each.
pub(super) async fn wait(
    args: &Args,
    wait: &WaitArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    for word in &wait.bottles {
        let found = found::find(&*backend, word).await?;
        let code = match &found.state {
            State::Ended { code, .. } => *code,
            State::Running => {
                let bottle = found::open(&*backend, &found.id).await?;
                let ended = tokio::select! {
                    ended = bottle.wait() => ended?,
                    Some(signal) = host.signals.recv() => {
                        return Ok(Status::signaled(signal.number()));
                    }
                };
                match ended {
                    Ended::Goodbye(status) => status.map(ExitStatus::code),
                    Ended::Killed | Ended::Crashed(_) => None,
                }
            }
        };
        print(printer, &format!("{}\n", code.unwrap_or(NO_STATUS)))?;
    }
    Ok(Status::DONE)
}

/// Removes bottles.
pub(super) async fn rm(
    args: &Args,
    rm: &RmArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    for word in &rm.bottles {
        let found = found::find(&*backend, word).await?;
        match backend.open(&found.id).await {
            Ok(bottle) if found.runs() && rm.force => bottle.remove().await?,
            Ok(_) | Err(_) => backend.remove(&found.id).await.map_err(|error| {
                let hint = found.runs().then_some("`--force` stops it first");
                let failure = Failure::from(error);
                match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            })?,
        }
        print(printer, &format!("{}\n", found.id))?;
    }
    Ok(Status::DONE)
}
