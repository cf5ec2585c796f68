//! Bytes from one thread to another, with a few buffers on the way.

use std::io::{self, Read};
use std::mem;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

/// Makes both ends.
pub(crate) fn pipe() -> (PipeWriter, PipeReader) {
    let (full, filled) = mpsc::sync_channel(BUFFERS);
    let (used, empty) = mpsc::channel();
    let writer = PipeWriter { full, empty };
    let reader = PipeReader {
        filled,
        used,
        current: Vec::new(),
        at: 0,
    };
    (writer, reader)
}

/// Where bytes come from.
#[derive(Debug)]
pub(crate) struct PipeWriter {
    full: SyncSender<io::Result<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
}

impl PipeWriter {
    /// Passes on everything that `source` has, and its error; ends early if nobody reads any more.
    pub(crate) fn pump(self, source: &mut impl Read) {
        loop {
            let mut buffer = self.empty.try_recv().unwrap_or_default();
            buffer.clear();
            buffer.reserve(BUFFER);
            let read = source.take(BUFFER as u64).read_to_end(&mut buffer);
            let last = match &read {
                Ok(read) => *read == 0,
                Err(_) => true,
            };
            // What was read in front of an error counts.
            let sent = self.full.send(Ok(buffer));
            let sent = match read {
                Ok(_) => sent,
                Err(error) => sent.and_then(|()| self.full.send(Err(error))),
            };
            if last || sent.is_err() {
                return;
            }
        }
    }
}

/// Where bytes go. The writer's end is the end of the stream.
#[derive(Debug)]
pub(crate) struct PipeReader {
    filled: Receiver<io::Result<Vec<u8>>>,
    used: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for PipeReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            let Ok(next) = self.filled.recv() else {
                return Ok(0);
            };
            let before = mem::replace(&mut self.current, next?);
            self.at = 0;
            // Without a writer there is no use for it.
            let _ = self.used.send(before);
        }
        let mut rest = &self.current[self.at..];
        let read = rest.read(buf)?;
        self.at += read;
        Ok(read)
    }
}

/// How many wait between the two; each end has one more.
const BUFFERS: usize = 4;
const BUFFER: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        let (writer, mut reader) = pipe();
        thread::scope(|scope| {
            scope.spawn(|| writer.pump(&mut &bytes[..]));
            let mut found = Vec::new();
            reader.read_to_end(&mut found).unwrap();
            assert!(found == bytes);
        });
    }

    #[test]
    fn an_error_comes_behind_what_was_read_before_it() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let (writer, mut reader) = pipe();
        writer.pump(&mut io::repeat(7).take(1000).chain(Broken));
        let mut found = Vec::new();
        let error = reader.read_to_end(&mut found).unwrap_err();
        assert_eq!((found.len(), error.to_string().as_str()), (1000, "broken"));
    }

    #[test]
    fn a_writer_ends_when_nobody_reads() {
        let (writer, reader) = pipe();
        drop(reader);
        writer.pump(&mut io::repeat(1));
    }
}
