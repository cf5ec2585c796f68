//! `bottle doctor`: what this host has, what it lacks, and how to get it.

use std::fmt::Write;

use bottle_core::registry::Finding;
use bottle_core::text::EscapedUpTo;
use serde_json::json;

use super::unprintable;
use crate::args::{Args, DoctorArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;

/// The longest finding, in characters.
const MAX_LINE: usize = 1024;

pub(super) fn run(
    args: &Args,
    doctor: &DoctorArgs,
    host: &Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let findings = host.registry.examine(&args.backend)?;
    let missing = findings.iter().filter(|finding| !finding.ok).count();
    let text = if doctor.json {
        let all = json!({
            "backend": args.backend,
            "can_start": missing == 0,
            "findings": findings,
        });
        format!("{all}\n")
    } else {
        in_words(&findings, missing)
    };
    printer.data(&text).map_err(unprintable)?;
    Ok(if missing == 0 {
        Status::DONE
    } else {
        Status::FAILED
    })
}

fn in_words(findings: &[Finding], missing: usize) -> String {
    let width = findings.iter().map(|it| it.layer.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut line = |mark: &str, layer: &str, words: &str| {
        let words = EscapedUpTo(words, MAX_LINE);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark:<7}  {layer:<width$}  {words}");
    };
    for Finding {
        layer,
        ok,
        found,
        fix,
    } in findings
    {
        line(if *ok { "ok" } else { "missing" }, layer, found);
        if let Some(fix) = fix {
            line("", "", &format!("fix: {fix}"));
        }
    }
    text.push_str(&match missing {
        0 => "a bottle can start here\n".to_owned(),
        1 => "a bottle cannot start here: 1 layer is missing\n".to_owned(),
        many => format!("a bottle cannot start here: {many} layers are missing\n"),
    });
    text
}
