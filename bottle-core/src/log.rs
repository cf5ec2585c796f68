//! What the main process of a bottle said, as it is kept and read back.

use serde::{Deserialize, Serialize};

/// A place in a log, from which it is read on. The default is the oldest that is kept.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct LogPosition {
    /// Counts the files that the log has filled.
    pub file: u64,
    /// Bytes into it.
    pub offset: u64,
}

/// One piece of output, in the order in which it came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogRecord {
    /// When it came, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// On which stream.
    pub stream: LogStream,
    /// The bytes, as they came.
    pub bytes: Vec<u8>,
}

/// A stream of the main process.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(clippy::exhaustive_enums, reason = "a process has two outputs")]
pub enum LogStream {
    /// Standard output, or the terminal.
    Out,
    /// Standard error.
    Err,
}

/// A part of a log.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LogChunk {
    /// At most about a mebibyte of records; none when there are no more for now.
    pub records: Vec<LogRecord>,
    /// Where to read on.
    pub next: LogPosition,
}
