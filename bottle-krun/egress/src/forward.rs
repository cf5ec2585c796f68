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
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::body::{Body, Held, Pumped, Relayed};
use crate::credential::{Keeper, Value, scrub};
use crate::denial::Refusal;
use crate::dial::{ANSWER_TIMEOUT, DialError};
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

/// A body that may begin to go out.
enum Ready {
    /// It was read to its end.
    Held(Held),
    /// The pump will say whether it is refused after all.
    Pumped(Body, oneshot::Receiver<Found>),
}

/// A request that was answered.
struct Sent {
    address: IpAddr,
    answer: Response<Incoming>,
    /// The pump's word, if it is still at work.
    refused: Option<oneshot::Receiver<Found>>,
}

/// A request that was not.
enum Unsent {
    Failed(DialError),
    /// It was refused while it streamed, and that is recorded.
    Told(Found),
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
        let ready = match self.body(&seen, &mut parts.headers, body).await {
            Ok(ready) => ready,
            Err(refusal) => return self.deny(&seen, refusal),
        };
        request::rewrite(&mut parts);
        let Some(keeper) = &self.terms.credential else {
            return self.send(seen, parts, ready, None).await;
        };
        let value = match keeper.value().await {
            Ok(value) => value,
            Err(refusal) => return self.deny(&seen, refusal),
        };
        keeper.inject(&mut parts.headers, &value);
        self.send(seen, parts, ready, Some((keeper, value))).await
    }

    fn deny(&self, seen: &Seen, refusal: Refusal) -> Response<Body> {
        let refusal = refusal.under(&self.terms.rule);
        let event = self.ledger.refused(seen, &refusal);
        refusal.response(&event)
    }

    /// Sends, once more if a newer credential may be what is lacking, and readies the answer.
    async fn send(
        &self,
        seen: Seen,
        parts: Parts,
        ready: Ready,
        mut spent: Option<(&Arc<Keeper>, Arc<Value>)>,
    ) -> Response<Body> {
        let mut allowed = self.ledger.allowed(seen.clone(), self.terms.rule.clone());
        // What was held whole can be sent again.
        let again = match (&ready, &spent) {
            (Ready::Held(held), Some(_)) => Some((parts.clone(), held.clone())),
            (Ready::Held(_) | Ready::Pumped(..), _) => None,
        };
        let mut sent = self.exchange(parts, ready).await;
        if let Ok(Sent { answer, .. }) = &sent
            && answer.status() == StatusCode::UNAUTHORIZED
            && let Some((keeper, value)) = &mut spent
            && let Some(newer) = keeper.renewed(value).await
        {
            *value = newer;
            if let Some((mut parts, held)) = again {
                keeper.inject(&mut parts.headers, value);
                sent = self.exchange(parts, Ready::Held(held)).await;
            }
        }
        let Sent {
            address,
            answer,
            refused,
        } = match sent {
            Ok(sent) => sent,
            Err(unsent) => {
                allowed.withdraw();
                return match unsent {
                    Unsent::Told(found) => found.refusal.response(&found.event),
                    Unsent::Failed(error) => self.deny(&seen, error.refusal()),
                };
            }
        };
        allowed.dialled = Some(address);
        allowed.status = Some(answer.status().as_u16());
        let (mut parts, answer) = answer.into_parts();
        request::strip_hop_by_hop(&mut parts.headers);
        // An offer of another way to the host, which a bottle does not have.
        parts.headers.remove("alt-svc");
        let relayed = Relayed {
            answer,
            refused,
            _permit: Arc::clone(&self.permit),
        };
        let body = relayed.boxed_unsync();
        match spent {
            None => Response::from_parts(parts, body),
            Some((_, value)) => match scrub::answer(&value, &mut parts, body) {
                Ok(body) => Response::from_parts(parts, body),
                Err(refusal) => self.deny(&seen, refusal),
            },
        }
    }

    /// Sends once and waits for the head of the answer.
    async fn exchange(&self, mut parts: Parts, ready: Ready) -> Result<Sent, Unsent> {
        let (body, mut refused) = match ready {
            Ready::Held(held) => (held.boxed_unsync(), None),
            Ready::Pumped(body, word) => (body, Some(word)),
        };
        if body.size_hint().exact().is_none() {
            parts.headers.remove(CONTENT_LENGTH);
        }
        let request = Request::from_parts(parts, body);
        let sending = self
            .upstream
            .send(request, refused.is_some(), self.terms.reach);
        tokio::pin!(sending);
        let first = match &mut refused {
            None => First::Answer(self.in_time(&mut sending).await),
            Some(word) => tokio::select! {
                biased;
                word = word => First::Word(word.ok()),
                sent = &mut sending => First::Answer(sent),
            },
        };
        let sent = match first {
            First::Word(Some(found)) => return Err(Unsent::Told(found)),
            // The whole body was clean and is on its way.
            First::Word(None) => {
                refused = None;
                self.in_time(&mut sending).await
            }
            First::Answer(sent) => sent,
        };
        match sent {
            Ok((address, answer)) => Ok(Sent {
                address,
                answer,
                refused,
            }),
            // An aborted body looks like a broken upstream; the word says what it was.
            Err(error) => Err(match refused.as_mut().map(oneshot::Receiver::try_recv) {
                Some(Ok(found)) => Unsent::Told(found),
                Some(Err(_)) | None => Unsent::Failed(error),
            }),
        }
    }

    /// Waits for an upstream that has the whole request, but not for ever.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, DialError>>,
    ) -> Result<T, DialError> {
        timeout(ANSWER_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(self.upstream.is_late()))
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
    ) -> Result<Ready, Refusal> {
        if body.is_end_stream() {
            return Ok(Ready::Held(Held::new([], None)));
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
            return Ok(Ready::Held(Held::new(ready, trailers)));
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
        Ok(Ready::Pumped(pumped.boxed_unsync(), finding))
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
