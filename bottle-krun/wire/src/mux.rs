//! Many streams with credits over one byte stream (to be written; this is the contract).
//!
//! A stream that is not read holds back its own sender and nothing else.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
/// frames, else why. Every stream is then reset.
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
    Out: Serialize + Send + 'static,
    In: DeserializeOwned + Send + 'static,
{
    let _ = (io, side);
    (Opener(PhantomData), Incoming(PhantomData), async { Ok(()) })
}

/// Opens streams. Cheap to clone.
#[derive(Debug)]
pub struct Opener<Out>(PhantomData<fn(Out)>);

impl<Out> Clone for Opener<Out> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<Out: Serialize> Opener<Out> {
    /// Opens a stream whose first message is `open`. Streams arrive at the peer in the order of
    /// these calls.
    ///
    /// # Errors
    ///
    /// [`MuxError`] if the connection is over, or if too many streams are open.
    pub async fn open(&self, open: &Out) -> Result<MuxStream, MuxError> {
        let _ = open;
        Err(MuxError::Gone)
    }
}

/// Receives the streams that the peer opens.
#[derive(Debug)]
pub struct Incoming<In>(PhantomData<fn() -> In>);

impl<In: DeserializeOwned> Incoming<In> {
    /// Returns the next stream with its first message, or `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<(In, MuxStream)> {
        None
    }
}

/// One stream, both directions.
///
/// * `poll_shutdown` sends an explicit end; the other direction goes on (half-close).
/// * A peer's end is read as end of file; a peer's reset, or the end of the connection, is read
///   and written as [`io::ErrorKind::ConnectionReset`].
/// * Dropping a stream of which either direction has not ended resets it. Use
///   [`tokio::io::split`] to use the directions in two tasks.
#[derive(Debug)]
pub struct MuxStream(());

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(0))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Why a connection ended, or a stream could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MuxError {
    /// The connection is over.
    #[error("the connection is over")]
    Gone,
}
