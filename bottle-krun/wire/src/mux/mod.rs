//! Many streams with credits over one byte stream.
//!
//! ```text
//!  MuxStream ─┐  write: as much as the peer's credit allows    ┌─ frames ─► peer
//!  MuxStream ─┼─► State (one lock) ◄──► Driver (one task) ◄────┤
//!  MuxStream ─┘  read: consumed bytes become the peer's credit └─ frames ◄─ peer
//! ```
//!
//! * A stream that is not read holds back its own sender and nothing else: a sender may have
//!   [`WINDOW`] bytes under way that were not consumed, and the driver always has room for them,
//!   so it never stops reading the connection. (libkrun delivers vsock data with blocking sends
//!   on the one thread that serves the whole device: an end that stops reading stops the VM.)
//! * What a write has accepted needs no further consent of the peer to arrive.
//! * Streams take turns, one frame of at most 32 KiB each.
//! * End (half-close) and reset are frames of their own and never confused, on either side.
//! * A peer is bounded: [`MAX_STREAMS`] streams, [`WINDOW`] bytes held for each, and
//!   [`MAX_BACKLOG`] bytes of first messages that nobody has accepted. Anything outside of the
//!   protocol ends the connection with a [`Violation`]. Frames of streams which are over already
//!   are dropped: they may have crossed with our reset.
//!
//! Why our own: the common protocols of this kind carry no first message, so that whoever accepts
//! a stream has to wait for a hostile peer's bytes before it knows what the stream is; their
//! crates speak other I/O traits than tokio's; and what is needed above is small enough to be
//! tested whole.

mod driver;
mod frame;
mod state;
#[cfg(test)]
mod tests;

use std::fmt::{self, Debug};
use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::driver::{Driver, Queue};
use self::state::Shared;
use crate::message::Message;

/// Bytes that may be under way on a stream, in one direction, without being consumed.
pub const WINDOW: usize = 256 << 10;

/// Streams opened by one end that may be open at once.
pub const MAX_STREAMS: usize = 512;

/// Bytes of first messages that may wait for [`Incoming::accept`].
pub const MAX_BACKLOG: usize = 8 << 20;

/// The longest first message of a stream, in bytes.
pub const MAX_OPEN: usize = frame::MAX_OPEN;

/// Which end of the connection this is; it decides the parity of stream numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a connection has two ends")]
pub enum Side {
    /// The end that dialled.
    Dialer,
    /// The end that accepted.
    Listener,
}

/// Starts a mux over `io`: what opens streams, what receives the peer's, and the task that moves
/// frames and must be driven (spawned) by the caller.
///
/// `Out` is the first message of streams that we open, `In` of streams that the peer opens.
///
/// The driver future resolves when the connection is over: `Ok` at an orderly end of file between
/// frames, or when nobody is left to use it (opener, incoming and streams are all dropped and
/// everything has been written); else why. Every stream is then reset.
///
/// # Cancellation
///
/// Dropping the driver future ends the connection.
pub fn start<T, Out, In>(
    io: T,
    side: Side,
) -> (
    Opener<Out>,
    Incoming<In>,
    impl Future<Output = Result<(), MuxError>> + Send,
)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    Out: Message + Send + 'static,
    In: Message + Send + 'static,
{
    let shared = Shared::new(side);
    let queue = Queue::new();
    let driver = Driver::new(io, shared.clone(), queue.clone());
    let opener = Opener {
        shared: shared.add_user(),
        out: PhantomData,
    };
    let incoming = Incoming {
        shared: shared.add_user(),
        queue,
    };
    (opener, incoming, driver)
}

/// Opens streams. Cheap to clone.
pub struct Opener<Out> {
    shared: Shared,
    out: PhantomData<fn(Out)>,
}

impl<Out> Clone for Opener<Out> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.add_user(),
            out: PhantomData,
        }
    }
}

impl<Out: Message> Opener<Out> {
    /// Opens a stream whose first message is `open`. Streams arrive at the peer in the order of
    /// these calls.
    ///
    /// # Errors
    ///
    /// [`MuxError::Gone`] if the connection is over, [`MuxError::TooManyStreams`] if
    /// [`MAX_STREAMS`] are open, [`MuxError::LongOpen`] if `open` is longer than [`MAX_OPEN`].
    #[expect(
        clippy::unused_async,
        reason = "callers must not care whether opening waits"
    )]
    pub async fn open(&self, open: &Out) -> Result<MuxStream, MuxError> {
        let message = open.to_bytes().map_err(|_| MuxError::LongOpen)?;
        if message.len() > MAX_OPEN {
            return Err(MuxError::LongOpen);
        }
        let id = self.shared.lock().open(message)?;
        Ok(MuxStream {
            shared: self.shared.clone(),
            id,
        })
    }
}

