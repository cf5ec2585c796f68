//! `bottle list`.

use std::time::SystemTime;

use bottle_core::backend::{State, Summary};
use bottle_core::event::unix_ms;
use bottle_core::text::EscapedUpTo;

use super::{json, print};
use crate::args::{Args, ListArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;
use crate::table::{ago, table};

/// The longest cell, in characters.
const MAX_CELL: usize = 40;

pub(super) async fn run(
    args: &Args,
    list: &ListArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let mut found = backend.list().await?;
    if !list.all {
        found.retain(Summary::runs);
    }
    if list.json {
        return print(printer, &json(&found)?);
    }
    if list.ids {
        let lines: String = found.iter().map(|it| format!("{}\n", it.id)).collect();
        return print(printer, &lines);
    }
    let now = unix_ms(SystemTime::now());
    let rows = found.iter().map(|it| row(it, now));
    let heads = ["ID", "IMAGE", "COMMAND", "CREATED", "STATE", "PORTS"];
    print(printer, &table(heads, rows))
}

fn row(summary: &Summary, now_ms: u64) -> [String; 6] {
    let cell = |text: &str| EscapedUpTo(text, MAX_CELL).to_string();
    let since = |ms: u64| ago(now_ms.saturating_sub(ms) / 1000);
    let state = match &summary.state {
        State::Running => "running".to_owned(),
        State::Ended { how, at_ms: 0, .. } => cell(how),
        State::Ended { how, at_ms, .. } => format!("{} {}", cell(how), since(*at_ms)),
    };
    let ports: Vec<_> = summary.ports.iter().map(ToString::to_string).collect();
    [
        summary.id.to_string(),
        cell(&summary.image),
        cell(&summary.command.join(" ")),
        since(summary.created_ms),
        state,
        ports.join(" "),
    ]
}
