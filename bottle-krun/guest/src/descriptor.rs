//! A non-blocking descriptor as tokio's reader and writer: a socket, a terminal.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys;

/// Clones are the same descriptor; it is closed with the last of them. One task may read while
/// another one writes.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor(Arc<AsyncFd<OwnedFd>>);

impl Descriptor {
    /// Takes a non-blocking descriptor into the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::watch(fd).map(|fd| Self(Arc::new(fd)))
    }

    /// Reads what is there already.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] if nothing is.
    pub(crate) fn read_now(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let read = read(self, buf.initialize_unfilled())?;
        buf.advance(read);
        Ok(())
    }

    /// Returns when the peer has reset the connection, even while nothing is read of it.
    pub(crate) async fn broken(&self) -> io::Error {
        loop {
            match self.0.ready(Interest::ERROR).await {
                Ok(guard) if guard.ready().is_error() => {
                    return io::ErrorKind::ConnectionReset.into();
                }
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    /// Makes the end of a TCP connection a reset.
    pub(crate) fn reset_when_closed(&self) {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // Of no other socket, and no harm if it fails.
        let _ = setsockopt(self, sockopt::Linger, &at_once);
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsyncRead for Descriptor {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            if let Ok(result) = ready.try_io(|fd| Ok(read(fd, into)?)) {
                buf.advance(result?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Descriptor {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = ready.try_io(|fd| Ok(write(fd, bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Of a socket.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}
