//! The task that moves frames between the connection and [`State`](super::state::State), and the
//! queue of streams that wait to be accepted.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frame::{self, HEADER};
use super::state::{Effect, Shared};
use super::{MAX_BACKLOG, MAX_STREAMS, MuxError, MuxStream, Violation};
use crate::message::Message;

/// Bytes read and written at once.
const CHUNK: usize = 64 << 10;

/// Reads and writes before other tasks get their turn.
const ROUNDS: usize = 16;

/// See [`super::start`].
pub(crate) struct Driver<T, In> {
    io: T,
    shared: Shared,
    queue: Queue<In>,
    scratch: Box<[u8]>,
    input: BytesMut,
    output: BytesMut,
    needs_flush: bool,
    /// Writing failed; what the peer had said before is still read.
    write_error: Option<MuxError>,
}

impl<T, In> Driver<T, In>
where
    T: AsyncRead + AsyncWrite + Unpin,
    In: Message,
{
    pub(crate) fn new(io: T, shared: Shared, queue: Queue<In>) -> Self {
        Self {
            io,
            shared,
            queue,
            scratch: vec![0; CHUNK].into_boxed_slice(),
            input: BytesMut::new(),
            output: BytesMut::new(),
            needs_flush: false,
            write_error: None,
        }
    }

    /// Writes once. `Pending` if the connection takes nothing now, or nothing is to be said.
    fn poll_writing(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), MuxError>> {
        if self.output.is_empty() {
            self.shared.lock().fill(&mut self.output, CHUNK, cx);
        }
        let failed = |source| MuxError::Io {
            operation: "write",
            source,
        };
        if self.output.is_empty() {
            if self.needs_flush
                && Pin::new(&mut self.io)
                    .poll_flush(cx)
                    .map_err(failed)?
                    .is_ready()
            {
                self.needs_flush = false;
            }
            return Poll::Pending;
        }
        match Pin::new(&mut self.io).poll_write(cx, &self.output) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(failed(io::ErrorKind::WriteZero.into()))),
            Poll::Ready(Ok(written)) => {
                self.output.advance(written);
                self.needs_flush = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(source)) => Poll::Ready(Err(failed(source))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads once; `false` at the end of file.
    fn poll_reading(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, MuxError>> {
        let mut buffer = ReadBuf::new(&mut self.scratch);
        match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(source)) => {
                return Poll::Ready(Err(MuxError::Io {
                    operation: "read",
                    source,
                }));
            }
            Poll::Pending => return Poll::Pending,
        }
        if buffer.filled().is_empty() {
            return Poll::Ready(if self.input.is_empty() {
                Ok(false)
            } else {
                Err(MuxError::Truncated)
            });
        }
        self.input.extend_from_slice(buffer.filled());
        match self.take_frames() {
            Ok(()) => Poll::Ready(Ok(true)),
            Err(source) => Poll::Ready(Err(MuxError::Violation { source })),
        }
    }

    fn take_frames(&mut self) -> Result<(), Violation> {
        while let Some(frame) = frame::decode(&mut self.input)? {
            let effect = self.shared.lock().receive(frame)?;
            match effect {
                Effect::None => {}
                Effect::Opened {
                    stream: id,
                    message,
                } => {
                    let stream = MuxStream {
                        shared: self.shared.clone(),
                        id,
                    };
                    let first =
                        In::from_bytes(&message).map_err(|_| Violation::BadOpen { stream: id })?;
                    self.queue.push(first, stream, message.len())?;
                }
                Effect::Withdrawn { stream, ended } => self.queue.withdraw(stream, ended),
            }
        }
        if self.input.is_empty() && self.input.capacity() > CHUNK + HEADER {
            self.input = BytesMut::new();
        }
        Ok(())
    }
}

impl<T, In> Future for Driver<T, In>
where
    T: AsyncRead + AsyncWrite + Unpin,
    In: Message,
{
    type Output = Result<(), MuxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        for _ in 0..ROUNDS {
            let wrote = if this.write_error.is_some() {
                false
            } else {
                match this.poll_writing(cx) {
                    Poll::Ready(Ok(())) => true,
                    Poll::Ready(Err(error)) => {
                        this.write_error = Some(error);
                        false
                    }
                    Poll::Pending => false,
                }
            };
            match this.poll_reading(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if let Some(error) = this.write_error.take() {
                        return Poll::Ready(Err(error));
                    }
                    if !wrote {
                        let idle = this.output.is_empty() && !this.needs_flush;
                        if idle && this.shared.lock().is_abandoned() {
                            return Poll::Ready(Ok(()));
                        }
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T, In> Drop for Driver<T, In> {
    fn drop(&mut self) {
        self.shared.lock().end_all();
        self.queue.close();
    }
}

/// Streams of the peer's that nobody has accepted yet.
pub(crate) struct Queue<In>(Arc<Mutex<Waiting<In>>>);

struct Waiting<In> {
    streams: VecDeque<(In, MuxStream, usize)>,
    /// Sum of their first messages' lengths.
    bytes: usize,
    closed: bool,
    acceptor: Option<Waker>,
}

impl<In> Queue<In> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Waiting {
            streams: VecDeque::new(),
            bytes: 0,
            closed: false,
            acceptor: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<In>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, first: In, stream: MuxStream, length: usize) -> Result<(), Violation> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Ok(()); // dropping the stream resets it
        }
        if waiting.bytes + length > MAX_BACKLOG {
            return Err(Violation::Backlog);
        }
        waiting.bytes += length;
        waiting.streams.push_back((first, stream, length));
        if let Some(waker) = waiting.acceptor.take() {
            waker.wake();
        }
        Ok(())
    }

    /// A stream that has ended before it was reset is kept, while that doesn't keep more of them
    /// than may be open.
    fn withdraw(&self, id: u32, ended: bool) {
        let mut waiting = self.lock();
        if ended && waiting.streams.len() <= MAX_STREAMS {
            return;
        }
        if let Some(at) = waiting
            .streams
            .iter()
            .position(|(_, stream, _)| stream.id == id)
            && let Some((_, _, length)) = waiting.streams.remove(at)
        {
            waiting.bytes -= length;
        }
    }

    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<(In, MuxStream)>> {
        let mut waiting = self.lock();
        if let Some((first, stream, length)) = waiting.streams.pop_front() {
            waiting.bytes -= length;
            return Poll::Ready(Some((first, stream)));
        }
        if waiting.closed {
            return Poll::Ready(None);
        }
        waiting.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Nothing more is taken in; what waits may still be accepted.
    fn close(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        if let Some(waker) = waiting.acceptor.take() {
            waker.wake();
        }
    }

    /// Nothing more is taken in, and what waits is reset.
    pub(crate) fn abandon(&self) {
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.streams.clear();
    }
}

impl<In> Clone for Queue<In> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
