//! The only door to standard output and standard error.
//!
//! Standard output belongs to data: a plan, findings, the workload's own output. Our words go to
//! standard error, and so does the one live line, which vanishes before anything else is said.

use std::fmt::{self, Debug, Formatter};
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

/// Where bytes go.
pub(crate) type Sink = Arc<Mutex<Box<dyn Write + Send>>>;

/// Back to the first column, and erase the line.
const ERASE: &str = "\r\x1b[2K";

/// The most bytes that are passed on at once.
const CHUNK: usize = 64 * 1024;

/// How long the output of a process that has ended may pause before it counts as complete: what
/// it left running in the background may hold its streams open forever.
const AFTERGLOW: Duration = Duration::from_secs(2);

/// One of the two streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stream {
    /// Standard error.
    Err,
    /// Standard output.
    Out,
}

/// On which side a stream was lost.
#[derive(Debug)]
pub(crate) enum Lost {
    /// We could not write.
    Here(io::Error),
    /// The process's stream could not be read.
    There(io::Error),
}

/// Prints. Clones print to the same streams.
#[derive(Clone)]
pub(crate) struct Printer {
    out: Sink,
    err: Sink,
    live: Arc<AtomicBool>,
    raw: Arc<AtomicBool>,
}

/// As long as it lives, our words go to a terminal in raw mode.
#[derive(Debug)]
pub(crate) struct RawWords(Arc<AtomicBool>);

impl Drop for RawWords {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Printer {
    /// Makes a printer for two streams.
    pub(crate) fn new(out: Sink, err: Sink) -> Self {
        Self {
            out,
            err,
            live: Arc::default(),
            raw: Arc::default(),
        }
    }

    /// Makes a printer for this process's own streams.
    pub(crate) fn of_this_process() -> Self {
        Self::new(sink(io::stdout()), sink(io::stderr()))
    }

    /// Writes data to standard output. A reader that has gone is no error.
    pub(crate) fn data(&self, text: &str) -> io::Result<()> {
        let mut out = lock(&self.out);
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        unless_broken(written)
    }

    /// Writes bytes of a workload. A reader that has gone is told by the error.
    pub(crate) fn bytes(&self, to: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut sink = lock(match to {
            Stream::Err => &self.err,
            Stream::Out => &self.out,
        });
        sink.write_all(bytes).and_then(|()| sink.flush())
    }

    /// Words what is said as a terminal in raw mode needs it, until the guard is dropped.
    pub(crate) fn raw(&self) -> RawWords {
        self.raw.store(true, Ordering::Relaxed);
        RawWords(Arc::clone(&self.raw))
    }

    /// Standard output, for bytes that are no text.
    pub(crate) fn stdout(&self) -> Box<dyn Write + Send> {
        Box::new(Shared(Arc::clone(&self.out)))
    }

    /// Says one line on standard error.
    pub(crate) fn say(&self, line: &str) {
        self.say_as_it_is(&format!("{line}\n"));
    }

    /// Says text that brings its own line ends.
    pub(crate) fn say_as_it_is(&self, text: &str) {
        if text.is_empty() && !self.live.load(Ordering::Relaxed) {
            return;
        }
        let mut err = lock(&self.err);
        let erase = if self.live.swap(false, Ordering::Relaxed) {
            ERASE
        } else {
            ""
        };
        let text = if self.raw.load(Ordering::Relaxed) {
            // A new line does not begin at its left by itself.
            text.replace('\n', "\r\n")
        } else {
            text.to_owned()
        };
        // There is nobody left to tell if this fails.
        let _ = write!(err, "{erase}{text}").and_then(|()| err.flush());
    }

    /// Shows a line that vanishes when anything else is said. For terminals only.
    pub(crate) fn show(&self, line: &str) {
        let mut err = lock(&self.err);
        self.live.store(true, Ordering::Relaxed);
        let _ = write!(err, "{ERASE}{line}").and_then(|()| err.flush());
    }

    /// Takes the live line away.
    pub(crate) fn hide(&self) {
        if self.live.load(Ordering::Relaxed) {
            self.say_as_it_is("");
        }
    }

    /// Passes on what a process says, byte for byte, until its stream ends.
    ///
    /// When `ended` becomes true, a pause counts as the end. If our own reader has gone, so is this
    /// one, and the process learns it as it would from a pipe.
    pub(crate) async fn pass_on(
        self,
        mut from: Box<dyn AsyncRead + Send + Unpin>,
        to: Stream,
        mut ended: watch::Receiver<bool>,
    ) -> Result<(), Lost> {
        let sink = match to {
            Stream::Err => &self.err,
            Stream::Out => &self.out,
        };
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = tokio::select! {
                read = from.read(&mut chunk) => Some(read),
                () = pause(&mut ended) => None,
            };
            let Some(read) = read else { return Ok(()) };
            let length = read.map_err(Lost::There)?;
            if length == 0 {
                return Ok(());
            }
            let sink = Arc::clone(sink);
            let (back, written) = spawn_blocking(move || {
                let mut sink = lock(&sink);
                let bytes = chunk.get(..length).unwrap_or_default();
                let written = sink.write_all(bytes).and_then(|()| sink.flush());
                drop(sink);
                (chunk, written)
            })
            .await
            .map_err(|error| Lost::Here(error.into()))?;
            match written {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(Lost::Here)?,
            }
            chunk = back;
        }
    }
}

impl Debug for Printer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").finish_non_exhaustive()
    }
}

/// A sink that others write to as well.
struct Shared(Sink);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

/// Waits until the process has ended and [`AFTERGLOW`] is over.
async fn pause(ended: &mut watch::Receiver<bool>) {
    // Whoever would tell that it has ended has gone: the same.
    let _ = ended.wait_for(|ended| *ended).await;
    sleep(AFTERGLOW).await;
}

/// Makes a sink of a stream.
pub(crate) fn sink(stream: impl Write + Send + 'static) -> Sink {
    Arc::new(Mutex::new(Box::new(stream)))
}

fn unless_broken(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn lock(sink: &Sink) -> MutexGuard<'_, Box<dyn Write + Send>> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}
