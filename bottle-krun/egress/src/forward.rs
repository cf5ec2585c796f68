//! Carries one judged request to its upstream: the body scanned on the way, the answer relayed.
//!
//! ```text
//! guest ─► scan ─┬─ short: held whole ────────────────► dial, send
//!                └─ long: dial, send ◄─ released chunks ─ pump (holds back what may be a secret)
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bottle_core::policy::Reason;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, HeaderMap, HeaderValue, TRAILER};
use http::request::Parts;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Body, Held, Pumped, Relayed};
use crate::denial::Refusal;
use crate::dial::DialError;
use crate::ledger::{Ledger, Seen};
use crate::pump::{Allowance, Found, Notes, Pump, refused_body};
use crate::request;
use crate::scan::{BodyScan, ContentEncoding, Scanner, Treatment};
use crate::session::Terms;
use crate::upstream::Upstream;

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

    fn notes(&self, seen: &Seen) -> Notes {
        Notes {
            scanner: Arc::clone(self.scanner),
            ledger: self.ledger.clone(),
            seen: seen.clone(),
            terms: self.terms.clone(),
        }
    }

    fn begin_scan(&self, headers: &HeaderMap, notes: &Notes) -> Result<BodyScan, Refusal> {
        let treatment = Treatment::of(self.terms.dlp);
        let encoding = match (request::encoding(headers), treatment) {
            (Ok(encoding), _) => encoding,
            (Err(_), Treatment::Ignore) => ContentEncoding::Identity,
            (Err(refusal), Treatment::Report) => {
                notes
                    .ledger
                    .secret_seen(&notes.seen, &notes.terms, refusal.detail);
                ContentEncoding::Identity
            }
            (Err(refusal), Treatment::Overwrite | Treatment::Refuse) => return Err(refusal),
        };
        Ok(self.scanner.stream(encoding, treatment))
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
        let notes = self.notes(seen);
        let mut scan = self.begin_scan(headers, &notes)?;
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
                        notes.tell(scan.findings());
                        continue;
                    }
                    Err(frame) => frame.into_trailers().ok(),
                },
            };
            let trailers = trailers
                .map(|trailers| notes.trailers(trailers))
                .transpose()?;
            ready.extend(scan.finish().map_err(|r| refused_body(&r))?);
            notes.tell(scan.findings());
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
            notes,
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
