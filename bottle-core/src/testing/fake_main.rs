//! The main process of a fake bottle: what it says is logged and goes to everybody who listens.

use std::fmt::{self, Debug, Formatter};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::Mutex as AsyncMutex;

use super::fake::lock;
use super::machine::{FakeControl, Machine};
use crate::backend::Process;
use crate::event::unix_ms;
use crate::log::{LogRecord, LogStream};

const PIPE: usize = 64 * 1024;

type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// A handle on it; clones are the same process.
#[derive(Clone)]
pub(super) struct Main {
    pub(super) control: FakeControl,
    input: Arc<AsyncMutex<Option<Input>>>,
    taps: Arc<Mutex<Vec<(LogStream, DuplexStream)>>>,
}

impl Debug for Main {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Main").finish_non_exhaustive()
    }
}

impl Main {
    pub(super) fn new(control: FakeControl, input: Option<Input>) -> Self {
        Self {
            control,
            input: Arc::new(AsyncMutex::new(input)),
            taps: Arc::default(),
        }
    }

    /// Returns how many listen.
    pub(super) fn listeners(&self) -> u32 {
        let all = lock(&self.taps).len() / 2;
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Passes one output on until it ends; or, if the bottle is not detached, until its owner listens no
    /// more, which the process learns as it would from a pipe.
    pub(super) async fn keep(
        self,
        mut from: Box<dyn AsyncRead + Send + Unpin>,
        stream: LogStream,
        machine: Arc<Machine>,
    ) {
        let mut chunk = vec![0; PIPE];
        while let Ok(length @ 1..) = from.read(&mut chunk).await {
            let bytes = chunk.get(..length).unwrap_or_default();
            lock(&machine.log).push(LogRecord {
                time_ms: unix_ms(SystemTime::now()),
                stream,
                bytes: bytes.to_vec(),
            });
            let taps = lock(&self.taps)
                .extract_if(.., |tap| tap.0 == stream)
                .collect::<Vec<_>>();
            for mut tap in taps {
                if tap.1.write_all(bytes).await.is_ok() {
                    lock(&self.taps).push(tap);
                } else if !machine.is_detached() {
                    return;
                }
            }
        }
        lock(&self.taps).retain(|tap| tap.0 != stream);
    }

    /// Lets one more listen; an `owner`'s end of input is the process's.
    pub(super) fn attach(&self, owner: bool) -> Process {
        let (stdin, mut typed) = duplex(PIPE);
        let [stdout, stderr] = [LogStream::Out, LogStream::Err].map(|stream| {
            let (ours, theirs) = duplex(PIPE);
            lock(&self.taps).push((stream, ours));
            theirs
        });
        let input = Arc::clone(&self.input);
        tokio::spawn(async move {
            let mut chunk = vec![0; PIPE];
            while let Ok(length @ 1..) = typed.read(&mut chunk).await {
                let bytes = chunk.get(..length).unwrap_or_default();
                let mut input = input.lock().await;
                let Some(input) = &mut *input else { return };
                if input.write_all(bytes).await.is_err() {
                    return;
                }
            }
            if owner {
                *input.lock().await = None;
            }
        });
        Process {
            stdin: Some(Box::new(stdin)),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            control: Box::new(self.control.clone()),
        }
    }
}
