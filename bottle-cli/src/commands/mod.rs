//! One module per verb: from arguments over a call into the core to what is printed.

mod doctor;
pub(crate) mod image;
mod start;

use std::io;

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
        Command::Image(image) => image::run(args, image, host, printer).await,
        Command::Doctor(doctor) => doctor::run(args, doctor, host, printer),
    }
}

/// Words a failure to print data.
fn unprintable(error: io::Error) -> Failure {
    Failure::environment(anyhow::Error::new(error).context("cannot write to standard output"))
}
