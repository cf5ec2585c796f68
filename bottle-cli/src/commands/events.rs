//! `bottle events`.

use std::time::{Duration, SystemTime};

use bottle_core::backend::{Backend, Bottle};
use bottle_core::event::{Event, Happening};
use bottle_core::id::BottleId;
use bottle_core::text::EscapedUpTo;
use tokio::time::sleep;

use super::print;
use crate::args::{Args, EventsArgs};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::Printer;

/// How often a record that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(100);
/// The longest of somebody else's words in a line, in characters.
const MAX_WORDS: usize = 256;

pub(super) async fn run(
    args: &Args,
    events: &EventsArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let (id, bottle) = subject(&*backend, events).await?;
    let mut from = 0;
    let mut ended = bottle.is_none();
    loop {
        let found = backend.events(&id, from).await?;
        let lines: String = found.iter().map(|event| line(event, events.json)).collect();
        print(printer, &lines)?;
        if let Some(last) = found.last() {
            from = last.seq + 1;
            continue;
        }
        let Some(bottle) = bottle.as_ref().filter(|_| !ended) else {
            return Ok(Status::DONE);
        };
        tokio::select! {
            () = sleep(PERIOD) => {}
            // What happened last is still to be read.
            _ = bottle.wait() => ended = true,
            Some(signal) = host.signals.recv() => return Ok(Status::signaled(signal.number())),
        }
    }
}

/// Finds the bottle, which may have been removed, and opens it if it is to be followed.
async fn subject(
    backend: &dyn Backend,
    events: &EventsArgs,
) -> Result<(BottleId, Option<Box<dyn Bottle>>), Failure> {
    match found::find(backend, &events.bottle).await {
        Ok(found) if events.follow && found.runs() => {
            // It may have ended just now.
            let bottle = backend.open(&found.id).await.ok();
            Ok((found.id, bottle))
        }
        Ok(found) => Ok((found.id, None)),
        // Its record may still be there.
        Err(failure) => match backend.events(&events.bottle, 0).await {
            Ok(_) => Ok((events.bottle.clone(), None)),
            Err(_) => Err(failure),
        },
    }
}

fn line(event: &Event, json: bool) -> String {
    if json {
        let json = serde_json::to_string(event).unwrap_or_default();
        return format!("{json}\n");
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(event.time_ms);
    let time = humantime::format_rfc3339_millis(time);
    format!("{time}  {}\n", words(&event.what))
}

/// Words an event for a person; everything that a guest chose is escaped.
fn words(what: &Happening) -> String {
    let safe = |text: &str| EscapedUpTo(text, MAX_WORDS).to_string();
    let request = |method: &Option<String>, host: &str, port: u16, path: &Option<String>| {
        let method = method.as_ref().map_or(String::new(), |it| safe(it) + " ");
        let path = path.as_ref().map_or(String::new(), |it| safe(it));
        format!("{method}{}:{port}{path}", safe(host))
    };
    match what {
        Happening::Stage { stage, took_ms } => format!("stage    {} in {took_ms} ms", safe(stage)),
        Happening::StartFailed { stage, reason } => {
            format!("failed   stage {}: {}", safe(stage), safe(reason))
        }
        Happening::Dns {
            name,
            qtype,
            answer,
        } => format!("dns      {} {}: {}", safe(name), safe(qtype), safe(answer)),
        Happening::Allowed {
            id,
            host,
            port,
            method,
            path,
            rule,
            status,
            ..
        } => {
            let status = status.map_or(String::new(), |status| format!(" {status}"));
            let request = request(method, host, *port, path);
            format!("allowed  {id} {request}{status} ({})", safe(rule))
        }
        Happening::Refused {
            id,
            host,
            port,
            method,
            path,
            detail,
            ..
        } => {
            let request = request(method, host, *port, path);
            format!("refused  {id} {request}: {}", safe(detail))
        }
        Happening::Violation { what } => format!("warning  {}", safe(what)),
        Happening::Waiver { layer } => format!("waiver   {}", safe(layer)),
        Happening::Frozen { why } => format!("frozen   {}", safe(why)),
        Happening::Thawed {} => "goes on".to_owned(),
        Happening::OutOfMemory { pid, name } => {
            format!("memory   none left; {} ({pid}) was killed", safe(name))
        }
        Happening::TimedOut { limit_ms } => format!("timeout  after {limit_ms} ms"),
        Happening::End { how, .. } => format!("end      {}", safe(how)),
        Happening::Closed {
            id,
            sent,
            received,
            took_ms,
        } => format!("closed   {id} {sent} B out, {received} B in, {took_ms} ms"),
        Happening::Repeated { id, count } => format!("again    {count} more like {id}"),
        Happening::SecretSeen {
            id,
            host,
            port,
            method,
            path,
            overwritten,
            detail,
            ..
        } => {
            let request = request(method, host, *port, path);
            let fate = if *overwritten {
                "overwritten"
            } else {
                "it has left"
            };
            format!("secret   {id} {request}: {} ({fate})", safe(detail))
        }
        _ => "something that this release has no words for".to_owned(),
    }
}
