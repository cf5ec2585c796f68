//! A bottle's record: one JSON line an event, appended and never rewritten.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::SystemTime;

use bottle_core::event::{Event, EventSink, Happening, unix_ms};
use nix::libc::O_NOFOLLOW;
use tokio::sync::Notify;

/// How many bytes before the end the last event is looked for.
const LAST: u64 = 256 << 10;

/// Appends events to the file.
///
/// A record that cannot be written ends the bottle: see [`Record::broken`].
#[derive(Debug)]
pub(crate) struct Record {
    file: Mutex<Tail>,
    broken: Notify,
}

#[derive(Debug)]
struct Tail {
    file: File,
    next_seq: u64,
}

impl Record {
    /// Opens the record, creating it if need be, and goes on after its last whole line; what a
    /// killed writer left half-written behind it is cut off.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (last, whole) = match read_whole(path, 0) {
            Ok((events, whole)) => (events.last().map_or(0, |event| event.seq), whole),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
            Err(error) => return Err(error),
        };
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(path)?;
        file.set_len(whole)?;
        Ok(Self {
            file: Mutex::new(Tail {
                file,
                next_seq: last + 1,
            }),
            broken: Notify::new(),
        })
    }

    /// Resolves if an event could not be written.
    pub(crate) async fn broken(&self) {
        self.broken.notified().await;
    }

    fn append(&self, what: Happening) -> io::Result<()> {
        let poisoned = |_| io::Error::other("a writer panicked");
        let mut tail = self.file.lock().map_err(poisoned)?;
        let event = Event {
            seq: tail.next_seq,
            time_ms: unix_ms(SystemTime::now()),
            what,
        };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        tail.file.write_all(&line)?;
        tail.next_seq += 1;
        Ok(())
    }
}

impl EventSink for Record {
    fn record(&self, what: Happening) {
        if let Err(error) = self.append(what) {
            tracing::error!(%error, "cannot write the record");
            self.broken.notify_one();
        }
    }
}

/// Writes the last line of a record whose shim was killed before it could.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn complete(path: &Path, end: Happening) -> io::Result<()> {
    let last = last(path)?.map(|event| event.what);
    if !matches!(last, Some(Happening::End { .. })) {
        Record::open(path)?.record(end);
    }
    Ok(())
}

/// Reads the events with a number of at least `from`; a last line that is not whole is left out.
///
/// # Errors
///
/// What the file system says; [`io::ErrorKind::InvalidData`] for a line that is no event.
pub(crate) fn read(path: &Path, from: u64) -> io::Result<Vec<Event>> {
    read_whole(path, from).map(|(events, _)| events)
}

/// Reads the last event, without reading what is before it if that is long.
///
/// # Errors
///
/// What the file system says.
pub(crate) fn last(path: &Path) -> io::Result<Option<Event>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let last = end.get(..whole).unwrap_or_default();
    let last = last.rsplit(|byte| *byte == b'\n').next();
    Ok(last.and_then(|line| serde_json::from_slice(line).ok()))
}

/// Reads as [`read`] does, and says how many bytes the whole lines take.
fn read_whole(path: &Path, from: u64) -> io::Result<(Vec<Event>, u64)> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut events = Vec::new();
    let mut line = String::new();
    let mut whole = 0;
    while reader.read_line(&mut line)? > 0 && line.ends_with('\n') {
        whole += line.len() as u64;
        let event: Event = serde_json::from_str(&line)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if event.seq >= from {
            events.push(event);
        }
        line.clear();
    }
    Ok((events, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbering_goes_on_where_a_killed_writer_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        Record::open(&path).unwrap().record(Happening::Violation {
            what: "a".to_owned(),
        });
        Record::open(&path).unwrap().record(Happening::End {
            how: "b".to_owned(),
            code: None,
        });
        let events = read(&path, 2).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(
            events[0].what,
            Happening::End {
                how: "b".to_owned(),
                code: None,
            }
        );
    }

    #[test]
    fn a_half_written_last_line_is_left_out_and_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.jsonl");
        Record::open(&path).unwrap().record(Happening::Violation {
            what: "a".to_owned(),
        });
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"seq\":2,\"ti").unwrap();
        assert_eq!(read(&path, 0).unwrap().len(), 1);
        assert_eq!(last(&path).unwrap().unwrap().seq, 1);
        Record::open(&path).unwrap().record(Happening::End {
            how: "b".to_owned(),
            code: None,
        });
        assert_eq!(read(&path, 0).unwrap().len(), 2);
        assert_eq!(last(&path).unwrap().unwrap().seq, 2);
    }
}
