//! The guest's console: always drained, its last lines kept for error messages.
//!
//! Whatever stops reading the console freezes the VM, so nothing here waits for anything else.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// How many last lines are kept.
const LINES: usize = 20;
/// How much of a line is kept, in bytes.
const LINE_BYTES: usize = 400;

/// Reads a console until dropped.
#[derive(Debug)]
pub(super) struct Console {
    tail: Arc<Mutex<Tail>>,
    reader: JoinHandle<()>,
}

impl Console {
    /// Makes the FIFO at `path` and starts to drain it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Opened for writing too, the FIFO never ends, and the VMM's open never waits.
        let mut fifo = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(path)?;
        let tail = Arc::new(Mutex::new(Tail::default()));
        let kept = Arc::clone(&tail);
        let reader = tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(len @ 1..) = fifo.read(&mut buffer).await {
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(&buffer[..len]);
            }
        });
        Ok(Self { tail, reader })
    }

    /// Returns the last lines, oldest first.
    pub(super) fn tail(&self) -> Vec<String> {
        self.tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .lines()
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The last lines of a stream of bytes.
#[derive(Debug, Default)]
struct Tail {
    whole: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.partial.clear();
                if self.whole.len() == LINES {
                    self.whole.pop_front();
                }
                self.whole.push_back(line);
            } else if self.partial.len() < LINE_BYTES {
                self.partial.push(byte);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let partial = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
        let last = (!partial.is_empty()).then_some(partial);
        self.whole.iter().cloned().chain(last).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_last_lines_and_cuts_long_ones() {
        let mut tail = Tail::default();
        for number in 0..100 {
            tail.push(format!("line {number}\r\n").as_bytes());
        }
        tail.push(&[b'x'; 10_000]);
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[LINES - 1], "line 99");
        assert_eq!(lines[LINES].len(), LINE_BYTES);
    }
}
