//! Carries a flow that a rule allows without looking into it, and counts its bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bottle_core::policy::HostName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

use crate::denial::Refusal;
use crate::ledger::{Closing, Seen};
use crate::shared::{Leave, Shared};
use crate::sniff::Duplex;

/// Carries everything between the guest and the host to the end of both directions.
///
/// # Errors
///
/// A refusal if the host cannot be reached; nothing was sent then.
///
/// # Cancellation
///
/// Dropping the future closes both sides and records what was counted so far.
pub(crate) async fn carry(
    shared: &Shared,
    name: &HostName,
    port: u16,
    leave: &Leave,
    guest: impl Duplex,
) -> Result<(), Refusal> {
    let connected = shared
        .dialer
        .connect(name, port, leave.reach)
        .await
        .map_err(|error| error.refusal().under(&leave.rule))?;
    let seen = Seen {
        host: name.to_string(),
        port,
        method: None,
        path: None,
    };
    let counts = Arc::new(Counts::default());
    let id = shared
        .ledger
        .opened(seen, leave.rule.clone(), connected.address);
    let _closing = Closing {
        ledger: shared.ledger.clone(),
        id,
        counts: Arc::clone(&counts),
        began: Instant::now(),
    };
    let mut guest = Counted {
        stream: guest,
        counts: Arc::clone(&counts),
        count: |counts| &counts.sent,
    };
    let mut upstream = Counted {
        stream: connected.stream,
        counts,
        count: |counts| &counts.received,
    };
    // Whatever breaks off on one side breaks off on the other, when both are dropped.
    if let Err(error) = copy_bidirectional(&mut guest, &mut upstream).await {
        tracing::debug!(%error, "an uninspected flow broke off");
    }
    Ok(())
}

/// The bytes of a flow, from the guest and to it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// Counts what is read.
struct Counted<S> {
    stream: S,
    counts: Arc<Counts>,
    count: fn(&Counts) -> &AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let more = (buf.filled().len() - before) as u64;
        (self.count)(&self.counts).fetch_add(more, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
