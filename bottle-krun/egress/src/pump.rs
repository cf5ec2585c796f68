//! Carries a long body from the guest to the upstream: scanned on the way, a chunk at a time.

use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::{Dlp, Reason};
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap, TRAILER};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::sleep;

use crate::body::BodyError;
use crate::denial::Refusal;
use crate::forward::drain;
use crate::ledger::{Ledger, Seen};
use crate::request;
use crate::scan::{BodyScan, Finding, ScanRefusal, Scanner};
use crate::session::Terms;

/// A body was refused while it streamed; the event with this id says so.
pub(crate) struct Found {
    pub(crate) refusal: Refusal,
    pub(crate) event: String,
}

/// What is told of secrets on their way out under a rule that does not refuse them.
pub(crate) struct Notes {
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) ledger: Ledger,
    pub(crate) seen: Seen,
    pub(crate) terms: Terms,
}

impl Notes {
    pub(crate) fn tell(&self, findings: &[Finding]) {
        for finding in findings {
            let detail = format!("request body contains secret: {}", finding.name);
            self.ledger.secret_seen(&self.seen, &self.terms, detail);
        }
    }

    /// Treats secrets in trailers, and leaves out what has no business in a trailer.
    pub(crate) fn trailers(&self, mut trailers: HeaderMap) -> Result<HeaderMap, Refusal> {
        let detail =
            |finding: &Finding| format!("request trailer contains secret: {}", finding.name);
        if self.terms.dlp == Dlp::Redact {
            for finding in request::overwrite(&self.scanner, &mut trailers) {
                self.ledger
                    .secret_seen(&self.seen, &self.terms, detail(&finding));
            }
        }
        let found = match self.terms.dlp {
            Dlp::Off => None,
            Dlp::Block | Dlp::Redact | Dlp::Warn => request::headers(&self.scanner, &trailers),
        };
        match found {
            Some(finding) if self.terms.dlp == Dlp::Warn => {
                self.ledger
                    .secret_seen(&self.seen, &self.terms, detail(&finding));
            }
            Some(finding) => return Err(Refusal::new(Reason::SecretFound, detail(&finding))),
            None => {}
        }
        request::strip_hop_by_hop(&mut trailers);
        if let Some(keeper) = &self.terms.credential {
            keeper.strip(&mut trailers);
        }
        for name in [HOST, CONTENT_LENGTH, CONTENT_ENCODING, TRAILER] {
            trailers.remove(name);
        }
        Ok(trailers)
    }
}

/// Reads a long body from the guest, scans it, and releases it to the upstream, a chunk at a time.
pub(crate) struct Pump {
    pub(crate) notes: Notes,
    pub(crate) allowance: Allowance,
    pub(crate) scan: BodyScan,
    pub(crate) body: Incoming,
    pub(crate) frames: mpsc::Sender<Result<Frame<Bytes>, BodyError>>,
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

/// How many more bytes of a body the rule lets pass.
#[derive(Clone, Copy)]
pub(crate) struct Allowance(pub(crate) Option<u64>);

impl Allowance {
    pub(crate) fn spend(self, count: u64) -> Result<(), Refusal> {
        match self.0 {
            Some(most) if count > most => Err(Refusal::new(
                Reason::LimitReached,
                "the request body is larger than its rule allows",
            )),
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn less(self, count: u64) -> Self {
        Self(self.0.map(|most| most.saturating_sub(count)))
    }
}

/// How a pump ended.
enum Pumping {
    /// The whole body went out, or one of the two sides went away.
    Done,
    /// Nobody wants the rest of the body.
    Unwanted,
    Refused(Refusal),
}

impl Pump {
    pub(crate) async fn run(mut self, ready: Vec<Bytes>, found: oneshot::Sender<Found>) {
        match self.pump(ready).await {
            Pumping::Done => return,
            Pumping::Unwanted => {}
            Pumping::Refused(refusal) => {
                let refusal = refusal.under(&self.notes.terms.rule);
                let event = self.notes.ledger.refused(&self.notes.seen, &refusal);
                // First the word, then the abort, so that whoever sees the abort finds the word.
                let _ = found.send(Found { refusal, event });
                let _ = self.frames.send(Err(BodyError::Aborted)).await;
            }
        }
        // A guest that is still writing reads its answer only if nobody slams the door.
        drop(self.frames);
        drain(self.body, MAX_DRAINED).await;
    }

    async fn pump(&mut self, ready: Vec<Bytes>) -> Pumping {
        if !self.release(ready).await {
            return Pumping::Unwanted;
        }
        let mut has_relaxed = false;
        let trailers = loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                () = self.frames.closed() => return Pumping::Unwanted,
                () = sleep(LULL), if self.scan.holds() && !has_relaxed => {
                    has_relaxed = true;
                    let ready = self.scan.relax();
                    if !self.release(ready).await {
                        return Pumping::Unwanted;
                    }
                    continue;
                }
            };
            has_relaxed = false;
            match frame {
                None => break None,
                Some(Err(_)) => {
                    let _ = self.frames.send(Err(BodyError::Aborted)).await;
                    return Pumping::Done;
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if let Err(refusal) = self.allowance.spend(data.len() as u64) {
                            return Pumping::Refused(refusal);
                        }
                        self.allowance = self.allowance.less(data.len() as u64);
                        match self.scan.push(data) {
                            Ok(ready) => {
                                self.notes.tell(self.scan.findings());
                                if !self.release(ready).await {
                                    return Pumping::Unwanted;
                                }
                            }
                            Err(refusal) => return Pumping::Refused(refused_body(&refusal)),
                        }
                    }
                    Err(frame) => break frame.into_trailers().ok(),
                },
            }
        };
        let trailers = match trailers.map(|trailers| self.notes.trailers(trailers)) {
            None => None,
            Some(Ok(trailers)) => Some(trailers),
            Some(Err(refusal)) => return Pumping::Refused(refusal),
        };
        match self.scan.finish() {
            Ok(ready) => {
                self.notes.tell(self.scan.findings());
                self.release(ready).await;
            }
            Err(refusal) => return Pumping::Refused(refused_body(&refusal)),
        }
        if let Some(trailers) = trailers {
            let _ = self.frames.send(Ok(Frame::trailers(trailers))).await;
        }
        Pumping::Done
    }

    /// Hands chunks to the upstream as fast as it takes them; says whether it wants more.
    async fn release(&self, ready: Vec<Bytes>) -> bool {
        for chunk in ready {
            if !chunk.is_empty() && self.frames.send(Ok(Frame::data(chunk))).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Says what a refusal of the scanner is to the guest.
pub(crate) fn refused_body(refusal: &ScanRefusal) -> Refusal {
    let reason = match refusal {
        ScanRefusal::Secret(_) => Reason::SecretFound,
        ScanRefusal::Bomb | ScanRefusal::Undecodable => Reason::BadRequest,
    };
    Refusal::new(reason, refusal.to_string())
}

/// After such a pause the sender may be waiting for an answer to what is held back.
const LULL: Duration = Duration::from_millis(10);
const MAX_DRAINED: u64 = 64 << 20;
