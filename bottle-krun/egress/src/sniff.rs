//! A guest's stream whose first byte was looked at before anybody else reads it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The guest's side of a flow.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What the first byte says about a protocol in which the client speaks first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opening {
    /// The end came before any byte.
    Nothing,
    /// A TLS handshake record.
    Tls,
    /// A capital letter: perhaps the method of an HTTP request.
    Http,
    /// Anything else.
    Other,
}

/// A stream that gives back the byte that was taken from it.
pub(crate) struct Peeked {
    first: Option<u8>,
    rest: Box<dyn Duplex>,
}

impl Peeked {
    /// Waits for the first byte and says what it means.
    pub(crate) async fn open(mut stream: Box<dyn Duplex>) -> io::Result<(Opening, Self)> {
        let mut byte = [0_u8; 1];
        let count = stream.read(&mut byte).await?;
        let opening = match byte[0] {
            _ if count == 0 => Opening::Nothing,
            TLS_HANDSHAKE => Opening::Tls,
            b'A'..=b'Z' => Opening::Http,
            _ => Opening::Other,
        };
        let first = (count > 0).then_some(byte[0]);
        Ok((
            opening,
            Self {
                first,
                rest: stream,
            },
        ))
    }
}

impl AsyncRead for Peeked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buf.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.rest).poll_read(cx, buf))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peeked {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(cx)
    }
}

const TLS_HANDSHAKE: u8 = 0x16;
