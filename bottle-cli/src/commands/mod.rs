//! One module per verb: from arguments over a call into the core to what is printed.

mod attach;
mod doctor;
mod events;
mod exec;
pub(crate) mod image;
mod inspect;
mod list;
mod logs;
mod restart;
mod start;
mod stop;

use std::io;

use serde::Serialize;

use crate::args::{Args, Command};
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;

/// Runs the verb.
pub(crate) async fn run(
    args: &Args,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    match &args.command {
        Command::Start(start) => start::run(args, start, host, printer).await,
        Command::Exec(exec) => exec::run(args, exec, host, printer).await,
        Command::Attach(attach) => attach::run(args, attach, host, printer).await,
        Command::List(list) => list::run(args, list, host, printer).await,
        Command::Inspect(inspect) => inspect::run(args, inspect, host, printer).await,
        Command::Logs(logs) => logs::run(args, logs, host, printer).await,
        Command::Events(events) => events::run(args, events, host, printer).await,
        Command::Stop(stop) => stop::stop(args, stop, host, printer).await,
        Command::Kill(kill) => stop::kill(args, kill, host, printer).await,
        Command::Wait(wait) => stop::wait(args, wait, host, printer).await,
        Command::Rm(rm) => stop::rm(args, rm, host, printer).await,
        Command::Restart(restart) => restart::run(args, restart, host, printer).await,
        Command::Image(image) => image::run(args, image, host, printer).await,
        Command::Doctor(doctor) => doctor::run(args, doctor, host, printer),
    }
}

/// Words a failure to print data.
fn unprintable(error: io::Error) -> Failure {
    Failure::environment(anyhow::Error::new(error).context("cannot write to standard output"))
}

fn print(printer: &Printer, text: &str) -> Result<Status, Failure> {
    printer.data(text).map_err(unprintable)?;
    Ok(Status::DONE)
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(Failure::environment)?;
    Ok(format!("{text}\n"))
}
