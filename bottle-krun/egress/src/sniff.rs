//! A guest's stream whose first bytes were looked at before anybody else reads them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
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

/// A stream that gives back the bytes that were taken from it.
pub(crate) struct Peeked {
    first: Bytes,
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
        let peeked = Self {
            first: Bytes::copy_from_slice(&byte[..count]),
            rest: stream,
        };
        Ok((opening, peeked))
    }

    /// Reads on until `judge` has an answer, and gives it together with the untouched stream.
    ///
    /// `None` if the stream or `most` bytes end before that.
    pub(crate) async fn look<T>(
        mut self,
        most: usize,
        judge: impl Fn(&[u8]) -> Option<T>,
    ) -> io::Result<(Option<T>, Self)> {
        let mut bytes = Vec::from(self.first);
        let answer = loop {
            let answer = judge(&bytes);
            if answer.is_some() || bytes.len() >= most {
                break answer;
            }
            if self.rest.read_buf(&mut bytes).await? == 0 {
                break None;
            }
        };
        self.first = bytes.into();
        Ok((answer, self))
    }
}

impl AsyncRead for Peeked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first.split_to(count));
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
