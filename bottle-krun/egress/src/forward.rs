//! Carries one judged request to its upstream: the body scanned on the way, the answer relayed.
//!
//! ```text
//! guest ─► scan ─┬─ short: held whole ────────────────► dial, send
//!                └─ long: dial, send ◄─ released chunks ─ pump (holds back what may be a secret)
//! ```

use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::Reason;
use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderValue, TRAILER,
};
use http::request::Parts;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Body, BodyError, Held, Pumped, Relayed};
use crate::denial::Refusal;
use crate::dial::DialError;
use crate::ledger::{Ledger, Seen};
use crate::request;
use crate::scan::{BodyScan, ContentEncoding, ScanRefusal, Scanner};
use crate::session::Terms;
use crate::upstream::Upstream;

/// A body was refused while it streamed; the event with this id says so.
pub(crate) struct Found {
    pub(crate) refusal: Refusal,
    pub(crate) event: String,
}

/// What came first while a request was being sent.
enum First {
    /// The pump's last word: a refusal, or nothing, which means that the body was clean.
    Word(Option<Found>),
    Answer(Result<(IpAddr, Response<Incoming>), DialError>),
}

/// What a request is carried with.
pub(crate) struct Carrier<'a> {
    pub(crate) scanner: &'a Arc<Scanner>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) upstream: &'a Upstream,
    pub(crate) terms: Terms,
    /// The request's place among the bottle's.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
}

impl Carrier<'_> {
    /// Sends the request whose head was judged, and returns the answer or the explained refusal.
    pub(crate) async fn carry(
        self,
        seen: Seen,
        mut parts: Parts,
        body: Incoming,
    ) -> Response<Body> {
        let (body, found) = match self.body(&seen, &mut parts.headers, body).await {
            Ok(ready) => ready,
            Err(refusal) => return self.deny(&seen, refusal),
        };
        request::rewrite(&mut parts);
        if body.size_hint().exact().is_none() {
            parts.headers.remove(CONTENT_LENGTH);
        }
        self.send(seen, Request::from_parts(parts, body), found)
            .await
    }

    fn deny(&self, seen: &Seen, refusal: Refusal) -> Response<Body> {
        let refusal = refusal.under(&self.terms.rule);
        let event = self.ledger.refused(seen, &refusal);
        refusal.response(&event)
    }

    async fn send(
        &self,
        seen: Seen,
        request: Request<Body>,
        mut found: Option<oneshot::Receiver<Found>>,
    ) -> Response<Body> {
        let mut allowed = self.ledger.allowed(seen.clone(), self.terms.rule.clone());
        let sending = self
            .upstream
            .send(request, found.is_some(), self.terms.reach);
        tokio::pin!(sending);
        let first = match &mut found {
            None => First::Answer((&mut sending).await),
            Some(word) => tokio::select! {
                biased;
                word = word => First::Word(word.ok()),
                sent = &mut sending => First::Answer(sent),
            },
        };
        let sent = match first {
            First::Word(Some(found)) => {
                allowed.withdraw();
                return found.refusal.response(&found.event);
            }
            // The whole body was clean and is on its way.
            First::Word(None) => {
                found = None;
                sending.await
            }
            First::Answer(sent) => sent,
        };
        match sent {
            Ok((address, answer)) => {
                allowed.dialled = Some(address);
                allowed.status = Some(answer.status().as_u16());
                let (mut parts, answer) = answer.into_parts();
                request::strip_hop_by_hop(&mut parts.headers);
                // An offer of another way to the host, which a bottle does not have.
                parts.headers.remove("alt-svc");
                let relayed = Relayed {
                    answer,
                    refused: found,
                    _permit: Arc::clone(&self.permit),
                };
                Response::from_parts(parts, relayed.boxed_unsync())
            }
            Err(error) => {
                allowed.withdraw();
                // An aborted body looks like a broken upstream; the word says what it was.
                if let Some(Ok(found)) = found.as_mut().map(oneshot::Receiver::try_recv) {
                    return found.refusal.response(&found.event);
                }
                self.deny(&seen, error.refusal())
            }
        }
    }

    /// Reads a short body to its end; starts the pump for any other.
    async fn body(
        &self,
        seen: &Seen,
        headers: &mut HeaderMap,
        mut body: Incoming,
    ) -> Result<(Body, Option<oneshot::Receiver<Found>>), Refusal> {
        if body.is_end_stream() {
            return Ok((Held::new([], None).boxed_unsync(), None));
        }
        let mut scan = self.scanner.stream(request::encoding(headers)?);
        let length = body.size_hint().exact();
        let patience = match length {
            Some(length) if length <= HELD_WHOLE => SHORT_BODY_TIMEOUT,
            Some(_) => Duration::ZERO,
            None => UNKNOWN_LENGTH_PATIENCE,
        };
        let deadline = Instant::now() + patience;
        let allowance = Allowance(self.terms.max_body);
        if let Some(length) = length {
            allowance.spend(length)?;
        }
        let mut ready = Vec::new();
        let mut count = 0;
        while patience > Duration::ZERO && count <= HELD_WHOLE {
            let Ok(frame) = timeout_at(deadline, body.frame()).await else {
                break;
            };
            let trailers = match frame {
                None => None,
                Some(Err(_)) => {
                    return Err(Refusal::new(
                        Reason::BadRequest,
                        "the request body broke off",
                    ));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        count += data.len() as u64;
                        allowance.spend(count)?;
                        ready.extend(scan.push(data).map_err(|r| refused_body(&r))?);
                        continue;
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
            };
            let trailers = trailers
                .map(|trailers| judge_trailers(self.scanner, trailers))
                .transpose()?;
            ready.extend(scan.finish().map_err(|r| refused_body(&r))?);
            if let Some(trailers) = &trailers {
                announce(headers, trailers);
            }
            return Ok((Held::new(ready, trailers).boxed_unsync(), None));
        }
        if length.is_some_and(|length| length <= HELD_WHOLE) {
            return Err(Refusal::new(
                Reason::LimitReached,
                "the request body did not arrive in time",
            ));
        }
        let (frames, receiver) = mpsc::channel(1);
        let (found, finding) = oneshot::channel();
        let pump = Pump {
            scanner: Arc::clone(self.scanner),
            ledger: self.ledger.clone(),
            seen: seen.clone(),
            rule: self.terms.rule.clone(),
            allowance: allowance.less(count),
            scan,
            body,
            frames,
            _permit: Arc::clone(&self.permit),
        };
        tokio::spawn(pump.run(ready, found));
        let pumped = Pumped {
            frames: receiver,
            length,
        };
        Ok((pumped.boxed_unsync(), Some(finding)))
    }
}

