//! Bodies on their way through: held whole, pumped through the scanner, or merely relayed.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::pump::Found;

/// Every body that the gateway sends, in either direction.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Why a body ended before its end.
#[derive(Debug, Error)]
pub(crate) enum BodyError {
    /// The gateway ended it: a secret was found, or the other side went away.
    #[error("ended by the gateway")]
    Aborted,
    /// The upstream's side failed.
    #[error("the upstream ended its answer early")]
    Upstream(#[source] hyper::Error),
}

/// A body of one known piece.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A request body that was read to its end and found clean. It can be sent again.
#[derive(Clone)]
pub(crate) struct Held {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Held {
    pub(crate) fn new(
        chunks: impl IntoIterator<Item = Bytes>,
        trailers: Option<HeaderMap>,
    ) -> Self {
        Self {
            chunks: chunks.into_iter().filter(|c| !c.is_empty()).collect(),
            trailers,
        }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let frame = match this.chunks.pop_front() {
            Some(chunk) => Some(Frame::data(chunk)),
            None => this.trailers.take().map(Frame::trailers),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // A body with trailers must not be framed by its length.
        if self.trailers.is_some() {
            return SizeHint::default();
        }
        SizeHint::with_exact(self.chunks.iter().map(|c| c.len() as u64).sum())
    }
}

/// A request body that is still being read, scanned and released by the pump.
pub(crate) struct Pumped {
    pub(crate) frames: mpsc::Receiver<Result<Frame<Bytes>, BodyError>>,
    /// Its length, if the guest gave one.
    pub(crate) length: Option<u64>,
}

impl HttpBody for Pumped {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.frames.poll_recv(cx));
        if let (Some(left), Some(Ok(frame))) = (&mut self.length, &frame)
            && let Some(data) = frame.data_ref()
        {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// An answer on its way to the guest. It breaks off if the request turns out to carry a secret.
pub(crate) struct Relayed {
    pub(crate) answer: Incoming,
    /// Fires when the request's body is refused; closed without a word when it was clean.
    pub(crate) refused: Option<oneshot::Receiver<Found>>,
    /// The request's place is taken until its answer has been relayed.
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

impl HttpBody for Relayed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(refused) = &mut self.refused {
            match Pin::new(refused).poll(cx) {
                Poll::Ready(Ok(_)) => {
                    self.refused = None;
                    return Poll::Ready(Some(Err(BodyError::Aborted)));
                }
                Poll::Ready(Err(_)) => self.refused = None,
                Poll::Pending => {}
            }
        }
        let frame = ready!(Pin::new(&mut self.answer).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Upstream)))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
