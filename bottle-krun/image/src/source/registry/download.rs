//! A blob on its way: one thread writes it into a file, its reader follows.
//!
//! ```text
//! registry ──► thread ──► STORE/blobs/HEX.partial ──► reader ──► decompressor, hashes, disk
//!                 └────── how far it is ─────────────────┘
//! ```
//!
//! The file is the buffer, so memory is bounded and neither side waits for the other longer than
//! it must. It is also what is left if the connection, the program or the machine dies: the next
//! download of the same blob continues it. It is locked by whoever downloads, so that two
//! processes do not do the same work.
//!
//! Who has read it to its end has checked its digest, or found it wrong: either way the file has
//! served its purpose and is removed when the reader is dropped.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tracing::{debug, warn};

use super::client::{Client, Endpoint, Wanted, WantedKind};
use super::error::RegistryError;
use super::http::{Body, HangUp, HttpError, Response};
use crate::digest::Digest;
use crate::error::{ImageError, io_at};
use crate::layer::LayerBlob;
use crate::store::lock_named;

/// Starts or continues the download of a blob.
pub(crate) fn open(
    client: &Arc<Client>,
    blob: &LayerBlob,
    dir: &Path,
) -> Result<BlobReader, ImageError> {
    fs::create_dir_all(dir).map_err(io_at("make the directory", dir))?;
    let mut partial = Partial::lock(dir.join(format!("{}.partial", blob.digest.hex())))?;
    let mut there = partial.length()?;
    if there > blob.size {
        debug!(digest = %blob.digest, "what is left of a download is too long, started over");
        partial.restart()?;
        there = 0;
    }
    let shared = Arc::new(Shared::new(there));
    let download = Download {
        client: Arc::clone(client),
        digest: blob.digest,
        size: blob.size,
        file: partial.clone_file()?,
        path: partial.path.clone(),
        shared: Arc::clone(&shared),
    };
    let thread = if there == blob.size {
        shared.end(Ok(()));
        None
    } else {
        if there > 0 {
            debug!(digest = %blob.digest, bytes = there, "download continued");
        }
        // The first answer is waited for here: most of what can go wrong is a plain error then.
        let first = match download.first(there) {
            Ok(first) => first,
            Err(error) => {
                partial.keep = there > 0 && !matches!(error, ImageError::SizeMismatch { .. });
                return Err(error);
            }
        };
        partial.keep = true;
        Some(thread::spawn(move || download.run(first, there)))
    };
    Ok(BlobReader {
        at: 0,
        size: blob.size,
        partial,
        shared,
        thread,
    })
}

/// Reads a blob while it comes in.
#[derive(Debug)]
pub(crate) struct BlobReader {
    at: u64,
    size: u64,
    partial: Partial,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.lock();
        while state.written <= self.at {
            match &mut state.ended {
                None => state = self.shared.wait(state),
                Some(Ok(())) => return Ok(0),
                Some(ended) => {
                    let gone = || io::Error::other("the download ended before");
                    let error = mem::replace(ended, Err(None));
                    return Err(match error {
                        Err(Some(error)) => io::Error::other(error),
                        Err(None) | Ok(()) => gone(),
                    });
                }
            }
        }
        let left = state.written - self.at;
        drop(state);
        let wanted = usize::try_from(left).map_or(buf.len(), |left| left.min(buf.len()));
        let read = self.partial.file.read_at(&mut buf[..wanted], self.at)?;
        if read == 0 && wanted > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.shared.cancel();
        if let Some(thread) = self.thread.take() {
            // It has said what there was to say.
            let _ = thread.join();
        }
        let state = self.shared.lock();
        // Read to its end it has served its purpose; see the module.
        self.partial.keep = self.at < self.size && !state.spoiled && state.written > 0;
    }
}

/// The locked file; removed unless it is to be kept.
#[derive(Debug)]
struct Partial {
    file: File,
    path: PathBuf,
    keep: bool,
}

