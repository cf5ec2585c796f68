//! What a bottle's main process said: bounded files of records in the bottle's directory of state.
//!
//! ```text
//! STATE/bottles/<id>/log.<n>     n counts up; the newest two are kept
//!
//! record: time_ms u64 · length u32 · stream u8 · 3 × 0 · bytes          little-endian
//! ```
//!
//! The shim alone writes, whoever can read the directory reads: a reader stops at a record that is
//! not whole, because its writer is at it or was killed at it; the next writer cuts such a one off.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bottle_core::event::unix_ms;
use bottle_core::log::{LogChunk, LogPosition, LogRecord, LogStream};
use nix::libc::O_NOFOLLOW;

/// Bytes after which a file is closed and the next begun; two of them are kept.
const MAX_FILE: u64 = 8 << 20;
/// The longest record's bytes; a writer splits what is longer.
const MAX_RECORD: usize = 64 << 10;
/// Bytes of records that one read returns, about.
const CHUNK: usize = 1 << 20;
/// Bytes in front of each record's own.
const HEADER: usize = 16;

/// Writes the log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    dir: PathBuf,
    number: u64,
    file: File,
    size: u64,
}

impl LogWriter {
    /// Goes on with the log of this directory, or begins it.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let number = numbers(dir)?.pop().unwrap_or(0);
        let (file, size) = open_end(dir, number)?;
        Ok(Self {
            dir: dir.to_owned(),
            number,
            file,
            size,
        })
    }

    /// Appends output.
    ///
    /// # Errors
    ///
    /// What the file system says; a record may then be cut short, and is taken as absent.
    pub(crate) fn write(&mut self, stream: LogStream, bytes: &[u8]) -> io::Result<()> {
        let time = unix_ms(SystemTime::now()).to_le_bytes();
        for piece in bytes.chunks(MAX_RECORD) {
            if self.size >= MAX_FILE {
                self.turn()?;
            }
            let length = u32::try_from(piece.len()).unwrap_or(u32::MAX).to_le_bytes();
            let stream = [u8::from(stream == LogStream::Err), 0, 0, 0];
            let record = [&time[..], &length, &stream, piece].concat();
            self.file.write_all(&record)?;
            self.size += record.len() as u64;
        }
        Ok(())
    }

    /// Begins the next file and forgets the one before the last.
    fn turn(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        (self.file, self.size) = open_end(&self.dir, number)?;
        self.number = number;
        for old in numbers(&self.dir)? {
            if old + 1 < number {
                fs::remove_file(path(&self.dir, old))?;
            }
        }
        Ok(())
    }
}

/// Opens one file behind its last whole record.
fn open_end(dir: &Path, number: u64) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(path(dir, number))?;
    let mut end = 0;
    while let Some(record) = next(&mut file)? {
        end += (HEADER + record.bytes.len()) as u64;
    }
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok((file, end))
}