/// Reads a long body from the guest, scans it, and releases it to the upstream, a chunk at a time.
struct Pump {
    scanner: Arc<Scanner>,
    ledger: Ledger,
    seen: Seen,
    rule: String,
    allowance: Allowance,
    scan: BodyScan,
    body: Incoming,
    frames: mpsc::Sender<Result<Frame<Bytes>, BodyError>>,
    _permit: Arc<OwnedSemaphorePermit>,
}

/// How many more bytes of a body the rule lets pass.
#[derive(Clone, Copy)]
struct Allowance(Option<u64>);

impl Allowance {
    fn spend(self, count: u64) -> Result<(), Refusal> {
        match self.0 {
            Some(most) if count > most => Err(Refusal::new(
                Reason::LimitReached,
                "the request body is larger than its rule allows",
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn less(self, count: u64) -> Self {
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
    async fn run(mut self, ready: Vec<Bytes>, found: oneshot::Sender<Found>) {
        match self.pump(ready).await {
            Pumping::Done => return,
            Pumping::Unwanted => {}
            Pumping::Refused(refusal) => {
                let refusal = refusal.under(&self.rule);
                let event = self.ledger.refused(&self.seen, &refusal);
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
        let trailers = loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                () = self.frames.closed() => return Pumping::Unwanted,
            };
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
        let trailers = match trailers.map(|trailers| judge_trailers(&self.scanner, trailers)) {
            None => None,
            Some(Ok(trailers)) => Some(trailers),
            Some(Err(refusal)) => return Pumping::Refused(refusal),
        };
        let last = self.scanner.stream(ContentEncoding::Identity);
        match mem::replace(&mut self.scan, last).finish() {
            Ok(ready) => {
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

/// Reads and forgets the rest of a refused request, within limits, so that the connection stays
/// usable or at least its last answer readable.
pub(crate) async fn drain(mut body: Incoming, most: u64) {
    let mut left = most;
    let _ = timeout(DRAIN_TIMEOUT, async {
        while let Some(Ok(frame)) = body.frame().await {
            let count = frame.data_ref().map_or(0, Bytes::len) as u64;
            match left.checked_sub(count) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    })
    .await;
}

/// Reads and forgets a short body; a guest that waits for `100 Continue` is not made to send it.
pub(crate) async fn drain_short(headers: &HeaderMap, body: Incoming) {
    let short = body
        .size_hint()
        .upper()
        .is_none_or(|most| most <= HELD_WHOLE);
    if short && !body.is_end_stream() && !headers.contains_key(EXPECT) {
        drain(body, HELD_WHOLE).await;
    }
}

fn refused_body(refusal: &ScanRefusal) -> Refusal {
    let reason = match refusal {
        ScanRefusal::Secret(_) => Reason::SecretFound,
        ScanRefusal::Bomb | ScanRefusal::Undecodable => Reason::BadRequest,
    };
    Refusal::new(reason, refusal.to_string())
}

/// Refuses trailers with a secret, and leaves out what has no business in a trailer.
fn judge_trailers(scanner: &Arc<Scanner>, mut trailers: HeaderMap) -> Result<HeaderMap, Refusal> {
    match request::headers(scanner, &trailers) {
        None => {
            request::strip_hop_by_hop(&mut trailers);
            for name in [HOST, CONTENT_LENGTH, CONTENT_ENCODING, TRAILER] {
                trailers.remove(name);
            }
            Ok(trailers)
        }
        Some(finding) => Err(Refusal::new(
            Reason::SecretFound,
            format!("request trailer contains secret: {}", finding.name),
        )),
    }
}

/// HTTP/1.1 carries only those trailers that the head announced.
fn announce(headers: &mut HeaderMap, trailers: &HeaderMap) {
    headers.remove(TRAILER);
    for name in trailers.keys() {
        headers.append(TRAILER, HeaderValue::from(name.clone()));
    }
}

/// Bodies up to this length are read to their end before anything is dialled.
const HELD_WHOLE: u64 = 64 << 10;
const SHORT_BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body of unknown length may take to end before it counts as a stream.
const UNKNOWN_LENGTH_PATIENCE: Duration = Duration::from_millis(50);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_DRAINED: u64 = 64 << 20;