impl Partial {
    fn lock(path: PathBuf) -> Result<Self, ImageError> {
        let file = lock_named(&path)?;
        let found = file.metadata().map_err(io_at("read", &path))?;
        Ok(Self {
            file,
            path,
            keep: found.len() > 0,
        })
    }

    fn length(&self) -> Result<u64, ImageError> {
        let found = self.file.metadata().map_err(io_at("read", &self.path))?;
        Ok(found.len())
    }

    fn restart(&mut self) -> Result<(), ImageError> {
        self.keep = false;
        self.file.set_len(0).map_err(io_at("write", &self.path))
    }

    fn clone_file(&self) -> Result<File, ImageError> {
        self.file.try_clone().map_err(io_at("open", &self.path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Still locked: nobody else can be writing it.
        if let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove a finished download");
        }
    }
}

/// What the thread and the reader tell each other.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    written: u64,
    /// The error is taken by whoever reads first.
    ended: Option<Result<(), Option<ImageError>>>,
    /// What is written is worth nothing.
    spoiled: bool,
    cancelled: bool,
    hang_up: Option<HangUp>,
}

impl Shared {
    fn new(written: u64) -> Self {
        Self {
            state: Mutex::new(State {
                written,
                ended: None,
                spoiled: false,
                cancelled: false,
                hang_up: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        let woken = self.changed.wait(state);
        woken.unwrap_or_else(PoisonError::into_inner)
    }

    fn wrote(&self, written: u64) {
        self.lock().written = written;
        self.changed.notify_all();
    }

    fn end(&self, how: Result<(), ImageError>) {
        let mut state = self.lock();
        state.spoiled |= matches!(how, Err(ImageError::SizeMismatch { .. }));
        state.ended = Some(how.map_err(Some));
        self.changed.notify_all();
    }

    fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        if let Some(hang_up) = state.hang_up.take() {
            hang_up.now();
        }
    }

    /// False if nobody wants the blob any more.
    fn connected(&self, body: &Body) -> bool {
        let mut state = self.lock();
        // Without it, giving up takes as long as a stalling server may.
        state.hang_up = body.hang_up().ok();
        !state.cancelled
    }

    fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }
}

/// The thread's side.
struct Download {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
    file: File,
    path: PathBuf,
    shared: Arc<Shared>,
}

/// An answer with (some of) the blob.
struct Part<'e> {
    endpoint: &'e Endpoint,
    body: Body,
    /// What it repeats of what is there.
    skip: u64,
}

impl Download {
    /// The answer of the first endpoint that has the blob: its index, and what it sends.
    fn first(&self, from: u64) -> Result<(usize, Body, u64), ImageError> {
        let last = self.client.endpoints.len() - 1;
        for (index, endpoint) in self.client.endpoints.iter().enumerate() {
            match self.ask(endpoint, from) {
                Ok(Part { body, skip, .. }) => return Ok((index, body, skip)),
                Err(error) if index < last => {
                    debug!(mirror = %endpoint.host, %error, "mirror passed over");
                }
                Err(error) => return Err(error),
            }
        }
        unreachable!("the registry itself is the last endpoint");
    }

