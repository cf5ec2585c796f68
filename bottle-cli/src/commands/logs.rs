//! `bottle logs`.

use std::io::{self, ErrorKind};
use std::time::{Duration, SystemTime};

use bottle_core::event::unix_ms;
use bottle_core::log::{LogPosition, LogRecord, LogStream};
use tokio::time::sleep;

use super::unprintable;
use crate::args::{Args, LogsArgs, Since};
use crate::exit::Status;
use crate::failure::Failure;
use crate::found;
use crate::host::Host;
use crate::printer::{Printer, Stream};

/// How often a log that is followed is looked at.
const PERIOD: Duration = Duration::from_millis(100);

pub(super) async fn run(
    args: &Args,
    logs: &LogsArgs,
    host: &mut Host,
    printer: &Printer,
) -> Result<Status, Failure> {
    let backend = host.registry.make(&args.backend)?;
    let found = found::find(&*backend, &logs.bottle).await?;
    let mut lines = Lines {
        printer,
        since_ms: logs.since.map_or(0, millis),
        timestamps: logs.timestamps,
        fresh: [true; 2],
    };
    let bottle = if logs.follow && found.runs() {
        // It may have ended just now.
        backend.open(&found.id).await.ok()
    } else {
        None
    };
    let mut from = LogPosition::default();
    let mut ended = bottle.is_none();
    loop {
        let chunk = backend.log(&found.id, from).await;
        let chunk = match chunk {
            Ok(chunk) => chunk,
            // A bottle that is not kept takes its log along.
            Err(_) if logs.follow && ended => return Ok(Status::DONE),
            Err(error) => return Err(error.into()),
        };
        from = chunk.next;
        for record in &chunk.records {
            match lines.print(record) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Status::DONE),
                Err(error) => return Err(unprintable(error)),
            }
        }
        if !chunk.records.is_empty() {
            continue;
        }
        let Some(bottle) = bottle.as_ref().filter(|_| !ended) else {
            return Ok(Status::DONE);
        };
        tokio::select! {
            () = sleep(PERIOD) => {}
            // What it said last is still to be read.
            _ = bottle.wait() => ended = true,
            Some(signal) = host.signals.recv() => return Ok(Status::signaled(signal.number())),
        }
    }
}

fn millis(since: Since) -> u64 {
    let time = match since {
        Since::At(time) => time,
        Since::Ago(ago) => SystemTime::now()
            .checked_sub(ago)
            .unwrap_or(SystemTime::UNIX_EPOCH),
    };
    unix_ms(time)
}

/// Prints records on the streams they came on.
struct Lines<'a> {
    printer: &'a Printer,
    since_ms: u64,
    timestamps: bool,
    /// Whether the next byte of a stream begins a line.
    fresh: [bool; 2],
}

impl Lines<'_> {
    fn print(&mut self, record: &LogRecord) -> io::Result<()> {
        let LogRecord {
            time_ms,
            stream,
            bytes,
        } = record;
        if *time_ms < self.since_ms {
            return Ok(());
        }
        let (to, fresh) = match stream {
            LogStream::Out => (Stream::Out, &mut self.fresh[0]),
            LogStream::Err => (Stream::Err, &mut self.fresh[1]),
        };
        if !self.timestamps {
            return self.printer.bytes(to, bytes);
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(*time_ms);
        let stamp = format!("{} ", humantime::format_rfc3339_millis(time));
        let mut stamped = Vec::with_capacity(bytes.len() + stamp.len());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            if *fresh {
                stamped.extend_from_slice(stamp.as_bytes());
            }
            stamped.extend_from_slice(line);
            *fresh = line.ends_with(b"\n");
        }
        self.printer.bytes(to, &stamped)
    }
}
