//! Carries WebSocket messages one way: scanned, and framed anew, since what is released has other
//! ends than what came.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustls::crypto::SecureRandom;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{self, Broken, Head, Kind};
use crate::scan::{BodyScan, ContentEncoding, Finding, ScanRefusal, Scanner, Treatment};

/// What messages of one direction meet.
pub(super) struct Watch {
    pub(super) scanner: Arc<Scanner>,
    pub(super) treatment: Treatment,
    /// Makes masks; absent where nothing is masked: on the way to the guest.
    pub(super) random: Option<&'static dyn SecureRandom>,
}

/// How a direction ended.
#[derive(Debug)]
pub(super) enum End {
    /// Its sender has ended it, or one side is gone.
    Over,
    /// What came is no WebSocket.
    Broken,
    Secret(Finding),
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Over
    }
}

impl From<Broken> for End {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

/// Carries everything from one side to the other; tells what was found and let pass.
pub(super) async fn carry<R, W>(
    watch: &Watch,
    mut from: R,
    mut to: W,
    tell: impl Fn(&[Finding]),
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut way = Way {
        watch,
        tell,
        message: None,
        out: Vec::new(),
    };
    let end = match way.run(&mut from, &mut to).await {
        Ok(()) => End::Over,
        Err(end) => end,
    };
    let _ = to.shutdown().await;
    end
}

struct Way<'a, T> {
    watch: &'a Watch,
    tell: T,
    /// The message at hand: its scan, and the kind of its next frame.
    message: Option<(BodyScan, Kind)>,
    out: Vec<u8>,
}

impl<T: Fn(&[Finding])> Way<'_, T> {
    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), End> {
        let is_masked = self.watch.random.is_some();
        let mut bytes = Vec::with_capacity(CHUNK);
        loop {
            let (head, size) = loop {
                if let Some(read) = frame::read(&bytes, is_masked)? {
                    break read;
                }
                if from.read_buf(&mut bytes).await? == 0 {
                    return Ok(());
                }
            };
            bytes.drain(..size);
            self.begin(head)?;
            let mut taken = 0;
            // A control frame is short and read whole; a longer one passes as it comes.
            while taken < head.length || head.length == 0 {
                let left = head.length - taken;
                let is_whole = bytes.len() as u64 >= left;
                let waits = matches!(head.kind, Kind::Control(_)) && !is_whole;
                if head.length > 0 && (bytes.is_empty() || waits) {
                    if from.read_buf(&mut bytes).await? == 0 {
                        return Ok(());
                    }
                    continue;
                }
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let mut payload: Vec<u8> = bytes.drain(..count).collect();
                if let Some(mask) = head.mask {
                    frame::apply(mask, taken, &mut payload);
                }
                taken += count as u64;
                self.payload(head, payload, taken == head.length)?;
                to.write_all(&self.out).await?;
                self.out.clear();
                if head.length == 0 {
                    break;
                }
            }
            to.flush().await?;
        }
    }

    /// Checks that a frame may come now.
    fn begin(&mut self, head: Head) -> Result<(), End> {
        match (head.kind, &self.message) {
            (Kind::Control(_), _) | (Kind::Continuation, Some(_)) => Ok(()),
            (Kind::Continuation, None) | (Kind::Data(_), Some(_)) => Err(End::Broken),
            (Kind::Data(_), None) => {
                let Watch {
                    scanner, treatment, ..
                } = self.watch;
                let scan = scanner.stream(ContentEncoding::Identity, *treatment);
                self.message = Some((scan, head.kind));
                Ok(())
            }
        }
    }

    /// Scans a piece of a frame and writes what may go.
    fn payload(&mut self, head: Head, mut payload: Vec<u8>, is_end: bool) -> Result<(), End> {
        if matches!(head.kind, Kind::Control(_)) {
            self.control(&mut payload)?;
            self.write(true, head.kind, &payload);
            return Ok(());
        }
        let Some((mut scan, mut kind)) = self.message.take() else {
            return Err(End::Broken);
        };
        let secret = |refusal| match refusal {
            ScanRefusal::Secret(finding) => End::Secret(finding),
            ScanRefusal::Bomb | ScanRefusal::Undecodable => End::Broken,
        };
        let mut ready = scan.push(Bytes::from(payload)).map_err(secret)?;
        let is_final = is_end && head.is_final;
        if is_final {
            ready.extend(scan.finish().map_err(secret)?);
        }
        (self.tell)(scan.findings());
        let ready = ready.concat();
        if is_final || !ready.is_empty() {
            self.write(is_final, kind, &ready);
            kind = Kind::Continuation;
        }
        if !is_final {
            self.message = Some((scan, kind));
        }
        Ok(())
    }

    fn control(&self, payload: &mut [u8]) -> Result<(), End> {
        let scanner = &self.watch.scanner;
        match self.watch.treatment {
            Treatment::Ignore => {}
            Treatment::Overwrite => (self.tell)(&scanner.overwrite(payload)),
            Treatment::Refuse => {
                if let Some(finding) = scanner.scan_text(payload) {
                    return Err(End::Secret(finding));
                }
            }
            Treatment::Report => (self.tell)(scanner.scan_text(payload).as_slice()),
        }
        Ok(())
    }

    fn write(&mut self, is_final: bool, kind: Kind, payload: &[u8]) {
        let mask = self.watch.random.map(|random| {
            let mut mask = [0; 4];
            // A mask protects caches on the way from the sender's choice of bytes; TLS does too.
            let _ = random.fill(&mut mask);
            mask
        });
        let head = Head {
            is_final,
            kind,
            mask,
            length: payload.len() as u64,
        };
        frame::write(&mut self.out, head, payload);
    }
}

const CHUNK: usize = 32 << 10;