    fn ask<'e>(&self, endpoint: &'e Endpoint, from: u64) -> Result<Part<'e>, ImageError> {
        let wanted = Wanted {
            path: format!("blobs/{}", self.digest),
            accept: "*/*",
            from: (from > 0).then_some(from),
            what: self.what(),
            kind: WantedKind::Blob,
        };
        let response = self.client.get(endpoint, &wanted)?;
        let (skip, whole) = match response.status {
            206 if from > 0 => (0, self.check_range(endpoint, &response, from)?),
            // It does not know ranges: what is there is passed over.
            200 => (from, response.body.length()),
            _ => return Err(self.unusable(endpoint, "it sends a part that was not asked for")),
        };
        match whole {
            Some(found) if found != self.size => Err(ImageError::SizeMismatch {
                what: "layer",
                digest: self.digest.to_string(),
                expected: self.size,
                found,
            }),
            Some(_) | None => Ok(Part {
                endpoint,
                body: response.body,
                skip,
            }),
        }
    }

    /// `bytes FROM-…/SIZE`: returns the size, if it is said.
    fn check_range(
        &self,
        endpoint: &Endpoint,
        response: &Response,
        from: u64,
    ) -> Result<Option<u64>, ImageError> {
        let wrong = || self.unusable(endpoint, "it sends another part than was asked for");
        let range = response.header("content-range").ok_or_else(wrong)?;
        let range = range.trim().strip_prefix("bytes ").ok_or_else(wrong)?;
        let (span, whole) = range.split_once('/').ok_or_else(wrong)?;
        let (first, _) = span.split_once('-').ok_or_else(wrong)?;
        if first.trim().parse() != Ok(from) {
            return Err(wrong());
        }
        match whole.trim() {
            "*" => Ok(None),
            whole => whole.parse().map(Some).map_err(|_| wrong()),
        }
    }

    fn unusable(&self, endpoint: &Endpoint, reason: &str) -> ImageError {
        ImageError::Registry(RegistryError::Protocol {
            host: endpoint.host.clone(),
            what: self.what(),
            reason: reason.to_owned(),
        })
    }

    fn what(&self) -> String {
        format!("layer {}", self.digest)
    }

    fn run(self, (index, body, skip): (usize, Body, u64), from: u64) {
        let endpoint = &self.client.endpoints[index];
        let mut written = from;
        let mut part = Part {
            endpoint,
            body,
            skip,
        };
        let mut resumes = 0;
        let how = loop {
            let before = written;
            let error = match self.receive(&mut part, &mut written) {
                Ok(()) => break Ok(()),
                Err(error) => error,
            };
            if self.shared.is_cancelled() {
                break Err(error);
            }
            if !matches!(&error, ImageError::Registry(RegistryError::Cut { .. })) {
                break Err(error);
            }
            // A connection that brought much is no sign of a hopeless case.
            if written - before >= MUCH {
                resumes = 0;
            }
            resumes += 1;
            if resumes > MAX_RESUMES {
                break Err(error);
            }
            debug!(digest = %self.digest, at = written, "connection broke off, download continued");
            match self.ask(endpoint, written) {
                Ok(next) => part = next,
                Err(error) => break Err(error),
            }
        };
        self.shared.end(how);
    }

    /// Writes what an answer brings.
    fn receive(&self, part: &mut Part<'_>, written: &mut u64) -> Result<(), ImageError> {
        if !self.shared.connected(&part.body) {
            return Err(self.unusable(part.endpoint, "nobody wants it any more"));
        }
        let broken = |error| {
            let host = part.endpoint.host.clone();
            let error = self
                .client
                .explain(HttpError::of(error), host, &self.what());
            ImageError::Registry(error)
        };
        let mut buffer = vec![0; BUFFER];
        let mut skip = part.skip;
        loop {
            if self.shared.is_cancelled() {
                return Err(self.unusable(part.endpoint, "nobody wants it any more"));
            }
            let read = match part.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(broken(error)),
            };
            let repeated = usize::try_from(skip).map_or(read, |skip| skip.min(read));
            skip -= repeated as u64;
            let new = &buffer[repeated..read];
            if *written + new.len() as u64 > self.size {
                return Err(self.wrong_size(*written + new.len() as u64));
            }
            let put = self.file.write_all_at(new, *written);
            put.map_err(io_at("write", &self.path))?;
            *written += new.len() as u64;
            self.shared.wrote(*written);
        }
        if *written == self.size {
            return Ok(());
        }
        if part.body.is_open_ended() {
            return Err(broken(ErrorKind::UnexpectedEof.into()));
        }
        // The answer was whole and yet too short.
        Err(self.wrong_size(*written - skip.min(*written)))
    }

    fn wrong_size(&self, found: u64) -> ImageError {
        ImageError::SizeMismatch {
            what: "layer",
            digest: self.digest.to_string(),
            expected: self.size,
            found,
        }
    }
}

const BUFFER: usize = 256 << 10;
/// Broken connections in a row.
const MAX_RESUMES: u32 = 5;
const MUCH: u64 = 8 << 20;