/// Reads on from a position. What was thrown away in the meantime is left out.
///
/// # Errors
///
/// What the file system says; [`ErrorKind::InvalidData`] for a file that is no log.
pub(crate) fn read(dir: &Path, from: LogPosition) -> io::Result<LogChunk> {
    let mut chunk = LogChunk {
        records: Vec::new(),
        next: from,
    };
    let mut bytes = 0;
    for number in numbers(dir)? {
        if number < chunk.next.file {
            continue;
        }
        if number > chunk.next.file {
            chunk.next = LogPosition {
                file: number,
                offset: 0,
            };
        }
        let mut file = match File::open(path(dir, number)) {
            Ok(file) => file,
            // It was thrown away just now.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(chunk.next.offset))?;
        while bytes < CHUNK {
            let Some(record) = next(&mut file)? else {
                break;
            };
            let length = HEADER + record.bytes.len();
            bytes += length;
            chunk.next.offset += length as u64;
            chunk.records.push(record);
        }
        if bytes >= CHUNK {
            break;
        }
    }
    Ok(chunk)
}

/// Removes the log.
///
/// # Errors
///
/// What the file system says, with the file; the others are removed.
pub(crate) fn remove(dir: &Path) -> Result<(), (PathBuf, io::Error)> {
    let mut first = Ok(());
    for number in numbers(dir).unwrap_or_default() {
        let path = path(dir, number);
        if let Err(error) = fs::remove_file(&path)
            && first.is_ok()
        {
            first = Err((path, error));
        }
    }
    first
}

/// Reads one record; `None` where there is no whole one.
fn next(file: &mut File) -> io::Result<Option<LogRecord>> {
    let mut header = [0; HEADER];
    let Some(()) = whole(file.read_exact(&mut header))? else {
        return Ok(None);
    };
    let [
        t0,
        t1,
        t2,
        t3,
        t4,
        t5,
        t6,
        t7,
        l0,
        l1,
        l2,
        l3,
        stream,
        zero @ ..,
    ] = header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_RECORD || stream > 1 || zero != [0; 3] {
        return Err(io::Error::new(ErrorKind::InvalidData, "this is no log"));
    }
    let mut bytes = vec![0; length];
    let Some(()) = whole(file.read_exact(&mut bytes))? else {
        return Ok(None);
    };
    Ok(Some(LogRecord {
        time_ms: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
        stream: if stream == 0 {
            LogStream::Out
        } else {
            LogStream::Err
        },
        bytes,
    }))
}

fn whole(read: io::Result<()>) -> io::Result<Option<()>> {
    match read {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        read => read.map(Some),
    }
}

/// The numbers of the files that are there, ascending.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("log."));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("log.{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(dir: &Path) -> Vec<(LogStream, Vec<u8>)> {
        let mut from = LogPosition::default();
        let mut all = Vec::new();
        loop {
            let chunk = read(dir, from).unwrap();
            if chunk.records.is_empty() {
                return all;
            }
            from = chunk.next;
            all.extend(chunk.records.into_iter().map(|it| (it.stream, it.bytes)));
        }
    }

    #[test]
    fn what_is_written_is_read_in_order_and_a_reader_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            read(dir.path(), LogPosition::default()).unwrap(),
            LogChunk::default()
        );
        let mut log = LogWriter::open(dir.path()).unwrap();
        log.write(LogStream::Out, b"a").unwrap();
        log.write(LogStream::Err, b"b\0\xff").unwrap();
        let first = read(dir.path(), LogPosition::default()).unwrap();
        assert_eq!(first.records.len(), 2);
        assert_eq!(first.records[1].bytes, b"b\0\xff");
        assert_eq!(first.records[1].stream, LogStream::Err);
        assert!(read(dir.path(), first.next).unwrap().records.is_empty());
        log.write(LogStream::Out, b"c").unwrap();
        assert_eq!(read(dir.path(), first.next).unwrap().records[0].bytes, b"c");
    }

    #[test]
    fn a_log_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
        let line = vec![7; MAX_RECORD];
        let lines = 5 * MAX_FILE / MAX_RECORD as u64;
        for _ in 0..lines {
            log.write(LogStream::Out, &line).unwrap();
        }
        log.write(LogStream::Out, b"last").unwrap();
        let size: u64 = numbers(dir.path())
            .unwrap()
            .iter()
            .map(|number| fs::metadata(path(dir.path(), *number)).unwrap().len())
            .sum();
        assert!(
            size <= 2 * (MAX_FILE + (MAX_RECORD + HEADER) as u64),
            "{size}"
        );
        let kept = all(dir.path());
        assert!(kept.len() as u64 >= MAX_FILE / (MAX_RECORD + HEADER) as u64);
        assert_eq!(kept.last().unwrap().1, b"last");
    }

    #[test]
    fn a_record_that_is_not_whole_is_left_out_and_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogWriter::open(dir.path()).unwrap();
        log.write(LogStream::Out, b"whole").unwrap();
        let size = log.size;
        log.write(LogStream::Out, b"to be cut").unwrap();
        for cut in (size..log.size).rev() {
            log.file.set_len(cut).unwrap();
            assert_eq!(all(dir.path()), [(LogStream::Out, b"whole".to_vec())]);
        }
        let mut again = LogWriter::open(dir.path()).unwrap();
        again.write(LogStream::Err, b"more").unwrap();
        assert_eq!(all(dir.path())[1], (LogStream::Err, b"more".to_vec()));
        remove(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_is_no_log_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path(), 3), [0xff; 64]).unwrap();
        let error = read(dir.path(), LogPosition::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
