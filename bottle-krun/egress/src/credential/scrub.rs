//! Takes a credential's value out of an answer, whatever part of it the upstream has put it in.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bottle_core::policy::Reason;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use http::response::Parts;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Sleep, sleep};

use super::Value;
use crate::body::{Body, BodyError};
use crate::denial::Refusal;
use crate::request;
use crate::scan::{BodyScan, Treatment};

/// Scrubs an answer: its head now, its body and trailers as they come.
///
/// # Errors
///
/// A refusal if the body is encoded in a way that cannot be read.
pub(crate) fn answer(value: &Arc<Value>, parts: &mut Parts, body: Body) -> Result<Body, Refusal> {
    let encoding = request::encoding(&parts.headers).map_err(|_| {
        Refusal::new(
            Reason::AnswerWithheld,
            "the answer is encoded in a way in which the credential could not be found",
        )
    })?;
    headers(value, &mut parts.headers);
    let scan = value.finder.stream(encoding, Treatment::Overwrite);
    let scrubbed = Scrubbed {
        value: Arc::clone(value),
        body: Some(body),
        scan,
        ready: VecDeque::new(),
        trailers: None,
        lull: None,
        has_relaxed: false,
    };
    Ok(scrubbed.boxed_unsync())
}

/// Overwrites the value in headers or trailers; a name that holds it is left out.
fn headers(value: &Value, headers: &mut HeaderMap) {
    request::overwrite(&value.finder, headers);
    let named: Vec<HeaderName> = headers
        .iter()
        .filter(|(name, held)| {
            let is_in = |text: &[u8]| value.finder.scan_text(text).is_some();
            is_in(name.as_str().as_bytes()) || is_in(held.as_bytes())
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in named {
        headers.remove(name);
    }
}

/// A body on its way to the guest.
struct Scrubbed {
    value: Arc<Value>,
    /// Gone when it has ended.
    body: Option<Body>,
    scan: BodyScan,
    ready: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// Runs while something is held back.
    lull: Option<Pin<Box<Sleep>>>,
    has_relaxed: bool,
}

impl HttpBody for Scrubbed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.ready.pop_front() {
                if chunk.is_empty() {
                    continue;
                }
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            let Some(body) = &mut this.body else {
                let trailers = this.trailers.take().map(Frame::trailers);
                return Poll::Ready(trailers.map(Ok));
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => {
                    this.lull = None;
                    this.has_relaxed = false;
                    match frame {
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => match this.scan.push(data) {
                                Ok(ready) => this.ready.extend(ready),
                                Err(_) => return this.abort(),
                            },
                            Err(frame) => this.trailers = frame.into_trailers().ok(),
                        },
                        Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                        None => {
                            this.body = None;
                            match this.scan.finish() {
                                Ok(ready) => this.ready.extend(ready),
                                Err(_) => return this.abort(),
                            }
                            if let Some(trailers) = &mut this.trailers {
                                headers(&this.value, trailers);
                            }
                        }
                    }
                }
                Poll::Pending => {
                    if !this.scan.holds() || this.has_relaxed {
                        return Poll::Pending;
                    }
                    let lull = this.lull.get_or_insert_with(|| Box::pin(sleep(LULL)));
                    ready!(lull.as_mut().poll(cx));
                    this.has_relaxed = true;
                    this.ready.extend(this.scan.relax());
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none() && self.ready.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            Some(body) if !self.scan.holds() && self.ready.is_empty() => body.size_hint(),
            Some(_) | None => SizeHint::default(),
        }
    }
}

impl Scrubbed {
    /// Ends the answer as broken: what follows would hold the value.
    fn abort(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.body = None;
        self.ready.clear();
        self.trailers = None;
        Poll::Ready(Some(Err(BodyError::Aborted)))
    }
}

/// After such a pause what is held back and short may go: an event stream waits for nobody.
const LULL: Duration = Duration::from_millis(2);