impl<Out> Debug for Opener<Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener")
    }
}

impl<Out> Drop for Opener<Out> {
    fn drop(&mut self) {
        self.shared.remove_user();
    }
}

/// Receives the streams that the peer opens. Once it is dropped they are reset.
pub struct Incoming<In> {
    shared: Shared,
    queue: Queue<In>,
}

impl<In: Message> Incoming<In> {
    /// Returns the next stream with its first message, or `None` when the connection is over.
    ///
    /// A stream that the peer has reset in the meantime, without an end, is left out.
    ///
    /// # Cancellation
    ///
    /// Nothing is lost.
    pub async fn accept(&mut self) -> Option<(In, MuxStream)> {
        poll_fn(|cx| self.queue.poll_next(cx)).await
    }
}

impl<In> Debug for Incoming<In> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Incoming")
    }
}

impl<In> Drop for Incoming<In> {
    fn drop(&mut self) {
        self.queue.abandon();
        self.shared.remove_user();
    }
}

/// One stream, both directions.
///
/// * `poll_write` accepts what the peer's credit allows; accepted bytes are sent without further
///   ado. `poll_flush` waits until they stand in the connection's order of frames: whatever any
///   stream writes later arrives later.
/// * `poll_shutdown` sends an explicit end and flushes; the other direction goes on (half-close).
/// * A peer's end is read as end of file; a peer's reset, or the end of the connection, is read
///   and written as [`io::ErrorKind::ConnectionReset`]. Bytes that came before are read first.
///   A reset after the peer's end is only seen by writes.
/// * Dropping a stream of which either direction has not ended resets it; if ours has ended, then
///   only after all of it and its end were sent. Use [`tokio::io::split`] to use the directions
///   in two tasks.
pub struct MuxStream {
    shared: Shared,
    id: u32,
}

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.lock().poll_read(self.id, cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_write(self.id, cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().poll_flush(self.id, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        state.end(self.id)?;
        state.poll_flush(self.id, cx)
    }
}

impl Debug for MuxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.lock().release(self.id);
    }
}

/// Why a connection ended, or a stream could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MuxError {
    /// The connection is over.
    #[error("the connection is over")]
    Gone,
    /// The connection failed.
    #[error("cannot {operation} the connection")]
    Io {
        /// `read` or `write`.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The first message of a stream is longer than [`MAX_OPEN`].
    #[error("first message of a stream is longer than {MAX_OPEN} bytes")]
    LongOpen,
    /// [`MAX_STREAMS`] streams are open, or all stream numbers have been used.
    #[error("too many streams are open")]
    TooManyStreams,
    /// The connection ended in the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// The peer left the protocol.
    #[error("the peer left the protocol")]
    Violation {
        /// How.
        source: Violation,
    },
}

/// How a peer left the protocol.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Violation {
    /// A stream's bytes went on after its end.
    #[error("frame of kind {kind} for stream {stream} after its end")]
    AfterEnd {
        /// The frame's kind.
        kind: u8,
        /// The stream.
        stream: u32,
    },
    /// More than [`MAX_BACKLOG`] bytes of first messages wait to be accepted.
    #[error("more than {MAX_BACKLOG} bytes of first messages wait")]
    Backlog,
    /// A first message is not of the agreed type.
    #[error("first message of stream {stream} is none")]
    BadOpen {
        /// The stream.
        stream: u32,
    },
    /// More credit than was ever used.
    #[error("credit for stream {stream} exceeds its window")]
    CreditExceeded {
        /// The stream.
        stream: u32,
    },
    /// A frame that says nothing.
    #[error("empty frame of kind {kind}")]
    EmptyFrame {
        /// The frame's kind.
        kind: u8,
    },
    /// A frame is longer than its kind may be.
    #[error("frame of kind {kind} has length {value}")]
    LongFrame {
        /// The frame's kind.
        kind: u8,
        /// What its header says.
        value: u32,
    },
    /// More than [`MAX_STREAMS`] streams are open.
    #[error("more than {MAX_STREAMS} streams are open")]
    TooManyStreams,
    /// No such kind of frame.
    #[error("unknown kind of frame {kind}")]
    UnknownKind {
        /// The frame's kind.
        kind: u8,
    },
    /// A frame of a stream that was never opened.
    #[error("frame for stream {stream}, which was never opened")]
    UnopenedStream {
        /// The stream.
        stream: u32,
    },
    /// More bytes than there was credit for.
    #[error("bytes on stream {stream} exceed its credit")]
    WindowExceeded {
        /// The stream.
        stream: u32,
    },
    /// A new stream does not have the next number.
    #[error("new stream has number {stream}, not {expected}")]
    WrongNumber {
        /// The number it has.
        stream: u32,
        /// The number it had to have.
        expected: u32,
    },
}
