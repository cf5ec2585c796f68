//! `bottle inspect`.

use bottle_core::backend::{Live, Summary};
use serde::Serialize;

use super::{json, print};
use crate::args::{Args, InspectArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::Printer;

/// All that is known.
#[derive(Serialize)]
struct Known {
    #[serde(flatten)]
    summary: Summary,
    /// Of one that runs.
    live: Option<Live>,
}

pub(super) async fn run(
    args: &Args,
    inspect: &InspectArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let summary = found::find(&*backend, &inspect.bottle).await?;
    let live = if summary.runs() {
        Some(backend.open(&summary.id).await?.inspect().await?)
    } else {
        None
    };
    print(printer, &json(&Known { summary, live })?)
}
