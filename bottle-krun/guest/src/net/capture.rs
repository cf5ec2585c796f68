//! Captured TCP connections: each becomes a flow of the mux.
//!
//! What the workload dialled is the accepted socket's own address, since every address is local
//! here. End and reset are carried over in both directions; nothing is read from the workload that
//! the host has not given credit for, but for one buffer.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bottle_wire::guest::FromGuest;
use bottle_wire::mux::{MuxStream, Opener};
use bottle_wire::pump::{Pumped, pump};
use nix::sys::socket::{Shutdown, shutdown};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::sleep;

use crate::error::{InitError, failed};

/// Bytes thrown away at once.
const BUFFER: usize = 64 << 10;

/// How long a workload may go on sending what nobody reads after it has its whole answer.
const LINGER: Duration = Duration::from_secs(5);

/// Before accepting is tried again when the system has no room for another connection.
const BREATH: Duration = Duration::from_millis(50);

/// Takes a listening socket into the current runtime.
pub(crate) fn listener(fd: OwnedFd) -> Result<TcpListener, InitError> {
    TcpListener::from_std(StdListener::from(fd)).map_err(failed("use", "a listening socket"))
}

/// Accepts for ever.
pub(crate) fn start(listener: TcpListener, opener: Opener<FromGuest>) {
    spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((client, _)) => {
                    let opener = opener.clone();
                    spawn_local(async move { carry(client, &opener).await });
                }
                Err(_) => sleep(BREATH).await,
            }
        }
    });
}

/// Carries one connection to the host. Whatever breaks on one side is a reset on the other.
async fn carry(client: TcpStream, opener: &Opener<FromGuest>) {
    let opened = match client.local_addr() {
        Ok(destination) => opener.open(&FromGuest::Flow { destination }).await.ok(),
        Err(_) => None,
    };
    let carried = match opened {
        Some(stream) => {
            let _ = client.set_nodelay(true);
            relay(&client, stream).await
        }
        None => Err(io::ErrorKind::ConnectionReset.into()),
    };
    if carried.is_err() {
        let _ = client.set_zero_linger();
    }
}

/// Copies in both directions until both are over, or one side was reset: then both are over.
async fn relay(client: &TcpStream, stream: MuxStream) -> io::Result<()> {
    let (from_host, to_host) = split(stream);
    let (answered, over) = oneshot::channel();
    let up = async {
        let mut client = Client(client);
        if pump(&mut client, to_host).await? == Pumped::Refused {
            discard(client, over).await;
        }
        io::Result::Ok(())
    };
    let down = async {
        let pumped = pump(from_host, Client(client)).await?;
        let _ = answered.send(());
        match pumped {
            Pumped::Whole => Ok(()),
            // The kernel says so only of a connection that the workload has left.
            Pumped::Refused => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    tokio::select! {
        ended = async { tokio::try_join!(up, down) } => ended.map(|_| ()),
        error = broken(client) => Err(error),
    }
}

/// Reads on from a workload whose host side listens no longer, as after a refusal in the middle of
/// an upload: closing now would reset the connection, and could take the answer along. Ends with
/// the workload's end, or soon after the answer's.
async fn discard(mut client: Client<'_>, over: oneshot::Receiver<()>) {
    let mut buffer = vec![0; BUFFER];
    let ended = async { while matches!(client.read(&mut buffer).await, Ok(1..)) {} };
    let lingered = async {
        let _ = over.await;
        sleep(LINGER).await;
    };
    tokio::select! { () = ended => {}, () = lingered => {} }
}

/// Returns when the workload has reset the connection, even while nothing is read of it because
/// the host gives no credit.
async fn broken(client: &TcpStream) -> io::Error {
    loop {
        match client.ready(Interest::ERROR).await {
            Ok(ready) if ready.is_error() => return io::ErrorKind::ConnectionReset.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// A socket that several futures of one task use at once.
struct Client<'a>(&'a TcpStream);

impl AsyncRead for Client<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    buf.advance(result?);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Client<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
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
