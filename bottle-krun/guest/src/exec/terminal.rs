//! The pseudo-terminal of a process: our end, and the one that the process gets.
//!
//! The kernel does what a terminal does: it echoes, edits lines, makes signals of keys, tells the
//! foreground group of a new size, and hangs the session up when our end is closed. That is when
//! its process has ended and what it showed was read: whoever else still holds the terminal loses
//! it then.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bottle_wire::guest::Window;
use nix::libc;
use nix::sys::termios::{InputFlags, SetArg, tcgetattr, tcsetattr};
use nix::unistd::{Uid, fchown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::descriptor::Descriptor;
use crate::provision::users::Identity;
use crate::sys;

/// Makes new pseudo-terminals.
const MULTIPLEXER: &str = "/dev/ptmx";

/// Bytes that the kernel may hold of what was shown: its buffers have 68 KiB.
const MAX_LEFT: usize = 128 << 10;

/// Our end. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Terminal(Descriptor);

impl Terminal {
    /// Opens a terminal; returns the user's end, too. Its group is the one that `/dev/pts` is
    /// mounted with, so that others may write to it as they may on any machine.
    pub(super) fn open(user: &Identity, window: Window) -> io::Result<(Self, OwnedFd)> {
        let ours = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(MULTIPLEXER)?;
        sys::unlock_terminal(ours.as_fd())?;
        let theirs = sys::other_end(ours.as_fd())?;
        fchown(&theirs, Some(Uid::from_raw(user.uid)), None)?;
        // Erasing takes a character away, not a byte of it.
        let mut modes = tcgetattr(&theirs)?;
        modes.input_flags |= InputFlags::IUTF8;
        tcsetattr(&theirs, SetArg::TCSANOW, &modes)?;
        let terminal = Self(Descriptor::new(ours.into())?);
        terminal.resize(window)?;
        Ok((terminal, theirs))
    }

    /// Gives it another size; the kernel tells whom it concerns.
    pub(super) fn resize(&self, window: Window) -> io::Result<()> {
        sys::resize_terminal(self.0.as_fd(), window)
    }
}

/// What a terminal shows. It ends when nobody holds the other end, or when its process has ended
/// and all that was shown until then has been read.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Terminal,
    process: oneshot::Receiver<Infallible>,
    /// After the process's end: how much may still come from it.
    left: Option<usize>,
}

impl Screen {
    /// Reads from a terminal whose process ends when the sender of `process` is dropped.
    pub(super) fn new(terminal: Terminal, process: oneshot::Receiver<Infallible>) -> Self {
        Self {
            terminal,
            process,
            left: None,
        }
    }

    /// Returns when the process has ended.
    pub(super) async fn process_ended(self) {
        if self.left.is_none() {
            let _ = self.process.await;
        }
    }
}

impl AsyncRead for Screen {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.left.is_none() && Pin::new(&mut self.process).poll(cx).is_ready() {
            self.left = Some(MAX_LEFT);
        }
        let before = buf.filled().len();
        let result = match self.left {
            None => ready!(Pin::new(&mut self.terminal.0).poll_read(cx, buf)),
            Some(0) => Ok(()),
            // The kernel has all of it ready before it says that there is nothing.
            Some(_) => self.terminal.0.read_now(buf),
        };
        let read = buf.filled().len() - before;
        self.left = self.left.map(|left| left.saturating_sub(read));
        Poll::Ready(result.or_else(|error| match error.raw_os_error() {
            // What a terminal's end of file looks like from this side; and its process has ended.
            Some(libc::EIO | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        }))
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
