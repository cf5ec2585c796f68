//! What both ends know of their streams: a state machine over frames, without I/O.
//!
//! ```text
//!            ours                              the peer's
//! Open ──end()──► Pending ──End sent──► Sent   ended_in = false ──End received──► true
//!            closed = (Sent and ended_in) or a Reset was sent or received
//! ```
//!
//! A stream counts against [`MAX_STREAMS`] until it is closed, and each end closes it no later than
//! its opener may reuse the place: whatever closed it goes before the opener's next Open.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use tokio::io::ReadBuf;

use super::frame::{self, Frame, MAX_DATA};
use super::{MAX_STREAMS, MuxError, Side, Violation, WINDOW};

/// Bytes of a stream that wait for the driver; more would only be memory.
const SEND_BUFFER: usize = 64 << 10;

/// Consumed bytes are given back as credit when there are so many: a sender without any credit
/// then always faces a reader with something to read.
const CREDIT_STEP: usize = WINDOW / 4;

/// A buffer that was drained is only kept up to this capacity.
const KEPT_CAPACITY: usize = 64 << 10;

/// The state behind its lock, shared by the driver and everything that uses the connection.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<State>>);

impl Shared {
    pub(crate) fn new(side: Side) -> Self {
        let (next_ours, next_theirs) = match side {
            Side::Dialer => (1, 2),
            Side::Listener => (2, 1),
        };
        Self(Arc::new(Mutex::new(State {
            streams: HashMap::new(),
            opens: VecDeque::new(),
            ready: VecDeque::new(),
            driver: None,
            users: 0,
            next_ours: Some(next_ours),
            next_theirs: Some(next_theirs),
            ours: 0,
            theirs: 0,
            over: false,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // No method of `State` leaves it half-changed when it panics: they allocate at most.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more opener or incoming keeps the connection alive.
    pub(crate) fn add_user(&self) -> Self {
        self.lock().users += 1;
        self.clone()
    }

    pub(crate) fn remove_user(&self) {
        let mut state = self.lock();
        state.users -= 1;
        state.wake_driver();
    }
}

pub(crate) struct State {
    streams: HashMap<u32, Stream>,
    /// Streams whose Open has not been sent, in order.
    opens: VecDeque<(u32, Vec<u8>)>,
    /// Streams with something to send, each at most once, in the order of their turns.
    ready: VecDeque<u32>,
    driver: Option<Waker>,
    users: usize,
    /// `None` when all numbers are used.
    next_ours: Option<u32>,
    next_theirs: Option<u32>,
    /// Streams that we opened and that are not closed.
    ours: usize,
    theirs: usize,
    over: bool,
}

/// One direction of ours.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Ending {
    Open,
    Pending,
    Sent,
}

struct Stream {
    ours: bool,
    /// A `MuxStream` exists.
    held: bool,
    /// It stands in `ready`.
    queued: bool,
    /// Nothing more is said about it on the connection.
    closed: bool,
    /// Our reset waits to be sent.
    resetting: bool,
    /// The peer has reset it.
    was_reset: bool,

    input: BytesMut,
    /// Bytes that the peer may still send.
    window: usize,
    /// Bytes that our reader consumed and that are not yet given back as credit.
    consumed: usize,
    ended_in: bool,
    reader: Option<Waker>,

    output: BytesMut,
    /// Bytes that we may still accept from our writer.
    credit: usize,
    ending: Ending,
    writer: Option<Waker>,
}

impl Stream {
    fn new(ours: bool) -> Self {
        Self {
            ours,
            held: true,
            queued: false,
            closed: false,
            resetting: false,
            was_reset: false,
            input: BytesMut::new(),
            window: WINDOW,
            consumed: 0,
            ended_in: false,
            reader: None,
            output: BytesMut::new(),
            credit: WINDOW,
            ending: Ending::Open,
            writer: None,
        }
    }

    fn wake(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
}

/// What the driver has to do besides, after a frame.
pub(crate) enum Effect {
    None,
    /// A new stream of the peer's; a `MuxStream` must be made for it.
    Opened {
        stream: u32,
        message: bytes::Bytes,
    },
    /// The peer has reset a stream: nobody need accept it any more, except to read what came
    /// before its end.
    Withdrawn {
        stream: u32,
        ended: bool,
    },
}

/// For the driver.
impl State {
    /// Takes in a frame of the peer's.
    pub(crate) fn receive(&mut self, frame: Frame) -> Result<Effect, Violation> {
        match frame {
            Frame::Open { stream, message } => {
                let expected = self.next_theirs.ok_or(Violation::TooManyStreams)?;
                if stream != expected {
                    return Err(Violation::WrongNumber { stream, expected });
                }
                if self.theirs == MAX_STREAMS {
                    return Err(Violation::TooManyStreams);
                }
                self.next_theirs = expected.checked_add(2);
                self.theirs += 1;
                self.streams.insert(stream, Stream::new(false));
                return Ok(Effect::Opened { stream, message });
            }
            Frame::Data { stream, bytes } => {
                let Some(entry) = self.known(stream)? else {
                    return Ok(Effect::None);
                };
                if entry.ended_in {
                    return Err(Violation::AfterEnd {
                        kind: frame::DATA,
                        stream,
                    });
                }
                entry.window = entry
                    .window
                    .checked_sub(bytes.len())
                    .ok_or(Violation::WindowExceeded { stream })?;
                entry.input.extend_from_slice(&bytes);
                wake(&mut entry.reader);
            }
            Frame::End { stream } => {
                let Some(entry) = self.known(stream)? else {
                    return Ok(Effect::None);
                };
                if entry.ended_in {
                    return Err(Violation::AfterEnd {
                        kind: frame::END,
                        stream,
                    });
                }
                entry.ended_in = true;
                wake(&mut entry.reader);
                if entry.ending == Ending::Sent {
                    self.close(stream);
                }
            }
            Frame::Reset { stream } => {
                // A stream whose reset of our own waits closes as well: ours need not be sent.
                self.opened(stream)?;
                if let Some(entry) = self.streams.get_mut(&stream).filter(|s| !s.closed) {
                    entry.was_reset = true;
                    entry.output = BytesMut::new();
                    entry.wake();
                    let ended = entry.ended_in;
                    self.close(stream);
                    return Ok(Effect::Withdrawn { stream, ended });
                }
            }
            Frame::Credit { stream, bytes } => {
                let Some(entry) = self.known(stream)? else {
                    return Ok(Effect::None);
                };
                entry.credit = entry
                    .credit
                    .checked_add(bytes as usize)
                    .filter(|credit| *credit <= WINDOW)
                    .ok_or(Violation::CreditExceeded { stream })?;
                wake(&mut entry.writer);
            }
        }
        Ok(Effect::None)
    }

    /// Appends frames to `out` until it is `limit` long or there is nothing to say.
    pub(crate) fn fill(&mut self, out: &mut BytesMut, limit: usize, cx: &mut Context<'_>) {
        match &mut self.driver {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        while out.len() < limit {
            if let Some((id, message)) = self.opens.pop_front() {
                frame::put_open(out, id, &message);
            } else if let Some(id) = self.ready.pop_front() {
                self.take_turn(id, out);
            } else {
                return;
            }
        }
    }

    /// One stream says its word: a reset, or credit, one frame of data and its end.
    fn take_turn(&mut self, id: u32, out: &mut BytesMut) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        entry.queued = false;
        if entry.closed {
            return;
        }
        if entry.resetting && entry.ending == Ending::Open {
            frame::put_reset(out, id);
            self.close(id);
            return;
        }
        if entry.consumed >= CREDIT_STEP && !entry.ended_in && !entry.resetting {
            let bytes = u32::try_from(entry.consumed).expect("a window fits in 32 bits");
            frame::put_credit(out, id, bytes);
            entry.window += entry.consumed;
            entry.consumed = 0;
        }
        if !entry.output.is_empty() {
            let chunk = entry.output.len().min(MAX_DATA);
            frame::put_data(out, id, &entry.output[..chunk]);
            entry.output.advance(chunk);
            wake(&mut entry.writer);
        }
        if !entry.output.is_empty() {
            entry.queued = true;
            self.ready.push_back(id);
            return;
        }
        drained(&mut entry.output);
        if entry.ending == Ending::Pending {
            frame::put_end(out, id);
            entry.ending = Ending::Sent;
            wake(&mut entry.writer);
        }
        if entry.ending == Ending::Sent && (entry.ended_in || entry.resetting) {
            if entry.resetting {
                frame::put_reset(out, id);
            }
            self.close(id);
        }
    }

    /// Whether nobody is left who could say or hear anything.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.users == 0 && self.streams.is_empty() && self.opens.is_empty()
    }

    /// The connection is over: every stream is reset.
    pub(crate) fn end_all(&mut self) {
        self.over = true;
        self.opens.clear();
        self.ready.clear();
        self.streams.retain(|_, entry| {
            entry.closed = true;
            entry.wake();
            entry.held
        });
    }

    /// A stream as far as frames may still say something about it: `None` if it is over.
    fn known(&mut self, stream: u32) -> Result<Option<&mut Stream>, Violation> {
        self.opened(stream)?;
        let live = |entry: &&mut Stream| !entry.closed && !entry.resetting;
        Ok(self.streams.get_mut(&stream).filter(live))
    }

    /// Refuses numbers that no stream has had.
    fn opened(&self, stream: u32) -> Result<(), Violation> {
        let used = |next: Option<u32>| next.is_none_or(|next| stream < next);
        let ours = self.next_ours.map_or(stream % 2, |next| next % 2) == stream % 2;
        let next = if ours {
            self.next_ours
        } else {
            self.next_theirs
        };
        if stream != 0 && used(next) {
            Ok(())
        } else {
            Err(Violation::UnopenedStream { stream })
        }
    }

    fn close(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        entry.closed = true;
        if entry.ours {
            self.ours -= 1;
        } else {
            self.theirs -= 1;
        }
        if !entry.held {
            self.streams.remove(&id);
        }
    }

    fn queue(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id)
            && !entry.queued
            && !entry.closed
        {
            entry.queued = true;
            self.ready.push_back(id);
            self.wake_driver();
        }
    }

    fn wake_driver(&mut self) {
        wake(&mut self.driver);
    }
}

/// For openers and streams.
impl State {
    pub(crate) fn open(&mut self, message: Vec<u8>) -> Result<u32, MuxError> {
        if self.over {
            return Err(MuxError::Gone);
        }
        if self.ours == MAX_STREAMS {
            return Err(MuxError::TooManyStreams);
        }
        let id = self.next_ours.ok_or(MuxError::TooManyStreams)?;
        self.next_ours = id.checked_add(2);
        self.ours += 1;
        self.streams.insert(id, Stream::new(true));
        self.opens.push_back((id, message));
        self.wake_driver();
        Ok(id)
    }

    pub(crate) fn poll_read(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let over = self.over;
        let Some(entry) = self.streams.get_mut(&id) else {
            return Poll::Ready(Err(reset()));
        };
        if entry.input.is_empty() {
            return if entry.ended_in || buf.remaining() == 0 {
                Poll::Ready(Ok(()))
            } else if over || entry.was_reset {
                Poll::Ready(Err(reset()))
            } else {
                wait(&mut entry.reader, cx);
                Poll::Pending
            };
        }
        let taken = entry.input.len().min(buf.remaining());
        buf.put_slice(&entry.input[..taken]);
        entry.input.advance(taken);
        drained(&mut entry.input);
        entry.consumed += taken;
        if entry.consumed >= CREDIT_STEP && !entry.ended_in {
            self.queue(id);
        }
        Poll::Ready(Ok(()))
    }

    pub(crate) fn poll_write(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let over = self.over;
        let entry = match self.streams.get_mut(&id) {
            Some(entry) if !over && !entry.was_reset => entry,
            Some(_) | None => return Poll::Ready(Err(reset())),
        };
        if entry.ending != Ending::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = entry
            .credit
            .min(SEND_BUFFER.saturating_sub(entry.output.len()));
        if room == 0 && !bytes.is_empty() {
            wait(&mut entry.writer, cx);
            return Poll::Pending;
        }
        let taken = room.min(bytes.len());
        entry.output.extend_from_slice(&bytes[..taken]);
        entry.credit -= taken;
        if taken > 0 {
            self.queue(id);
        }
        Poll::Ready(Ok(taken))
    }

    /// Waits until everything accepted, and the end if there is one, has become frames.
    pub(crate) fn poll_flush(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let over = self.over;
        let entry = match self.streams.get_mut(&id) {
            Some(entry) if !over && !entry.was_reset => entry,
            Some(_) | None => return Poll::Ready(Err(reset())),
        };
        if entry.output.is_empty() && entry.ending != Ending::Pending {
            return Poll::Ready(Ok(()));
        }
        wait(&mut entry.writer, cx);
        Poll::Pending
    }

    /// Ends our direction, once.
    pub(crate) fn end(&mut self, id: u32) -> io::Result<()> {
        let over = self.over;
        let entry = match self.streams.get_mut(&id) {
            Some(entry) if !over && !entry.was_reset => entry,
            Some(_) | None => return Err(reset()),
        };
        if entry.ending == Ending::Open {
            entry.ending = Ending::Pending;
            self.queue(id);
        }
        Ok(())
    }

    /// The `MuxStream` is dropped.
    pub(crate) fn release(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else {
            return;
        };
        entry.held = false;
        if entry.closed {
            self.streams.remove(&id);
            // The driver may have waited for nothing else.
            self.wake_driver();
            return;
        }
        entry.input = BytesMut::new();
        if entry.ending == Ending::Open {
            entry.output = BytesMut::new();
        }
        if entry.ending == Ending::Open || !entry.ended_in {
            entry.resetting = true;
            self.queue(id);
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

fn wait(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

/// Gives back the memory of a buffer that once held much.
fn drained(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > KEPT_CAPACITY {
        *buffer = BytesMut::new();
    }
}
