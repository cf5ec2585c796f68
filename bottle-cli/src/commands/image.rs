//! `bottle image`: what is kept to boot from.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use bottle_core::images::{Images, Pulled, Removed, StoredImage};
use bottle_core::spec::ImageSource;
use bottle_core::text::EscapedUpTo;

use super::{json, print};
use crate::args::{Args, ImageArgs, ImageCommand};
use crate::exit::Status;
use crate::exporting;
use crate::failure::Failure;
use crate::host::Host;
use crate::printer::Printer;
use crate::progress::Verbosity;
use crate::pulling::Pulling;
use crate::sizes::{bytes, layers};
use crate::table::{ago, table};

/// The longest name in a line, in characters.
pub(crate) const MAX_NAME: usize = 256;
/// How much of a digest tells images apart, in characters without `sha256:`.
const SHORT: usize = 12;

pub(super) async fn run(
    args: &Args,
    image: &ImageArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let Some(images) = backend.images() else {
        let name = backend.name();
        return Err(Failure::user(anyhow!("backend `{name}` keeps no images")));
    };
    let verbosity = args.verbosity();
    match &image.command {
        ImageCommand::Pull(pull) => {
            let wanted = Wanted {
                source: &pull.image,
                name: None,
                json: pull.json,
            };
            get(images, &wanted, host, printer, verbosity).await
        }
        ImageCommand::Import(import) => {
            let wanted = Wanted {
                source: &import.source,
                name: Some(import.name.to_string()),
                json: import.json,
            };
            get(images, &wanted, host, printer, verbosity).await
        }
        ImageCommand::Export(export) => {
            exporting::run(images, export, host, printer, verbosity).await
        }
        ImageCommand::Ls(list) => {
            let found = images.list().await?;
            let text = if list.json {
                json(&found)?
            } else {
                listed(&found, SystemTime::now())
            };
            print(printer, &text)
        }
        ImageCommand::Inspect(inspect) => {
            let record = images.inspect(&inspect.image.to_string()).await?;
            print(printer, &json(&record)?)
        }
        ImageCommand::Rm(remove) => {
            for image in &remove.images {
                let removed = images.remove(&image.to_string()).await?;
                say_removed(printer, verbosity, &removed);
            }
            Ok(Status::DONE)
        }
        ImageCommand::Prune(prune) => {
            let removed = images.prune(prune.all).await?;
            if prune.json {
                return print(printer, &json(&removed)?);
            }
            say_removed(printer, verbosity, &removed);
            Ok(Status::DONE)
        }
    }
}

/// What is to be got, and how it is to be told.
struct Wanted<'a> {
    source: &'a ImageSource,
    name: Option<String>,
    json: bool,
}

async fn get(
    images: &dyn Images,
    wanted: &Wanted<'_>,
    host: &mut Host,
    printer: &Printer,
    verbosity: Verbosity,
) -> Result<Status, Failure> {
    let since = Instant::now();
    let pulling = Arc::new(Pulling::new(printer, verbosity, host.stderr_is_terminal));
    let work = images.pull(
        wanted.source,
        wanted.name.as_deref(),
        Arc::clone(&pulling) as _,
    );
    let pulled = tokio::select! {
        pulled = work => pulled?,
        Some(signal) = host.signals.recv() => {
            pulling.finish();
            if verbosity != Verbosity::Quiet {
                printer.say("stopped; the next pull goes on from here");
            }
            return Ok(Status::signaled(signal.number()));
        }
    };
    pulling.finish();
    if verbosity != Verbosity::Quiet {
        printer.say(&summary(&pulled, since));
    }
    if wanted.json {
        return print(printer, &json(&pulled)?);
    }
    Ok(Status::DONE)
}

fn summary(pulled: &Pulled, since: Instant) -> String {
    let Pulled { record, changed } = pulled;
    let name = EscapedUpTo(&record.name, MAX_NAME);
    if !changed {
        return format!("`{name}` is here already");
    }
    let size = bytes(record.layers.iter().map(|layer| layer.size).sum());
    let layers = layers(record.layers.len());
    let took = since.elapsed().as_secs_f64();
    format!("`{name}` is here now: {layers}, {size}, in {took:.1}s")
}

/// One line an image, aligned.
fn listed(images: &[StoredImage], now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs());
    let rows = images.iter().map(|image| {
        let StoredImage {
            record,
            own_bytes,
            shared_bytes,
            in_use,
        } = image;
        let digest = record.manifest.trim_start_matches("sha256:");
        [
            EscapedUpTo(&record.name, MAX_NAME).to_string(),
            digest.chars().take(SHORT).collect(),
            ago(now.saturating_sub(record.added)),
            bytes(*own_bytes),
            bytes(*shared_bytes),
            if *in_use { "in use" } else { "" }.to_owned(),
        ]
    });
    table(["NAME", "DIGEST", "ADDED", "OWN", "SHARED", ""], rows)
}

fn say_removed(printer: &Printer, verbosity: Verbosity, removed: &Removed) {
    if verbosity == Verbosity::Quiet {
        return;
    }
    for name in &removed.names {
        printer.say(&format!("removed `{}`", EscapedUpTo(name, MAX_NAME)));
    }
    printer.say(&format!("{} freed", bytes(removed.bytes)));
}
