//! The one connection to the host: an AF_VSOCK stream for tokio.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, VsockAddr, connect, shutdown, socket,
};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{InitError, failed};
use crate::sys;

/// The host's address in the vsock family.
const HOST_CID: u32 = 2;

/// A connected vsock.
#[derive(Debug)]
pub(crate) struct VsockStream(AsyncFd<OwnedFd>);

/// Dials a port of the host, waiting for the connection. Nothing else of init runs yet.
pub(crate) fn dial(port: u32) -> Result<OwnedFd, InitError> {
    let named = || format!("vsock port {port} of the host");
    let fd = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(failed("make a socket for", named()))?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port)).map_err(failed("dial", named()))?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(failed("set up", named()))?;
    Ok(fd)
}

impl VsockStream {
    /// Takes a connected, non-blocking socket into the current runtime.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::watch(fd).map(Self)
    }
}

impl AsyncRead for VsockStream {
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

impl AsyncWrite for VsockStream {
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

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(self.0.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}
